//! Heads and chunks of answers, as uvicorn writes them.

use crate::clock::{push_date, unix_seconds};
use crate::text::{push_hex, push_number};

pub(crate) const JSON: &str = "application/json";
pub(crate) const SSE: &str = "text/event-stream; charset=utf-8";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Chunked,
    Length(usize),
    Close,
    /// 204 and 304.
    Nothing,
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        403 => "Forbidden",
        409 => "Conflict",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}

/// A head as uvicorn writes it. `extra` are whole header lines.
pub(crate) fn push_head(
    out: &mut Vec<u8>,
    status: u16,
    content_type: &str,
    size: Size,
    keep: bool,
    extra: &str,
) {
    if status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\ndate: ");
    } else {
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(out, status.into());
        out.push(b' ');
        out.extend_from_slice(reason(status).as_bytes());
        out.extend_from_slice(b"\r\ndate: ");
    }
    push_date(out, unix_seconds());
    out.extend_from_slice(b"\r\nserver: uvicorn\r\n");
    if let Size::Length(length) = size {
        out.extend_from_slice(b"content-length: ");
        push_number(out, length as u64);
        out.extend_from_slice(b"\r\n");
    }
    if !content_type.is_empty() && size != Size::Nothing {
        out.extend_from_slice(b"content-type: ");
        out.extend_from_slice(content_type.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(extra.as_bytes());
    if size == Size::Chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if !keep || size == Size::Close {
        out.extend_from_slice(b"connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    chunk(out, data, "");
}

/// The same with a chunk extension.
pub(crate) fn chunk(out: &mut Vec<u8>, data: &[u8], extension: &str) {
    let digits = (64 - (data.len() as u64).leading_zeros())
        .div_ceil(4)
        .max(1);
    push_hex(out, data.len() as u64, digits as usize);
    out.extend_from_slice(extension.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}
