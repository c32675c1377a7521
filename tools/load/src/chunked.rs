//! Chunked transfer coding, decoded in place. Extensions and trailers are legal and skipped, within limits.

use crate::http::Fault;

/// Bytes of chunk extensions (per chunk) and of trailers (in all) that are put up with.
const LINE_LIMIT: u32 = 16 * 1024;

#[derive(Debug, Clone, Copy)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// While the size is read: the value so far. In the data: the bytes still to come.
    left: u64,
    digits: u32,
    skipped: u32,
}

impl Default for Chunked {
    fn default() -> Self {
        Self {
            state: State::Size,
            left: 0,
            digits: 0,
            skipped: 0,
        }
    }
}

impl Chunked {
    /// Decodes `input`, handing data to `data`. `Some(used)` once the body has ended.
    pub fn feed(
        &mut self,
        input: &[u8],
        mut data: impl FnMut(&[u8]),
    ) -> Result<Option<usize>, Fault> {
        let mut at = 0;
        while at < input.len() {
            if matches!(self.state, State::Data) {
                let take = self.left.min((input.len() - at) as u64) as usize;
                data(&input[at..at + take]);
                at += take;
                self.left -= take as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            let byte = input[at];
            at += 1;
            if self.step(byte)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// One byte of framing; true when it was the last of the body.
    fn step(&mut self, byte: u8) -> Result<bool, Fault> {
        self.state = match (self.state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > 15 {
                    return Err(Fault("chunk size too long"));
                }
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                self.left = self.left * 16 + u64::from(digit);
                State::Size
            }
            (State::Size, _) if self.digits == 0 => return Err(Fault("chunk without a size")),
            (State::Size, b'\r') => State::SizeLf,
            (State::Size, b';' | b' ' | b'\t') => State::Extension,
            (State::Size, _) => return Err(Fault("malformed chunk size")),
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, byte) => self.skip(byte, State::Extension)?,
            (State::SizeLf, b'\n') if self.left == 0 => {
                self.skipped = 0;
                State::TrailerStart
            }
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.digits = 0;
                self.skipped = 0;
                State::Size
            }
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, byte) => self.skip(byte, State::Trailer)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => return Ok(true),
            _ => return Err(Fault("malformed chunk framing")),
        };
        Ok(false)
    }

    fn skip(&mut self, byte: u8, state: State) -> Result<State, Fault> {
        self.skipped += 1;
        if byte == b'\n' {
            return Err(Fault("line feed without carriage return in chunk framing"));
        }
        if self.skipped > LINE_LIMIT {
            return Err(Fault("chunk extension or trailers over 16 KiB"));
        }
        Ok(state)
    }
}
