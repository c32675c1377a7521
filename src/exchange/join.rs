//! Work that runs at the same time: all of it is awaited to its end, none is dropped on the way.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// The results, in the order of the futures.
pub async fn all<'a, T: 'a>(work: Vec<Pin<Box<dyn Future<Output = T> + 'a>>>) -> Vec<T> {
    let mut work: Vec<_> = work.into_iter().map(Some).collect();
    let mut results: Vec<Option<T>> = work.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (slot, result) in work.iter_mut().zip(&mut results) {
            if let Some(one) = slot
                && let Poll::Ready(value) = one.as_mut().poll(cx)
            {
                *result = Some(value);
                *slot = None;
            }
        }
        match work.iter().any(Option::is_some) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    })
    .await;
    results.into_iter().flatten().collect()
}
