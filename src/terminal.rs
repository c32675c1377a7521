//! Whom a stand-in program talks to: standard input and output, and the clock that names its files.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::config::legacy::Terminal;

/// The process's own.
pub struct Standard;

impl Terminal for Standard {
    fn out(&mut self, text: &str) {
        // A reader that left is no reason to fail.
        let _ = io::stdout().write_all(text.as_bytes());
        let _ = io::stdout().flush();
    }

    fn err(&mut self, text: &str) {
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn ask(&mut self, prompt: &str, patience: Option<Duration>) -> Option<String> {
        self.out(prompt);
        let mut stdin = io::stdin().lock();
        let mut poll = libc::pollfd {
            fd: stdin.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let wait = patience.map_or(-1, |p| i32::try_from(p.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: one descriptor, which lives until the call returns.
        if unsafe { libc::poll(&mut poll, 1, wait) } != 1 {
            return None;
        }
        // Byte by byte: what a buffer had read ahead, the next poll would not see.
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            match stdin.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => break,
                Ok(1) => line.push(byte[0]),
                _ if line.is_empty() => return None,
                _ => break,
            }
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    fn stamp(&self) -> String {
        // SAFETY: both calls only write to what they are given, and all-zero is a valid `tm`.
        let now = unsafe {
            let seconds = libc::time(std::ptr::null_mut());
            let mut now: libc::tm = std::mem::zeroed();
            libc::localtime_r(&seconds, &mut now);
            now
        };
        format!(
            "{:04}{:02}{:02}_{:02}{:02}{:02}",
            now.tm_year + 1900,
            now.tm_mon + 1,
            now.tm_mday,
            now.tm_hour,
            now.tm_min,
            now.tm_sec
        )
    }
}

/// From now on, all output goes to this file, too.
pub fn tee(file: &Path) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Appended to a file that exists, so that a wrong place is an error here and not in the child.
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)?;
    let mut child = Command::new("tee")
        .arg("-ia") // an interrupt is for us; it ends when we do
        .arg(file)
        .stdin(Stdio::piped())
        .spawn()?;
    let Some(pipe) = child.stdin.take() else {
        return Ok(());
    };
    for output in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: plain descriptors, both open.
        if unsafe { libc::dup2(pipe.as_raw_fd(), output) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
