//! Chunked transfer coding (RFC 9112 section 7.1): one scanner, fed in pieces, for both jobs:
//! *verify and find the end* while bytes are relayed as they are, and *decode* where they are not.

/// Longest chunk-size line (size, extensions) and longest trailer section that are accepted.
const LINE_MAX: u32 = 4096;
const TRAILER_MAX: u32 = 16 << 10;
/// Chunks whose size has more digits are rare.
const SIZE_DIGITS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// First digit of a size not yet seen.
    SizeStart,
    Size,
    /// Whitespace after the size: only an extension or the end of the line may follow.
    Space,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// Start of a trailer line (or of the final empty line).
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
    /// Malformed; stays so. How much of the last feed was sound is not told, so this is no boundary.
    Bad,
}

/// The peer's chunked body cannot be trusted; the connection must not be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChunk(pub &'static str);

#[derive(Debug, Clone)]
pub struct ChunkScan {
    at: At,
    /// Data bytes of the current chunk that are still to come.
    left: u64,
    digits: u32,
    line: u32,
    trailer: u32,
}

impl Default for ChunkScan {
    fn default() -> Self {
        ChunkScan {
            at: At::SizeStart,
            left: 0,
            digits: 0,
            line: 0,
            trailer: 0,
        }
    }
}

impl ChunkScan {
    /// Takes the next bytes and calls `data` for each piece of payload in them. Returns how many bytes
    /// belong to this body: fewer than given only when it has ended ([`ChunkScan::done`]).
    pub fn feed(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, BadChunk> {
        let mut pos = 0;
        while pos < bytes.len() && self.at != At::Done {
            if self.at == At::Data {
                let take = self.left.min((bytes.len() - pos) as u64) as usize;
                data(&bytes[pos..pos + take]);
                pos += take;
                self.left -= take as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            let skipped = self.skip(&bytes[pos..]);
            if skipped > 0 {
                pos += skipped;
                continue;
            }
            if let Err(why) = self.step(bytes[pos]) {
                self.at = At::Bad;
                return Err(why);
            }
            pos += 1;
        }
        Ok(pos)
    }

    /// What is between the data of two chunks, if it is as almost always and all here: what [`ChunkScan::step`] would
    /// make of it, at once. Returns its length, else 0.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        let start = match (self.at, bytes) {
            (At::SizeStart, _) => 0,
            (At::DataCr, [b'\r', b'\n', ..]) => 2,
            _ => return 0,
        };
        let mut size = 0;
        for (digits, byte) in bytes[start..].iter().take(SIZE_DIGITS + 1).enumerate() {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                b'A'..=b'F' => byte - b'A' + 10,
                // (An empty chunk is the last one, and what follows is another thing.)
                b'\r' if size > 0 && bytes.get(start + digits + 1) == Some(&b'\n') => {
                    self.left = size;
                    self.at = At::Data;
                    return start + digits + 2;
                }
                _ => return 0,
            };
            size = size << 4 | u64::from(digit);
        }
        0
    }

    fn step(&mut self, byte: u8) -> Result<(), BadChunk> {
        self.at = match (self.at, byte) {
            (At::SizeStart | At::Size, b) if b.is_ascii_hexdigit() => {
                self.digits += 1;
                if self.digits > 15 {
                    return Err(BadChunk("a chunk size has more than 15 digits"));
                }
                let digit = (b as char).to_digit(16).unwrap_or(0);
                self.left = self.left << 4 | u64::from(digit);
                At::Size
            }
            (At::Size | At::Space | At::Extension, b'\r') => At::SizeLf,
            (At::Size | At::Space, b';') => At::Extension,
            (At::Size, b' ' | b'\t') => At::Space,
            (At::Extension, b'\n') => return Err(BadChunk("a chunk line ends in LF without CR")),
            (At::Extension, _) | (At::Space, b' ' | b'\t') => {
                self.line += 1;
                if self.line > LINE_MAX {
                    return Err(BadChunk("a chunk extension is too long"));
                }
                self.at
            }
            (At::SizeLf, b'\n') => {
                self.digits = 0;
                self.line = 0;
                if self.left == 0 {
                    At::TrailerStart
                } else {
                    At::Data
                }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::SizeStart,
            (At::TrailerStart, b'\r') => At::EndLf,
            (At::TrailerStart | At::Trailer, b'\n') => {
                return Err(BadChunk("a trailer ends in LF without CR"));
            }
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::TrailerStart | At::Trailer, _) => {
                self.trailer += 1;
                if self.trailer > TRAILER_MAX {
                    return Err(BadChunk("the trailers are too long"));
                }
                At::Trailer
            }
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::EndLf, b'\n') => At::Done,
            _ => return Err(BadChunk("the chunked framing is malformed")),
        };
        Ok(())
    }

    /// The final chunk, the trailers and the blank line have been seen.
    pub fn done(&self) -> bool {
        self.at == At::Done
    }

    /// Between two chunks: a proxy may put a chunk of its own here.
    pub fn at_boundary(&self) -> bool {
        self.at == At::SizeStart
    }
}

/// Appends one chunk's size line (`2a\r\n`) to `out`.
pub fn put_size(out: &mut Vec<u8>, size: usize) {
    let mut digits = [0u8; 16];
    let mut at = digits.len();
    let mut rest = size;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// Appends `data` as one whole chunk. Empty data adds nothing: an empty chunk would end the body.
pub fn put_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        put_size(out, data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// The last chunk, without trailers.
pub const END: &[u8] = b"0\r\n\r\n";
