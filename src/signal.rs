//! SIGTERM, SIGINT and SIGHUP, taken synchronously by the main thread: no handler, nothing async-signal-unsafe.

/// The signals, blocked in this thread and all it starts.
pub struct Signals(libc::sigset_t);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub fn number(self) -> i32 {
        self.0
    }

    /// Read the configuration again, and go on.
    pub fn is_reload(self) -> bool {
        self.0 == libc::SIGHUP
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            libc::SIGTERM => "SIGTERM",
            libc::SIGINT => "SIGINT",
            libc::SIGHUP => "SIGHUP",
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
        libc::sigaddset(&mut set, libc::SIGHUP);
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

impl Signals {
    /// From here on SIGTERM and SIGINT do what they do to any program: end it at once.
    pub fn let_through(&self) {
        // SAFETY: as in `block`.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
            // Ignored is what a shell makes of SIGINT for what it starts in the background.
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        }
    }
}

/// Sends this process what `kill -HUP` would.
pub fn raise_reload() {
    // SAFETY: a plain syscall on our own pid.
    unsafe { libc::kill(libc::getpid(), libc::SIGHUP) };
}

/// Sends this process what `kill` would.
pub fn raise_end() {
    // SAFETY: a plain syscall on our own pid.
    unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
}
