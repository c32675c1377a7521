//! A ZeroMQ PUSH socket of one prefill worker, as libzmq behaves: it connects by itself, again and again, says
//! its signature and waits for the other's greeting, and keeps messages while nobody is there.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const AGAIN: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// One message, and when it is due.
pub(crate) struct Letter {
    pub due: Instant,
    pub body: Vec<u8>,
    /// Done just before it is sent.
    pub before: Option<Box<dyn FnOnce() + Send>>,
}

/// The sending end. Dropped, the thread ends once it has said what it can.
pub(crate) type Outbox = mpsc::Sender<Letter>;

/// `wrong` is told what the other end does against the protocol.
pub(crate) fn start(to: SocketAddr, wrong: impl Fn(String) + Send + 'static) -> io::Result<Outbox> {
    let (outbox, letters) = mpsc::channel::<Letter>();
    let run = move || {
        let mut open: Option<TcpStream> = None;
        loop {
            // While nothing is to be said it connects all the same, as a real socket does.
            let letter = match letters.recv_timeout(AGAIN) {
                Ok(letter) => letter,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    open = open.filter(alive);
                    if open.is_none() {
                        open = connect(to, &wrong);
                    }
                    continue;
                }
            };
            std::thread::sleep(letter.due.saturating_duration_since(Instant::now()));
            if let Some(before) = letter.before {
                before();
            }
            let frame = frame(&letter.body);
            let until = Instant::now() + PATIENCE;
            loop {
                open = open.filter(alive);
                if open.is_none() {
                    open = connect(to, &wrong);
                }
                let sent = open.as_mut().is_some_and(|s| s.write_all(&frame).is_ok());
                if sent || Instant::now() > until {
                    break;
                }
                open = None;
                std::thread::sleep(AGAIN);
            }
        }
    };
    std::thread::Builder::new()
        .name("pdsim-push".into())
        .spawn(run)?;
    Ok(outbox)
}

/// Has the other end not closed?
fn alive(stream: &TcpStream) -> bool {
    let mut one = [0];
    let _ = stream.set_nonblocking(true);
    let seen = stream.peek(&mut one);
    let _ = stream.set_nonblocking(false);
    match seen {
        Ok(n) => n > 0,
        Err(e) => e.kind() == io::ErrorKind::WouldBlock,
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = match u8::try_from(body.len()) {
        Ok(length) => vec![0, length],
        Err(_) => {
            let mut long = vec![2];
            long.extend_from_slice(&(body.len() as u64).to_be_bytes());
            long
        }
    };
    out.extend_from_slice(body);
    out
}

fn connect(to: SocketAddr, wrong: &impl Fn(String)) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    match greet(&stream) {
        Ok(()) => Some(stream),
        Err(error) => {
            // Gone in the middle is no offence: the other end may just have been stopped.
            if error.kind() == io::ErrorKind::InvalidData {
                wrong(error.to_string());
            }
            None
        }
    }
}

fn greet(mut stream: &TcpStream) -> io::Result<()> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("ZMTP: {what}"));
    // The signature alone; the rest only once the other end has said its greeting.
    stream.write_all(&[0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f])?;
    let mut greeting = [0u8; 64];
    stream.read_exact(&mut greeting)?;
    if greeting[0] != 0xff || greeting[9] != 0x7f || greeting[10] != 3 {
        return Err(bad("no greeting of version 3"));
    }
    if &greeting[12..16] != b"NULL" || greeting[16..].iter().any(|b| *b != 0) {
        return Err(bad("a greeting with other than NULL and zeroes"));
    }
    let mut rest = [0u8; 54];
    rest[..6].copy_from_slice(b"\x03\x01NULL");
    stream.write_all(&rest)?;
    stream.write_all(b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH")?;
    let mut head = [0u8; 2];
    stream.read_exact(&mut head)?;
    let mut ready = vec![0; usize::from(head[1])];
    stream.read_exact(&mut ready)?;
    match head[0] == 4 && ready == *b"\x05READY\x0bSocket-Type\0\0\0\x04PULL" {
        true => Ok(()),
        false => Err(bad("no READY of a PULL")),
    }
}
