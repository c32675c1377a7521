//! Messages to a thread that waits in its ring: a locked list and one byte through a socket pair.
//!
//! Used per scrape, per drain, and per request only where one waits for another process (notices).

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

/// The sending side; any thread.
pub struct Mailbox<T> {
    letters: Mutex<Vec<T>>,
    bell: Mutex<UnixStream>,
}

impl<T> Mailbox<T> {
    /// The mailbox, and the end of the pair that its owner reads to be woken.
    pub fn new() -> std::io::Result<(Mailbox<T>, UnixStream)> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        Ok((
            Mailbox {
                letters: Mutex::new(Vec::new()),
                bell: Mutex::new(bell),
            },
            ear,
        ))
    }

    pub fn post(&self, letter: T) {
        self.letters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(letter);
        // If the pair is full the owner has bytes to wake up to already.
        let _ = self
            .bell
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(&[1]);
    }

    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.letters.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
