//! A strict, incremental HTTP/1.1 response parser.
//!
//! It is fed whatever a read returned and hands the head and the body bytes to a [`Sink`] as they come, without
//! copying, except for a head that was split over reads. Strict because this tool also judges the server: a
//! framing error that a lenient client forgives is an error of the server under test.

use crate::chunked::Chunked;

const HEAD_LIMIT: usize = 64 * 1024;
const HEADERS_LIMIT: usize = 64;

/// What the server did wrong on the wire; the text goes to the report as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault(pub &'static str);

/// Receives the parts of a response.
pub trait Sink {
    fn head(&mut self, status: u16, headers: &[httparse::Header<'_>]);
    fn body(&mut self, bytes: &[u8]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The response is not complete.
    More,
    /// The response is complete; `rest` bytes of the input lie behind it.
    Done { rest: usize },
}

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

#[derive(Debug)]
pub struct Parser {
    state: State,
    /// The start of a head that did not arrive in one read.
    partial: Vec<u8>,
    keep_alive: bool,
    started: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            state: State::Head,
            partial: Vec::new(),
            keep_alive: false,
            started: false,
        }
    }
}

impl Parser {
    /// Ready for the next response; keeps its buffer.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.partial.clear();
        self.keep_alive = false;
        self.started = false;
    }

    /// Has any byte of the response arrived?
    pub fn started(&self) -> bool {
        self.started
    }

    /// May the connection carry another request? Meaningful after `Progress::Done`.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    pub fn feed<S: Sink>(&mut self, input: &[u8], sink: &mut S) -> Result<Progress, Fault> {
        self.started |= !input.is_empty();
        if !matches!(self.state, State::Head) {
            return self.body(input, sink);
        }
        if self.partial.is_empty() {
            return match self.heads(input, sink)? {
                Some(used) => self.body(&input[used..], sink),
                None => Ok(Progress::More),
            };
        }
        let mut bytes = std::mem::take(&mut self.partial);
        bytes.extend_from_slice(input);
        let result = match self.heads(&bytes, sink) {
            Ok(Some(used)) => self.body(&bytes[used..], sink),
            Ok(None) => return Ok(Progress::More),
            Err(fault) => Err(fault),
        };
        bytes.clear();
        self.partial = bytes;
        result
    }

    /// The server closed its side. `Ok` if that is a legal end of this response.
    pub fn eof(&mut self) -> Result<(), Fault> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                self.keep_alive = false;
                Ok(())
            }
            State::Head => Err(Fault("closed inside the response head")),
            State::Length(_) => Err(Fault("closed before Content-Length bytes")),
            State::Chunked(_) => Err(Fault("closed before the final chunk")),
        }
    }

    /// Reads heads until a final one; interim (1xx) answers are skipped. `None`: more bytes are needed, and what
    /// there is has been kept.
    fn heads<S: Sink>(&mut self, input: &[u8], sink: &mut S) -> Result<Option<usize>, Fault> {
        let mut at = 0;
        loop {
            match self.one_head(&input[at..], sink)? {
                None => {
                    let left = &input[at..];
                    if left.len() > HEAD_LIMIT {
                        return Err(Fault("response head over 64 KiB"));
                    }
                    self.partial.clear();
                    self.partial.extend_from_slice(left);
                    return Ok(None);
                }
                Some((used, true)) => return Ok(Some(at + used)),
                Some((used, false)) => at += used,
            }
        }
    }

    /// One head: how long it was, and whether it was a final one.
    fn one_head<S: Sink>(
        &mut self,
        input: &[u8],
        sink: &mut S,
    ) -> Result<Option<(usize, bool)>, Fault> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
        let mut response = httparse::Response::new(&mut headers);
        let used = match response.parse(input) {
            Ok(httparse::Status::Complete(used)) => used,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(Fault("more than 64 headers")),
            Err(_) => return Err(Fault("malformed response head")),
        };
        if bare_line_feed(&input[..used]) {
            return Err(Fault("line feed without carriage return in the head"));
        }
        let status = response.code.unwrap_or(0);
        if status == 101 {
            return Err(Fault("unasked-for protocol switch"));
        }
        if (100..200).contains(&status) {
            return Ok(Some((used, false)));
        }
        let framing = Framing::of(response.headers)?;
        self.keep_alive = match response.version {
            Some(1) => !framing.close,
            _ => framing.keep_alive,
        };
        self.state = match framing {
            _ if status == 204 || status == 304 => State::Length(0),
            Framing { chunked: true, .. } => State::Chunked(Chunked::default()),
            Framing {
                length: Some(length),
                ..
            } => State::Length(length),
            _ => State::UntilClose,
        };
        sink.head(status, response.headers);
        Ok(Some((used, true)))
    }

    fn body<S: Sink>(&mut self, input: &[u8], sink: &mut S) -> Result<Progress, Fault> {
        match &mut self.state {
            State::Head => unreachable!("body() is called after a final head"),
            State::Done => Ok(Progress::Done { rest: input.len() }),
            State::UntilClose => {
                if !input.is_empty() {
                    sink.body(input);
                }
                Ok(Progress::More)
            }
            State::Length(left) => {
                let take = (*left).min(input.len() as u64) as usize;
                if take > 0 {
                    sink.body(&input[..take]);
                }
                *left -= take as u64;
                if *left > 0 {
                    return Ok(Progress::More);
                }
                self.state = State::Done;
                Ok(Progress::Done {
                    rest: input.len() - take,
                })
            }
            State::Chunked(chunked) => match chunked.feed(input, |bytes| sink.body(bytes))? {
                None => Ok(Progress::More),
                Some(used) => {
                    self.state = State::Done;
                    Ok(Progress::Done {
                        rest: input.len() - used,
                    })
                }
            },
        }
    }
}

fn bare_line_feed(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

#[derive(Default)]
struct Framing {
    chunked: bool,
    length: Option<u64>,
    close: bool,
    keep_alive: bool,
}

impl Framing {
    fn of(headers: &[httparse::Header<'_>]) -> Result<Self, Fault> {
        let mut framing = Self::default();
        for header in headers {
            // The length of the name decides for nearly every header: cheaper than three comparisons.
            match header.name.len() {
                14 if header.name.eq_ignore_ascii_case("content-length") => {
                    if framing.length.is_some() {
                        return Err(Fault("two Content-Length headers"));
                    }
                    framing.length = Some(digits(header.value)?);
                }
                17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                    if framing.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Fault("Transfer-Encoding other than chunked"));
                    }
                    framing.chunked = true;
                }
                10 if header.name.eq_ignore_ascii_case("connection") => {
                    for token in header.value.split(|byte| *byte == b',') {
                        framing.close |= token.trim_ascii().eq_ignore_ascii_case(b"close");
                        framing.keep_alive |=
                            token.trim_ascii().eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                _ => {}
            }
        }
        if framing.chunked && framing.length.is_some() {
            return Err(Fault("Content-Length with Transfer-Encoding"));
        }
        Ok(framing)
    }
}

fn digits(value: &[u8]) -> Result<u64, Fault> {
    const BAD: Fault = Fault("malformed Content-Length");
    if value.is_empty() || value.len() > 18 {
        return Err(BAD);
    }
    value.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(byte - b'0')),
        _ => Err(BAD),
    })
}
