//! Configuration files: any text gives a configuration that can be used, or problems that name a place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pdrelay::config::{self, Known, check};

fuzz_target!(|text: &str| {
    let known = Known {
        handshakes: &["sequential", "nixl", "aggregated"],
        policies: &["round_robin", "least_load"],
    };
    let loaded = config::from_str(text, "x.yaml", &known);
    assert_eq!(
        loaded,
        config::from_str(text, "x.yaml", &known),
        "not twice the same"
    );
    match loaded {
        Err(problems) => {
            assert!(!problems.0.is_empty(), "refused without a reason");
            let breaks = text
                .matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'])
                .count();
            for problem in &problems.0 {
                assert_eq!(problem.file, "x.yaml", "{problem}");
                assert!((1..=breaks + 2).contains(&problem.line), "{problem}");
                assert!(!problem.message.is_empty());
                // One line on the terminal, whatever it quotes.
                let shown = problem.to_string();
                assert!(!shown.contains(char::is_control), "{shown:?}");
                assert!(shown.starts_with("x.yaml:"), "{shown}");
            }
            let shown = problems.to_string();
            assert_eq!(shown.lines().count(), problems.0.len());
        }
        Ok(config) => {
            assert!(!config.instances.is_empty());
            assert!(known.handshakes.contains(&config.handshake.as_str()));
            assert!(config.port > 0);
            for instance in &config.instances {
                assert!(instance.weight > 0.0 && instance.weight.is_finite());
                // An address is written as it can be read.
                let shown = instance.address.to_string();
                assert_eq!(
                    config::Address::parse(&shown).as_ref(),
                    Ok(&instance.address)
                );
            }
            for wait in [
                config.timeouts.head,
                config.timeouts.body,
                config.timeouts.connect,
                config.timeouts.prefill,
                config.timeouts.decode_head,
                config.timeouts.between_chunks,
                config.timeouts.client_write,
                config.timeouts.request,
            ] {
                assert!(!wait.is_zero(), "a wait without an end");
            }
            let shown = check::print(&config);
            for secret in [&config.openai_api_key, &config.admin_api_key]
                .into_iter()
                .flatten()
            {
                // A short one may be part of a word that is shown anyway.
                let unusual = secret.0.len() >= 8 && text.matches(&*secret.0).count() == 1;
                assert!(!unusual || !shown.contains(&*secret.0), "a secret is shown");
            }
        }
    }
});
