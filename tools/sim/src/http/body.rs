//! Chunked request bodies, decoded strictly: CRLF only, hex sizes only, everything bounded.

/// A chunk-size line or a trailer line.
const LINE_MAX: usize = 4096;
const TRAILERS_MAX: usize = 64;
pub(crate) const BODY_MAX: usize = 256 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Size,
    Data(usize),
    DataEnd,
    Trailer(usize),
    Done,
}

pub(crate) struct Chunked {
    next: Next,
    pub body: Vec<u8>,
}

impl Chunked {
    pub fn new(body: Vec<u8>) -> Chunked {
        Chunked {
            next: Next::Size,
            body,
        }
    }

    pub fn done(&self) -> bool {
        self.next == Next::Done
    }

    /// Takes what it can from `input`; gives the number of bytes used.
    pub fn take(&mut self, input: &[u8]) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < input.len() && !self.done() {
            let rest = &input[at..];
            if let Next::Data(left) = self.next {
                let n = left.min(rest.len());
                self.body.extend_from_slice(&rest[..n]);
                self.next = if n == left {
                    Next::DataEnd
                } else {
                    Next::Data(left - n)
                };
                at += n;
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return if rest.len() > LINE_MAX {
                    Err("a chunk line too long")
                } else {
                    Ok(at)
                };
            };
            let line = &rest[..end];
            let Some(line) = line.strip_suffix(b"\r") else {
                return Err("a bare LF in chunk framing");
            };
            self.line(line)?;
            at += end + 1;
        }
        Ok(at)
    }

    fn line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.next = match self.next {
            Next::DataEnd if line.is_empty() => Next::Size,
            Next::DataEnd => return Err("a chunk longer than its size"),
            Next::Size => match size(line)? {
                0 => Next::Trailer(0),
                n if self.body.len() + n > BODY_MAX => return Err("a body too long"),
                n => Next::Data(n),
            },
            Next::Trailer(_) if line.is_empty() => Next::Done,
            Next::Trailer(TRAILERS_MAX..) => return Err("too many trailers"),
            Next::Trailer(n) => Next::Trailer(n + 1),
            Next::Data(_) | Next::Done => self.next,
        };
        Ok(())
    }
}

fn size(line: &[u8]) -> Result<usize, &'static str> {
    let digits = line
        .iter()
        .position(|b| !b.is_ascii_hexdigit())
        .unwrap_or(line.len());
    if digits == 0 || digits > 8 {
        return Err("a bad chunk size");
    }
    let after = line[digits..].trim_ascii_start();
    if !after.is_empty() && after[0] != b';' {
        return Err("a bad chunk size");
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| "a bad chunk size")?;
    usize::from_str_radix(text, 16).map_err(|_| "a bad chunk size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_gives_the_same_body() {
        let wire = b"3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nx: y\r\n\r\nNEXT";
        for cut in 0..wire.len() {
            let mut chunked = Chunked::new(Vec::new());
            let mut used = chunked.take(&wire[..cut]).unwrap();
            used += chunked.take(&wire[used..]).unwrap();
            assert!(chunked.done());
            assert_eq!(
                (chunked.body.as_slice(), &wire[used..]),
                (&b"abc0123456789"[..], &b"NEXT"[..])
            );
        }
    }

    #[test]
    fn loose_framing_is_refused() {
        for wire in [
            "3\nabc\r\n",
            "-3\r\n",
            "3 x\r\n",
            "\r\n",
            "3\r\nabcd\r\n",
            "0x3\r\n",
        ] {
            assert!(
                Chunked::new(Vec::new()).take(wire.as_bytes()).is_err(),
                "{wire:?}"
            );
        }
    }
}
