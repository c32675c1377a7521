//! Prompts that begin alike go to one instance, whose prefix cache has them: the first words of the prompt
//! are hashed to a place on the ring of `consistent_hash`. (Words, as there is no tokenizer; how many is
//! `cache_aware.prefix_length`.)

use super::{Ask, Candidate, Policy, Spec, clockwise};

pub const SPEC: Spec = Spec {
    name: "cache_aware",
    about: "the same instance for prompts that begin with the same words",
    ring: true,
    lengths: false,
    build: || Box::new(CacheAware),
};

struct CacheAware;

impl Policy for CacheAware {
    fn pick(&self, candidates: &[Candidate], ask: &Ask) -> usize {
        clockwise(candidates, ask.facts.prefix(), ask)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, candidates};
    use super::*;

    /// Seen on xPyD-proxy 1.8.0.
    #[test]
    fn prompts_are_where_the_old_proxy_had_them() {
        let prefill = Scene::ring(&["10.0.0.1:8100", "10.0.0.2:8100"], 160);
        let decode = Scene::ring(&["10.0.0.3:8200", "10.0.0.4:8200"], 160);
        let pick = |ring: &Scene, words| CacheAware.pick(&candidates(2), &ring.prefix(words));
        for (words, p, d) in [
            ("hello world", 1, 1),
            ("the quick brown fox", 1, 1),
            ("", 1, 0),
        ] {
            assert_eq!(
                (pick(&prefill, words), pick(&decode, words)),
                (p, d),
                "{words}"
            );
        }
    }
}
