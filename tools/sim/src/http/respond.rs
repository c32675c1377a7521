//! Answers that take time, have an odd shape, or go wrong on purpose.

use super::wire::{SSE, Size, chunk, push_head};
use crate::fault::{Fault, Shape};
use crate::link::{Gone, Link};
use crate::transcript::{Entry, Outcome};

/// Why a connection ends in the middle of an answer.
#[derive(Debug)]
pub(crate) enum End {
    ClientLeft,
    /// FIN, by this fault.
    Fin(&'static str),
    /// RST, by this fault.
    Reset(&'static str),
}

impl From<Gone> for End {
    fn from(_: Gone) -> End {
        End::ClientLeft
    }
}

pub(crate) struct Responder<'a> {
    pub link: &'a mut Link,
    pub shape: Shape,
    pub fault: Option<Fault>,
    /// HEAD: the head only.
    pub head_only: bool,
    /// May the connection serve another request afterwards?
    pub keep: bool,
    /// Closed just before the last bytes go out, so that whoever has read them finds it closed.
    pub entry: Option<Entry<'a>>,
    status: u16,
    out: Vec<u8>,
    size: Size,
    chunks: u32,
    /// A stream that is sent in one go at its end (with a length or compressed).
    whole: Option<Vec<u8>>,
}

impl<'a> Responder<'a> {
    pub fn new(link: &'a mut Link, shape: Shape, fault: Option<Fault>) -> Responder<'a> {
        Responder {
            link,
            shape,
            fault,
            head_only: false,
            keep: true,
            entry: None,
            status: 0,
            out: Vec::with_capacity(4096),
            size: Size::Chunked,
            chunks: 0,
            whole: None,
        }
    }

    async fn last(&mut self) -> Result<(), End> {
        if let Some(entry) = self.entry {
            entry.close(Outcome::Answered(self.status));
        }
        self.flush().await
    }

    pub async fn flush(&mut self) -> Result<(), End> {
        let out = std::mem::take(&mut self.out);
        if self.shape == Shape::ByteByByte {
            for byte in &out {
                self.link.send(vec![*byte]).await?;
            }
            return Ok(());
        }
        self.out = self.link.send(out).await?;
        Ok(())
    }

    /// The head, with what comes before it and what goes wrong in it.
    async fn head(&mut self, status: u16, kind: &str, extra: &str) -> Result<(), End> {
        self.status = status;
        match self.fault {
            Some(Fault::SlowHead(delay)) => {
                self.link.unless_gone(monoio::time::sleep(delay)).await?;
            }
            Some(Fault::BadHead) => {
                self.out
                    .extend_from_slice(b"HTTP/1.1 2x0 WAT\r\nno colon here\r\n\r\n");
                return self.end_with_fin("bad-head").await;
            }
            Some(Fault::HalfHead) => {
                self.out
                    .extend_from_slice(b"HTTP/1.1 200 OK\r\nserver: uvi");
                return self.end_with_fin("half-head").await;
            }
            _ => {}
        }
        match self.shape {
            Shape::ContinueFirst => self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Shape::EarlyHintsFirst => self
                .out
                .extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n"),
            _ => {}
        }
        let from = self.out.len();
        self.keep &= self.size != Size::Close && self.shape != Shape::Http10;
        push_head(&mut self.out, status, kind, self.size, self.keep, extra);
        if self.shape == Shape::Http10 {
            self.out[from + 7] = b'0';
        }
        self.flush().await
    }

    async fn end_with_fin(&mut self, fault: &'static str) -> Result<(), End> {
        self.flush().await?;
        Err(End::Fin(fault))
    }

    /// Begins a stream.
    pub async fn begin(&mut self, kind: &str) -> Result<(), End> {
        match self.shape {
            Shape::Length | Shape::Gzip => {
                self.whole = Some(Vec::new());
                return Ok(());
            }
            Shape::CloseDelimited | Shape::Http10 => self.size = Size::Close,
            _ => self.size = Size::Chunked,
        }
        self.head(200, kind, "").await
    }

    /// Adds a piece of a stream; `flush` sends what has gathered.
    pub async fn piece(&mut self, data: &[u8]) -> Result<(), End> {
        if let Some(whole) = &mut self.whole {
            whole.extend_from_slice(data);
            return Ok(());
        }
        self.chunks += 1;
        if let Some(fault) = self.fault {
            self.spoil(fault, data).await?;
        }
        match (self.size, self.shape) {
            (Size::Chunked, Shape::ChunkExt) => chunk(&mut self.out, data, ";sim=\"a;b\""),
            (Size::Chunked, Shape::SplitChunks) => {
                data.chunks(7)
                    .for_each(|part| chunk(&mut self.out, part, ""));
            }
            (Size::Chunked, _) => chunk(&mut self.out, data, ""),
            _ => self.out.extend_from_slice(data),
        }
        Ok(())
    }

    /// The faults that strike in a stream; `self.chunks` counts the piece that is due now.
    async fn spoil(&mut self, fault: Fault, data: &[u8]) -> Result<(), End> {
        let framed = self.size == Size::Chunked;
        match fault {
            Fault::ResetMidStream { after_chunks } if self.chunks > after_chunks => {
                self.flush().await?;
                Err(End::Reset(fault.name()))
            }
            Fault::CleanEarlyEnd { after_chunks } if self.chunks > after_chunks => {
                if framed {
                    self.out.extend_from_slice(b"0\r\n\r\n");
                }
                self.end_with_fin(fault.name()).await
            }
            Fault::Stall { after_chunks } if self.chunks > after_chunks => {
                self.flush().await?;
                self.link.until_gone().await;
                Err(End::ClientLeft)
            }
            Fault::HalfBody if self.chunks > 1 => {
                let mut whole = Vec::new();
                chunk(&mut whole, data, "");
                let part = if framed {
                    &whole[..whole.len() / 2]
                } else {
                    &data[..data.len() / 2]
                };
                self.out.extend_from_slice(part);
                self.end_with_fin(fault.name()).await
            }
            Fault::Garbage if self.chunks > 1 => {
                self.out
                    .extend_from_slice(b"zz\x00\xff not a chunk\r\n\x80\x81data: {{{\r\n");
                self.end_with_fin(fault.name()).await
            }
            _ => Ok(()),
        }
    }

    /// Ends a stream well.
    pub async fn finish(&mut self) -> Result<(), End> {
        if let Some(whole) = self.whole.take() {
            return self.sized(200, SSE, "", &whole).await;
        }
        self.end().await
    }

    async fn end(&mut self) -> Result<(), End> {
        if self.size == Size::Chunked {
            let trailers = self.shape == Shape::Trailers;
            let end: &[u8] = if trailers {
                b"0\r\nx-sim-trailer: 1\r\n\r\n"
            } else {
                b"0\r\n\r\n"
            };
            self.out.extend_from_slice(end);
        }
        self.last().await
    }

    /// A whole answer.
    pub async fn answer(
        &mut self,
        status: u16,
        kind: &str,
        extra: &str,
        body: &[u8],
    ) -> Result<(), End> {
        if matches!(status, 204 | 304) {
            self.size = Size::Nothing;
            return self.head(status, kind, extra).await;
        }
        let chunked = [
            Shape::ChunkExt,
            Shape::Trailers,
            Shape::SplitChunks,
            Shape::Chunked,
        ];
        if chunked.contains(&self.shape) && !self.head_only {
            self.size = Size::Chunked;
            self.head(status, kind, extra).await?;
            for part in body.chunks((body.len() / 3).max(1)) {
                self.piece(part).await?;
                self.flush().await?;
            }
            return self.end().await;
        }
        self.sized(status, kind, extra, body).await
    }

    /// An answer with a known length, or until the connection closes.
    async fn sized(
        &mut self,
        status: u16,
        kind: &str,
        extra: &str,
        body: &[u8],
    ) -> Result<(), End> {
        let body = match self.shape {
            Shape::Gzip => &super::gzip::stored(body),
            _ => body,
        };
        let half = &body[..body.len() / 2];
        let body = match self.fault {
            Some(Fault::CleanEarlyEnd { .. }) => half,
            Some(Fault::Garbage) => &vec![0xfe; body.len()],
            _ => body,
        };
        self.size = match self.shape {
            Shape::CloseDelimited => Size::Close,
            _ => Size::Length(body.len()),
        };
        let gzip = if self.shape == Shape::Gzip {
            "content-encoding: gzip\r\n"
        } else {
            ""
        };
        self.head(status, kind, &[extra, gzip].concat()).await?;
        if self.head_only {
            return Ok(());
        }
        match self.fault {
            Some(Fault::HalfBody) => {
                self.out.extend_from_slice(half);
                return self.end_with_fin("half-body").await;
            }
            Some(Fault::ResetMidStream { .. }) => {
                self.out.extend_from_slice(half);
                self.flush().await?;
                return Err(End::Reset("reset-mid-stream"));
            }
            Some(Fault::Stall { .. }) => {
                self.out.extend_from_slice(half);
                self.flush().await?;
                self.link.until_gone().await;
                return Err(End::ClientLeft);
            }
            _ => self.out.extend_from_slice(body),
        }
        self.last().await
    }
}
