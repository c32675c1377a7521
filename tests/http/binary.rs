//! The proxy as a program of its own, in a kernel that may be older or stricter than this one.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the kernel is made to refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    Nothing,
    /// Any ring, by EPERM: what container runtimes do.
    Rings,
    /// A ring with DEFER_TASKRUN, by EINVAL: what kernels before 6.1 do.
    DeferredRings,
    /// More open files than this.
    Descriptors(u64),
}

/// Dropped: killed.
pub struct Process {
    pub address: SocketAddr,
    child: Child,
    files: [PathBuf; 2],
}

impl Process {
    /// Waits until it listens. `None`: what is to be denied cannot be denied here.
    pub fn start(config: &str, denied: Denied, environment: &[(&str, &str)]) -> Option<Process> {
        loop {
            let mut process = Process::spawn(config, denied, environment)?;
            if process.listens() {
                return Some(process);
            }
            // Somebody took the port between our look at it and theirs.
            assert!(process.said("cannot listen"), "{}", process.output());
        }
    }

    fn spawn(config: &str, denied: Denied, environment: &[(&str, &str)]) -> Option<Process> {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let address = port.expect("a free port");
        let file = |kind: &str| {
            let name = format!(
                "pdrelay-test-{}-{}.{kind}",
                std::process::id(),
                address.port()
            );
            std::env::temp_dir().join(name)
        };
        let files = [file("yaml"), file("log")];
        std::fs::write(&files[0], format!("{config}port: {}\n", address.port())).expect("a config");
        let log = File::create(&files[1]).expect("a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pdrelay"));
        command
            .args(["serve", "--config"])
            .arg(&files[0])
            .env_remove("MONOIO_FORCE_LEGACY_DRIVER")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let to = theirs.as_raw_fd();
        // SAFETY: between fork and exec only plain system calls are made, on memory of this frame.
        unsafe {
            command.pre_exec(move || {
                deny(denied, to)?;
                // The sockets of tests that run beside this one.
                libc::syscall(
                    libc::SYS_close_range,
                    3,
                    u32::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                );
                Ok(())
            })
        };
        let child = command.spawn();
        drop(theirs);
        let child = match child {
            Ok(child) => child,
            Err(e) if denied == Denied::DeferredRings => {
                println!("no user notification: {e}");
                return None;
            }
            Err(e) => panic!("it does not start: {e}"),
        };
        if denied == Denied::DeferredRings {
            let listener = receive_fd(&ours).expect("the listener of the filter");
            std::thread::spawn(move || judge(&listener));
        }
        Some(Process {
            address,
            child,
            files,
        })
    }

    /// Waits until it does; false if it ends instead.
    fn listens(&mut self) -> bool {
        let began = Instant::now();
        while !self.said("listens on http://") {
            if self.child.try_wait().expect("a state").is_some() {
                return false;
            }
            let late = began.elapsed() > Duration::from_secs(10);
            assert!(!late, "{}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
        // The log's writer is a thread of its own.
        std::thread::sleep(Duration::from_millis(50));
        true
    }

    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.files[1]).unwrap_or_default()
    }

    pub fn said(&self, what: &str) -> bool {
        self.output().contains(what)
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        let list = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        list.expect("a process").count()
    }

    /// What its threads have spent on the CPU, all together.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("a process");
        // What follows the name, which may have spaces in it: utime and stime are the 14th and 15th of all.
        let (_, fields) = stat.rsplit_once(") ").expect("its name");
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|n| n.parse::<u64>().expect("ticks")).sum();
        // SAFETY: it reads a constant.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        Duration::from_millis(ticks * 1000 / per_second)
    }

    /// SIGTERM; true if it drained and left as a program that a signal ended.
    pub fn end(mut self) -> bool {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code() == Some(128 + libc::SIGTERM);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;
/// The same number on x86_64 and aarch64.
const IO_URING_SETUP: u32 = 425;
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Puts a filter on this process: `io_uring_setup` gets EPERM, or whoever holds the listener decides.
fn deny(denied: Denied, to: RawFd) -> io::Result<()> {
    if denied == Denied::Nothing {
        return Ok(());
    }
    if let Denied::Descriptors(n) = denied {
        let limit = libc::rlimit {
            rlim_cur: n,
            rlim_max: n,
        };
        // SAFETY: a plain system call on a structure of this frame.
        return match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
    }
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let verdict = match denied {
        Denied::DeferredRings => RET_USER_NOTIF,
        _ => RET_ERRNO | libc::EPERM as u32,
    };
    // struct seccomp_data: the number at 0, the architecture at 4.
    let mut program = [
        op(load, 4, 0, 0),
        op(equal, ARCH, 0, 3),
        op(load, 0, 0, 0),
        op(equal, IO_URING_SETUP, 0, 1),
        op(libc::BPF_RET | libc::BPF_K, verdict, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    const SET_MODE_FILTER: libc::c_int = 1;
    const NEW_LISTENER: libc::c_int = 8;
    let flags = if denied == Denied::DeferredRings {
        NEW_LISTENER
    } else {
        0
    };
    // SAFETY: plain system calls; the program lives through them.
    let listener = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match listener {
        _ if listener < 0 => Err(io::Error::last_os_error()),
        _ if flags == 0 => Ok(()),
        fd => send_fd(to, fd as RawFd),
    }
}

/// Room for one descriptor as a control message, aligned as the kernel wants it.
type Control = [u64; 4];

fn message(byte: &mut u8, vec: &mut libc::iovec, control: &mut Control) -> libc::msghdr {
    vec.iov_base = std::ptr::from_mut(byte).cast();
    vec.iov_len = 1;
    // SAFETY: an all-zero msghdr is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vec;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: no memory is touched.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(4) } as _;
    message
}

fn send_fd(to: RawFd, fd: RawFd) -> io::Result<()> {
    let (mut byte, mut control) = (0, Control::default());
    // SAFETY: an all-zero iovec is an empty one; the control message fits `control`.
    unsafe {
        let mut vec = std::mem::zeroed();
        let message = message(&mut byte, &mut vec, &mut control);
        let first = libc::CMSG_FIRSTHDR(&message);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
        match libc::sendmsg(to, &message, 0) {
            1 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn receive_fd(from: &UnixStream) -> Option<OwnedFd> {
    let (mut byte, mut control) = (0, Control::default());
    // SAFETY: as above; a descriptor that comes is new and ours.
    unsafe {
        let mut vec = std::mem::zeroed();
        let mut message = message(&mut byte, &mut vec, &mut control);
        if libc::recvmsg(from.as_raw_fd(), &mut message, 0) != 1 {
            return None;
        }
        let first = libc::CMSG_FIRSTHDR(&message);
        if first.is_null() {
            return None;
        }
        let fd = libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned();
        Some(OwnedFd::from_raw_fd(fd))
    }
}

/// `struct seccomp_notif` (the head, then `struct seccomp_data`).
#[repr(C)]
#[derive(Default)]
struct Notice {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    arch: u32,
    instruction: u64,
    args: [u64; 6],
}

/// `struct seccomp_notif_resp`
#[repr(C)]
struct Verdict {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// Refuses the rings that ask for DEFER_TASKRUN, until the process ends.
fn judge(listener: &OwnedFd) {
    const RECV: u64 = 0xc050_2100;
    const SEND: u64 = 0xc018_2101;
    const DEFER_TASKRUN: u32 = 1 << 13;
    loop {
        let mut notice = Notice::default();
        // SAFETY: the structure is the one that this request fills.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECV as _, &raw mut notice) } != 0 {
            return;
        }
        // struct io_uring_params: two sizes, then the flags.
        let mut flags = [0; 4];
        let memory = File::open(format!("/proc/{}/mem", notice.pid));
        let read = memory.and_then(|m| m.read_exact_at(&mut flags, notice.args[1] + 8));
        let deferred = read.is_err() || u32::from_ne_bytes(flags) & DEFER_TASKRUN != 0;
        let verdict = Verdict {
            id: notice.id,
            value: 0,
            error: if deferred { -libc::EINVAL } else { 0 },
            flags: u32::from(!deferred),
        };
        // SAFETY: the structure is the one that this request reads.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw const verdict) };
    }
}
