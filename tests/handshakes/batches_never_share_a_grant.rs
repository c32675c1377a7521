//! Several prompts through one grant give silently wrong text: they skip P. One prompt, however written,
//! does not.

use super::body;
use crate::support::{aggregated, rig};

#[test]
fn batches_skip_prefill_and_single_prompts_do_not() {
    let (rig, single) = (rig("nixl", 1, 1), aggregated(1));
    let cases = [
        (r#"["one two","three four"]"#, true),
        (r#"[[1,2,3],[4,5,6]]"#, true),
        (r#"["a","b, c","d\",\"e"]"#, true),
        (r#"["just one"]"#, false),
        (r#"["with \",\" inside, and ]["]"#, false),
        (r#"[[65,66,67]]"#, false),
        (r#"[65,66,67]"#, false),
        (r#""plain""#, false),
    ];
    let mut skipped = 0;
    for (prompt, batch) in cases {
        let sent = format!(r#"{{"model":"dummy","prompt":{prompt},"max_tokens":4}}"#);
        let before = rig.posts(0).len();
        let (one, two) = (
            single.post("/v1/completions", &sent),
            rig.post("/v1/completions", &sent),
        );
        assert_eq!(two.status, 200, "{prompt}: {}", two.text());
        assert_eq!(one.json()["choices"], two.json()["choices"], "{prompt}");
        assert_eq!(rig.posts(0).len() - before, usize::from(!batch), "{prompt}");
        let at_d = rig.posts(1).pop().unwrap();
        assert_eq!(body(&at_d) == sent, batch, "{prompt}: {}", body(&at_d));
        skipped += usize::from(batch);
    }
    assert_eq!(
        rig.metric(r#"pdrelay_prefill_skipped_total{reason="batch"}"#),
        skipped as f64
    );
    let ledger = rig.sim.ledger();
    assert_eq!(ledger.violations, Vec::<String>::new());
    assert_eq!(ledger.grants, ledger.fetched);
}
