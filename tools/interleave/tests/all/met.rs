//! Pairs that have met: what one shard has seen, all may use; a restart makes it void.

use std::sync::Arc;

use loom::thread;

use crate::cluster::instances;
use crate::every_order;
use crate::exchange::Met;

#[test]
fn pairs_are_known_to_all_shards() {
    every_order(None, || {
        let [prefill, decode] = instances();
        let (p, d) = (prefill.clone(), decode.clone());
        let shard = thread::spawn(move || {
            let met = Met::default();
            assert!(!met.warm(&p, &d), "nobody has seen them meet");
            met.note(&p, &d, (p.starts(), d.starts()));
            assert!(met.warm(&p, &d));
        });
        let met = Met::default();
        let early = met.warm(&prefill, &decode);
        shard.join().unwrap();
        assert!(met.warm(&prefill, &decode), "forgotten");
        assert!(!early || met.warm(&prefill, &decode));
    });
}

#[test]
fn a_restart_makes_a_pair_strangers() {
    every_order(None, || {
        let [prefill, decode] = instances();
        let one = Arc::new(prefill.clone());
        let two = decode.clone();
        let shard = thread::spawn(move || {
            let starts = (one.starts(), two.starts());
            Met::default().note(&one, &two, starts);
        });
        let fallen = decode.clone();
        let control = thread::spawn(move || fallen.set_health(crate::cluster::Health::Unhealthy));
        let met = Met::default();
        _ = met.warm(&prefill, &decode);
        shard.join().unwrap();
        control.join().unwrap();
        // Noted before the fall or after; before it, it counts no longer.
        let noted = prefill.met(decode.index).expect("noted");
        assert_eq!(met.warm(&prefill, &decode), noted == (0, 1));
        assert_eq!(Met::default().warm(&prefill, &decode), noted == (0, 1));
    });
}

/// The stream ends long after the hand-over: what met then is not what runs now.
#[test]
fn a_restart_during_a_stream_makes_a_pair_strangers() {
    every_order(None, || {
        let [prefill, decode] = instances();
        let starts = (prefill.starts(), decode.starts());
        prefill.set_health(crate::cluster::Health::Unhealthy);
        let met = Met::default();
        met.note(&prefill, &decode, starts);
        assert!(!met.warm(&prefill, &decode));
    });
}
