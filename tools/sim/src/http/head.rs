//! Request heads. Whatever could make two parsers disagree about where a request ends is refused
//! here and told apart as a *violation*: a proxy must never send it.

/// A head longer than this is refused with 431.
const HEAD_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 96;

pub(crate) type Span = (u32, u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// A head as offsets into the buffer it was read from. Empty spans mean "not there".
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub length: usize,
    pub method: Method,
    pub target: Span,
    pub body: Framing,
    pub keep_alive: bool,
    pub http11: bool,
    pub expect: bool,
    pub json: bool,
    pub request_id: Span,
    pub authorization: Span,
    pub fault: Span,
    pub fault_prefill: Span,
    pub fault_decode: Span,
    pub shape: Span,
    /// `X-data-parallel-rank`
    pub rank: Span,
    /// What no engine should be sent: a field meant for a proxy, or an id twice.
    pub stray: Option<&'static str>,
}

#[derive(Debug)]
pub(crate) struct Refused {
    pub status: u16,
    pub what: &'static str,
}

const fn bad(what: &'static str) -> Refused {
    Refused { status: 400, what }
}

impl Head {
    pub fn text<'a>(&self, input: &'a [u8], span: Span) -> &'a [u8] {
        &input[span.0 as usize..span.1 as usize]
    }

    /// The target without its query.
    pub fn path<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        let target = self.text(input, self.target);
        &target[..memchr::memchr(b'?', target).unwrap_or(target.len())]
    }
}

/// Counts of what may come once only, and the connection options.
#[derive(Default)]
struct Seen {
    hosts: u32,
    lengths: u32,
    encodings: u32,
    close: bool,
    keep: bool,
}

/// The head at the start of `input`; `None` if more bytes are needed.
pub(crate) fn parse(input: &[u8]) -> Result<Option<Head>, Refused> {
    let mut slots = [const { std::mem::MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(input, &mut slots) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if input.len() <= HEAD_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(Refused {
                status: 431,
                what: "head too long",
            });
        }
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refused {
                status: 431,
                what: "too many headers",
            });
        }
        Err(httparse::Error::HeaderName) => return Err(bad("a bad header name")),
        Err(httparse::Error::HeaderValue) => return Err(bad("a bad header value")),
        Err(_) => return Err(bad("no HTTP request")),
    };
    let bare = |at: usize| at == 0 || input[at - 1] != b'\r';
    if memchr::memchr_iter(b'\n', &input[..length]).any(bare) {
        return Err(bad("a bare LF in the head"));
    }
    let mut head = Head {
        length,
        method: match request.method {
            Some("POST") => Method::Post,
            Some("GET") => Method::Get,
            Some("HEAD") => Method::Head,
            _ => Method::Other,
        },
        target: span(input, request.path.unwrap_or("").as_bytes()),
        body: Framing::None,
        keep_alive: false,
        http11: request.version == Some(1),
        expect: false,
        json: false,
        request_id: (0, 0),
        authorization: (0, 0),
        fault: (0, 0),
        fault_prefill: (0, 0),
        fault_decode: (0, 0),
        shape: (0, 0),
        rank: (0, 0),
        stray: None,
    };
    let mut seen = Seen::default();
    for header in request.headers.iter() {
        take(&mut head, &mut seen, input, header)?;
    }
    judge(&seen, &mut head)?;
    Ok(Some(head))
}

fn span(input: &[u8], part: &[u8]) -> Span {
    let from = (part.as_ptr() as usize - input.as_ptr() as usize) as u32;
    (from, from + part.len() as u32)
}

fn take(
    head: &mut Head,
    seen: &mut Seen,
    input: &[u8],
    header: &httparse::Header,
) -> Result<(), Refused> {
    let (name, value) = (header.name.as_bytes(), header.value);
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    let place = || span(input, value);
    match name.len() {
        4 if is(b"host") => seen.hosts += 1,
        6 if is(b"expect") => head.expect = value.eq_ignore_ascii_case(b"100-continue"),
        10 if is(b"connection") => connection(value, seen),
        11 if is(b"x-sim-fault") => head.fault = place(),
        11 if is(b"x-sim-shape") => head.shape = place(),
        12 if is(b"content-type") => head.json = is_json(value),
        12 if is(b"x-request-id") => {
            if head.request_id != (0, 0) {
                head.stray = Some("two X-Request-Id");
            }
            head.request_id = place();
        }
        15 if is(b"x-prefiller-url") => head.stray = Some("X-Prefiller-Url"),
        21 if is(b"x-prefiller-host-port") => head.stray = Some("X-Prefiller-Host-Port"),
        21 if is(b"x-encoder-hosts-ports") => head.stray = Some("X-Encoder-Hosts-Ports"),
        27 if is(b"x-kv-cache-source-host-port") => {
            head.stray = Some("X-Kv-Cache-Source-Host-Port");
        }
        13 if is(b"authorization") => head.authorization = place(),
        14 if is(b"content-length") => {
            seen.lengths += 1;
            head.body = Framing::Length(length_of(value).ok_or(bad("a bad Content-Length"))?);
        }
        17 if is(b"transfer-encoding") => {
            seen.encodings += 1;
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(bad("a Transfer-Encoding that is not chunked"));
            }
        }
        18 if is(b"x-sim-fault-decode") => head.fault_decode = place(),
        20 if is(b"x-data-parallel-rank") => head.rank = place(),
        19 if is(b"x-sim-fault-prefill") => head.fault_prefill = place(),
        _ => {}
    }
    Ok(())
}

fn judge(seen: &Seen, head: &mut Head) -> Result<(), Refused> {
    if seen.lengths > 1 {
        return Err(bad("two Content-Lengths"));
    }
    if seen.encodings > 1 {
        return Err(bad("two Transfer-Encodings"));
    }
    if seen.encodings == 1 {
        if seen.lengths == 1 {
            return Err(bad("Content-Length with Transfer-Encoding"));
        }
        if !head.http11 {
            return Err(bad("Transfer-Encoding in HTTP/1.0"));
        }
        head.body = Framing::Chunked;
    }
    match seen.hosts {
        0 if head.http11 => return Err(bad("no Host")),
        0 | 1 => {}
        _ => return Err(bad("two Hosts")),
    }
    head.keep_alive = !seen.close && (head.http11 || seen.keep);
    Ok(())
}

fn connection(value: &[u8], seen: &mut Seen) {
    for option in value.split(|b| *b == b',') {
        let option = option.trim_ascii();
        seen.close |= option.eq_ignore_ascii_case(b"close");
        seen.keep |= option.eq_ignore_ascii_case(b"keep-alive");
    }
}

fn is_json(value: &[u8]) -> bool {
    let media = value.split(|b| *b == b';').next().unwrap_or_default();
    media.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

/// Digits only: no sign, no list, nothing that a lenient parser would read differently.
fn length_of(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 15 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}
