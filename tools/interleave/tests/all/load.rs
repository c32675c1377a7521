//! What is charged is given back, whoever does it and whenever others look.

use std::time::Duration;

use loom::thread;

use crate::cluster::instances;
use crate::cluster::load::{Counts, LoadView};
use crate::every_order;

#[test]
fn load_never_stays_behind() {
    every_order(Some(2), || {
        let [instance] = instances();
        let other = instance.clone();
        let shard = thread::spawn(move || {
            let view = LoadView::new(Duration::ZERO);
            drop(view.charge(&other, 5));
        });
        let view = LoadView::new(Duration::ZERO);
        let held = view.charge(&instance, 7);
        let seen = view.read(&instance, 1);
        assert!((1..=2).contains(&seen.requests), "{seen:?}");
        assert!([7, 12].contains(&seen.tokens), "{seen:?}");
        drop(held);
        shard.join().unwrap();
        assert_eq!(instance.load.read(), Counts::default());
        assert_eq!(view.read(&instance, 2), Counts::default());
        assert_eq!(instance.silent_ms(u64::MAX), 0);
    });
}

/// A shard that only looks: never less than nothing, never more than there can be.
#[test]
fn load_is_never_seen_below_nothing() {
    every_order(Some(2), || {
        let [instance] = instances();
        let other = instance.clone();
        let shard = thread::spawn(move || {
            let view = LoadView::new(Duration::ZERO);
            let first = view.charge(&other, 5);
            let second = view.charge(&other, 100);
            drop(first);
            drop(second);
        });
        let seen = LoadView::new(Duration::ZERO).read(&instance, 1);
        assert!((0..=2).contains(&seen.requests), "{seen:?}");
        assert!((0..=105).contains(&seen.tokens), "{seen:?}");
        shard.join().unwrap();
        assert_eq!(instance.load.read(), Counts::default());
    });
}
