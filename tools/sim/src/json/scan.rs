//! The validating pass: grammar of JSON, iterative, with a depth cap, so that no body can overflow
//! the stack.

use memchr::memchr2;

/// Containers inside containers. Python stops near 1,000; nothing sane comes close to this.
const DEPTH: usize = 128;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub at: usize,
    pub what: &'static str,
}

/// One member of the top-level object, as offsets into the text. `key` is without its quotes.
#[derive(Clone, Copy)]
pub(crate) struct Member {
    pub key: (u32, u32),
    pub value: (u32, u32),
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    /// No control character anywhere: strings need not be searched for them.
    tame: bool,
}

/// Checks the whole text and collects the members of the top-level object, duplicates included.
pub(crate) fn object(text: &[u8], members: &mut Vec<Member>) -> Result<(), Invalid> {
    members.clear();
    // Folded without early exits so that these become vector code.
    let (low, high) = text
        .iter()
        .fold((u8::MAX, 0), |(low, high), b| (low.min(*b), high | b));
    let mut scan = Scan {
        text,
        at: 0,
        tame: low >= 0x20,
    };
    let ascii = high < 0x80;
    if text.len() > u32::MAX as usize || !(ascii || std::str::from_utf8(text).is_ok()) {
        return Err(scan.fail("not UTF-8"));
    }
    scan.space();
    scan.take(b'{', "an object")?;
    scan.space();
    if scan.peek() == Some(b'}') {
        scan.at += 1;
    } else {
        loop {
            let key = scan.key()?;
            let from = scan.at;
            scan.value()?;
            members.push(Member {
                key,
                value: (from as u32, scan.at as u32),
            });
            scan.space();
            match scan.next() {
                Some(b',') => scan.space(),
                Some(b'}') => break,
                _ => return Err(scan.fail("a comma or the end of the object")),
            }
        }
    }
    scan.space();
    if scan.at == text.len() {
        Ok(())
    } else {
        Err(scan.fail("nothing after the object"))
    }
}

impl Scan<'_> {
    fn fail(&self, what: &'static str) -> Invalid {
        Invalid { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += 1;
        byte
    }

    fn take(&mut self, byte: u8, what: &'static str) -> Result<(), Invalid> {
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        Err(self.fail(what))
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// A key, its colon and the space after it.
    fn key(&mut self) -> Result<(u32, u32), Invalid> {
        let from = self.at + 1;
        self.string()?;
        let to = self.at - 1;
        self.space();
        self.take(b':', "a colon")?;
        self.space();
        Ok((from as u32, to as u32))
    }

    fn string(&mut self) -> Result<(), Invalid> {
        self.take(b'"', "a string")?;
        loop {
            let rest = &self.text[self.at..];
            let Some(length) = memchr2(b'"', b'\\', rest) else {
                return Err(self.fail("the end of a string"));
            };
            if !self.tame && rest[..length].iter().any(|b| *b < 0x20) {
                return Err(self.fail("no control characters in strings"));
            }
            self.at += length + 1;
            if rest[length] == b'"' {
                return Ok(());
            }
            match self.next() {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
                Some(b'u') => {
                    let digits = self.text.get(self.at..self.at + 4);
                    if !digits.is_some_and(|d| d.iter().all(u8::is_ascii_hexdigit)) {
                        return Err(self.fail("four hex digits"));
                    }
                    self.at += 4;
                }
                _ => return Err(self.fail("an escape")),
            }
        }
    }

    fn digits(&mut self) -> Result<(), Invalid> {
        let from = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == from {
            Err(self.fail("a digit"))
        } else {
            Ok(())
        }
    }

    fn number(&mut self) -> Result<(), Invalid> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Invalid> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.fail("a value"))
    }

    /// One value of any kind. `open` is a stack of bits: 1 for an object, 0 for an array.
    fn value(&mut self) -> Result<(), Invalid> {
        let mut open: u128 = 0;
        let mut depth = 0;
        loop {
            match self.peek() {
                Some(b'"') => self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                Some(bracket @ (b'{' | b'[')) => {
                    self.at += 1;
                    self.space();
                    let object = bracket == b'{';
                    if self.peek() == Some(if object { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        if depth == DEPTH {
                            return Err(self.fail("less nesting"));
                        }
                        depth += 1;
                        open = open << 1 | u128::from(object);
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => return Err(self.fail("a value")),
            }
            if !self.close(&mut open, &mut depth)? {
                return Ok(());
            }
        }
    }

    /// After a value: closes what ends here. True if another value must follow.
    fn close(&mut self, open: &mut u128, depth: &mut usize) -> Result<bool, Invalid> {
        while *depth > 0 {
            self.space();
            let object = *open & 1 == 1;
            match self.next() {
                Some(b',') => {
                    self.space();
                    if object {
                        self.key()?;
                    }
                    return Ok(true);
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                _ => return Err(self.fail("a comma or a closing bracket")),
            }
            *open >>= 1;
            *depth -= 1;
        }
        Ok(false)
    }
}
