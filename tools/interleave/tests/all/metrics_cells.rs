//! Metric cells have one writer at a time and any readers, and no count is lost between writers.

use loom::thread;

use crate::cells::Cells;
use crate::cells::table::Counter;
use crate::every_order;

#[test]
fn counters_never_go_back_or_lose_a_count() {
    every_order(None, || {
        let cells = Cells::new();
        let writer = cells.clone();
        let shard = thread::spawn(move || {
            let metrics = writer.take().expect("nobody else writes");
            (0..3).for_each(|_| metrics.inc(Counter));
        });
        let mut before = 0;
        for _ in 0..2 {
            let seen = cells.count();
            assert!((before..=3).contains(&seen), "{seen} after {before}");
            before = seen;
        }
        shard.join().unwrap();
        assert_eq!(cells.count(), 3);
    });
}

/// A shard that starts again goes on from its predecessor's counts, with no more than the flag between.
#[test]
fn the_next_writer_goes_on_from_the_last() {
    every_order(None, || {
        let cells = Cells::new();
        let first = cells.take().expect("nobody else writes");
        let other = cells.clone();
        let second = thread::spawn(move || {
            let metrics = other.take()?;
            metrics.inc(Counter);
            Some(())
        });
        first.inc(Counter);
        drop(first);
        let took = second.join().unwrap().is_some();
        assert_eq!(cells.count(), 1 + u64::from(took));
    });
}
