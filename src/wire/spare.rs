//! Lists whose memory is used again: what a request indexes (the fields of a head, the members of a body,
//! the edits of a leg) is over soon, and the next request needs the same.
//!
//! A [`List`] is a `Vec` in every respect but two: [`List::lent`] takes the memory of one that is over, and
//! a list that is dropped leaves its memory to its thread.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Lists that a thread keeps, of each kind. Requests that wait for an engine hold theirs, so it is not one.
const KEPT_MAX: usize = 64;
/// One with room for more than this is freed: few requests have so much.
const ROOM_MAX: usize = 64;
/// Room of a new list: enough for most.
const ROOM: usize = 16;

/// The free lists of one kind and thread.
pub type Shelf<T> = RefCell<Vec<Vec<T>>>;

/// What there are such lists of.
pub trait Spare: Sized + 'static {
    fn shelf() -> &'static LocalKey<Shelf<Self>>;
}

/// Says that there are [`List`]s of this type.
macro_rules! spare {
    ($kind:ty) => {
        impl $crate::wire::spare::Spare for $kind {
            fn shelf() -> &'static std::thread::LocalKey<$crate::wire::spare::Shelf<Self>> {
                thread_local! {
                    static SHELF: $crate::wire::spare::Shelf<$kind> =
                        const { std::cell::RefCell::new(Vec::new()) };
                }
                &SHELF
            }
        }
    };
}
pub(crate) use spare;

pub struct List<T: Spare>(Vec<T>);

impl<T: Spare> List<T> {
    /// An empty list with room.
    pub fn lent() -> List<T> {
        let kept = T::shelf().try_with(|shelf| shelf.borrow_mut().pop());
        let kept = kept.ok().flatten();
        List(kept.unwrap_or_else(|| Vec::with_capacity(ROOM)))
    }
}

impl<T: Spare> Drop for List<T> {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.0);
        if !(ROOM..=ROOM_MAX).contains(&list.capacity()) {
            return;
        }
        list.clear();
        // (A thread that ends has no shelf any more.)
        let _ = T::shelf().try_with(|shelf| {
            let mut shelf = shelf.borrow_mut();
            if shelf.len() < KEPT_MAX {
                shelf.push(list);
            }
        });
    }
}

impl<T: Spare> Default for List<T> {
    /// An empty list without memory.
    fn default() -> List<T> {
        List(Vec::new())
    }
}

impl<T: Spare> From<Vec<T>> for List<T> {
    fn from(list: Vec<T>) -> List<T> {
        List(list)
    }
}

impl<T: Spare, const N: usize> From<[T; N]> for List<T> {
    fn from(items: [T; N]) -> List<T> {
        let mut list = List::lent();
        list.extend(items);
        list
    }
}

impl<T: Spare> Deref for List<T> {
    type Target = Vec<T>;
    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: Spare> DerefMut for List<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<T: Spare + Clone> Clone for List<T> {
    fn clone(&self) -> List<T> {
        let mut list = List::lent();
        list.extend_from_slice(self);
        list
    }
}

impl<T: Spare + PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &List<T>) -> bool {
        self.0 == other.0
    }
}

impl<T: Spare + Eq> Eq for List<T> {}

impl<T: Spare + fmt::Debug> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Thing(Box<u32>);
    spare!(Thing);

    fn kept() -> usize {
        Thing::shelf().with(|shelf| shelf.borrow().len())
    }

    #[test]
    fn memory_is_used_again_and_never_shows_what_was_in_it() {
        let mut first = List::lent();
        first.push(Thing(Box::new(7)));
        let at = first.as_ptr();
        drop(first);
        assert_eq!(kept(), 1);
        let second: List<Thing> = List::lent();
        assert!(second.is_empty() && second.as_ptr() == at);
        assert_eq!(kept(), 0);
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_may() {
        let many: Vec<List<Thing>> = (0..2 * KEPT_MAX).map(|_| List::lent()).collect();
        drop(many);
        assert_eq!(kept(), KEPT_MAX);
        let mut large = List::lent();
        large.extend((0..1000).map(|n| Thing(Box::new(n))));
        drop(large);
        drop(List::<Thing>::default());
        assert_eq!(kept(), KEPT_MAX - 1);
    }
}
