//! A snapshot is whole, and no reader goes back in time.

use std::sync::Arc;

use loom::thread;

use crate::every_order;
use crate::shared::{Published, Reader};

#[test]
fn readers_never_see_torn_or_older_values() {
    every_order(None, || {
        let published = Arc::new(Published::new((0, 0)));
        let source = published.clone();
        let writer = thread::spawn(move || {
            source.publish((1, 1));
            source.publish((2, 2));
        });
        let reader = Reader::new(published.clone());
        let mut before = 0;
        for _ in 0..3 {
            let value = reader.get();
            assert_eq!(value.0, value.1);
            assert!(value.0 >= before, "{} after {before}", value.0);
            before = value.0;
        }
        writer.join().unwrap();
        assert_eq!(**reader.get(), (2, 2), "the last value is missed");
    });
}

/// Who sees the new number finds at least that value, also through a second reader.
#[test]
fn a_generation_never_comes_before_its_value() {
    every_order(None, || {
        let published = Arc::new(Published::new(1u64));
        let source = published.clone();
        let writer = thread::spawn(move || source.publish(2));
        let source = published.clone();
        let other = thread::spawn(move || {
            let generation = source.generation();
            assert!(*source.get() >= generation);
        });
        let generation = published.generation();
        assert!(*published.get() >= generation);
        writer.join().unwrap();
        other.join().unwrap();
    });
}
