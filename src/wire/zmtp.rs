//! ZMTP 3 (ZeroMQ's protocol) as the end that takes messages: greeting, READY, frames, PING.
//!
//! ```text
//!  PUSH                                  PULL (we)
//!    |--signature (10 bytes)-------------->|
//!    |<-greeting (64 bytes)----------------|   written at once: libzmq waits for it
//!    |--the other 54, READY(PUSH)--------->|
//!    |<-READY(PULL)------------------------|
//!    |==frames============================>|   PING is answered with PONG
//! ```
//!
//! Source: ZMTP 3.0 (RFC 23) and 3.1 (RFC 37), and libzmq as seen on the wire. NULL mechanism only. Each
//! frame is a message of its own here: the senders that we know send single frames, and their receivers
//! read a frame at a time.

/// What we say first: version 3.1, NULL mechanism, not a server.
pub const GREETING: [u8; 64] = {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[8] = 1;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[11] = 1;
    let mechanism = *b"NULL";
    let mut i = 0;
    while i < mechanism.len() {
        greeting[12 + i] = mechanism[i];
        i += 1;
    }
    greeting
};

/// A frame larger than this ends the connection: a notice has a hundred bytes.
pub const FRAME_MAX: usize = 64 << 10;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Why a peer is not listened to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bad(pub &'static str);

/// What the peer has said so far, up to a whole part of it.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    held: Vec<u8>,
    greeted: bool,
    ready: bool,
}

impl Peer {
    /// Takes the next bytes. Appends what the peer must be told to `out`; gives each frame of a message to
    /// `message`. After an error nothing more of this peer can be understood.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut message: impl FnMut(&[u8]),
    ) -> Result<(), Bad> {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut at = 0;
        if !self.greeted {
            let Some(used) = greeting(&held)? else {
                self.held = held;
                return Ok(());
            };
            self.greeted = true;
            put_ready(out);
            at = used;
        }
        while let Some(frame) = Frame::read(&held[at..])? {
            let body = &held[at + frame.head..at + frame.head + frame.length];
            at += frame.head + frame.length;
            if frame.flags & COMMAND == 0 {
                if !self.ready {
                    return Err(Bad("a message before READY"));
                }
                message(body);
                continue;
            }
            self.command(body, out)?;
        }
        self.held.extend_from_slice(&held[at..]);
        Ok(())
    }

    /// Greeting and READY are done.
    pub fn ready(&self) -> bool {
        self.ready
    }

    fn command(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Bad> {
        let (name, rest) = short(body).ok_or(Bad("a command without a name"))?;
        match name {
            b"READY" if self.ready => Err(Bad("a second READY")),
            b"READY" => {
                match socket_type(rest)? {
                    Some(b"PUSH") => {}
                    Some(_) => return Err(Bad("a socket that is no PUSH")),
                    None => return Err(Bad("READY without a Socket-Type")),
                }
                self.ready = true;
                Ok(())
            }
            b"ERROR" => Err(Bad("it said ERROR")),
            // Behind two bytes of time to live stands what PONG gives back: at most 16 bytes.
            b"PING" if rest.len() < 2 => Err(Bad("a PING without its time")),
            b"PING" => {
                put_command(out, b"PONG", &rest[2..rest.len().min(18)]);
                Ok(())
            }
            // PONG, and whatever newer versions may add.
            _ => Ok(()),
        }
    }
}

/// The length of a whole greeting; `None` while it is not all there.
fn greeting(held: &[u8]) -> Result<Option<usize>, Bad> {
    let wrong = |at: usize, good: bool| held.len() > at && !good;
    let byte = |at: usize| held.get(at).copied().unwrap_or_default();
    if wrong(0, byte(0) == 0xff) || wrong(9, byte(9) == 0x7f) {
        return Err(Bad("it speaks no ZMTP"));
    }
    if wrong(10, byte(10) >= 3) {
        return Err(Bad("it speaks a ZMTP before 3.0"));
    }
    if held.len() < GREETING.len() {
        return Ok(None);
    }
    if held[12..32] != GREETING[12..32] {
        return Err(Bad("it wants another security mechanism than NULL"));
    }
    Ok(Some(GREETING.len()))
}

struct Frame {
    flags: u8,
    head: usize,
    length: usize,
}

impl Frame {
    /// The frame at the front of `bytes`; `None` while it is not all there.
    fn read(bytes: &[u8]) -> Result<Option<Frame>, Bad> {
        let Some(flags) = bytes.first().copied() else {
            return Ok(None);
        };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & (MORE | COMMAND) == MORE | COMMAND {
            return Err(Bad("flags of no frame"));
        }
        let (head, length) = match (flags & LONG != 0, bytes.get(1), bytes.get(1..9)) {
            (false, Some(length), _) => (2, u64::from(*length)),
            (true, _, Some(length)) => {
                (9, u64::from_be_bytes(length.try_into().unwrap_or_default()))
            }
            _ => return Ok(None),
        };
        if length > FRAME_MAX as u64 {
            return Err(Bad("a frame larger than any notice"));
        }
        let length = length as usize;
        let whole = bytes.len() >= head + length;
        Ok(whole.then_some(Frame {
            flags,
            head,
            length,
        }))
    }
}

/// What a length of one byte stands in front of, and the rest.
fn short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// The socket type among the properties of READY. Names are compared without case.
fn socket_type(mut properties: &[u8]) -> Result<Option<&[u8]>, Bad> {
    const BAD: Bad = Bad("READY that cannot be read");
    let mut found = None;
    while !properties.is_empty() {
        let (name, rest) = short(properties).ok_or(BAD)?;
        let (length, rest) = rest.split_at_checked(4).ok_or(BAD)?;
        let length = u32::from_be_bytes(length.try_into().map_err(|_| BAD)?);
        let (value, rest) = rest.split_at_checked(length as usize).ok_or(BAD)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = Some(value);
        }
        properties = rest;
    }
    Ok(found)
}

fn put_ready(out: &mut Vec<u8>) {
    put_command(out, b"READY", b"\x0bSocket-Type\0\0\0\x04PULL");
}

/// A command of less than 256 bytes.
fn put_command(out: &mut Vec<u8>, name: &[u8], rest: &[u8]) {
    out.push(COMMAND);
    out.push((1 + name.len() + rest.len()) as u8);
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    out.extend_from_slice(rest);
}
