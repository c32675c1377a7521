//! SIGTERM and SIGINT, taken synchronously by the main thread: no handler, nothing async-signal-unsafe.

/// The signals, blocked in this thread and all it starts.
pub struct Signals(libc::sigset_t);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub fn number(self) -> i32 {
        self.0
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            libc::SIGTERM => "SIGTERM",
            libc::SIGINT => "SIGINT",
            _ => "signal",
        }
    }
}

/// Call before starting threads.
pub fn block() -> Signals {
    // SAFETY: a set built by the library's own calls, and a mask of this thread.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        Signals(set)
    }
}

impl Signals {
    pub fn wait(&self) -> Signal {
        let mut number = 0;
        // SAFETY: the set is initialised; the number is ours.
        while unsafe { libc::sigwait(&self.0, &mut number) } != 0 {}
        Signal(number)
    }
}
