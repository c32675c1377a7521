//! HTTP/1.x heads: finding the end, parsing strictly, deciding how the body is framed.
//!
//! Source: RFC 9112. Where it leaves a choice we take the strict one, in both directions, since two
//! programs that read one head differently are a smuggling hole: any LF without CR, any second
//! `Content-Length` (equal or not, or written as a list), `Content-Length` with `Transfer-Encoding`, and
//! a `Transfer-Encoding` other than `chunked` are refused.

use std::borrow::Cow;
use std::ops::Range;

use super::spare::{List, spare};

/// More headers than this is refused (431 from a client, 502 from an engine).
pub const HEADERS_MAX: usize = 128;

/// Names that `Connection:` may list: every field is compared with each of them.
const LISTED_MAX: usize = 32;

/// Finds the end of a head in one pass over bytes that arrive in pieces; never looks at a byte twice.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct HeadScan {
    /// Bytes already looked at.
    seen: usize,
    /// Where the current line starts.
    line: usize,
}

/// Why a head is refused. Each is a 400 (or 431) towards a client and a 502 when an engine sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHead {
    BareLf,
    Syntax(&'static str),
    TooManyHeaders,
    TwoLengths,
    BadLength,
    LengthAndChunked,
    TransferEncoding,
    Version,
    Host,
}

impl BadHead {
    /// The sentence for the error body.
    pub fn message(self) -> &'static str {
        match self {
            BadHead::BareLf => "a line of the head ends in LF without CR",
            BadHead::Syntax(what) => what,
            BadHead::TooManyHeaders => "the head has more than 128 header fields",
            BadHead::TwoLengths => "the head has more than one Content-Length",
            BadHead::BadLength => "Content-Length is not a number that can be served",
            BadHead::LengthAndChunked => "the head has both Content-Length and Transfer-Encoding",
            BadHead::TransferEncoding => "Transfer-Encoding is not exactly 'chunked'",
            BadHead::Version => "the HTTP version is not 1.0 or 1.1",
            BadHead::Host => "an HTTP/1.1 request needs exactly one Host header",
        }
    }
}

impl HeadScan {
    /// Looks at what is new in `bytes` (the same buffer as before, grown at its end). `Ok(Some(n))`: the
    /// head is `bytes[..n]`, blank line included.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadHead> {
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.seen..]) {
            let lf = self.seen + found;
            if lf == 0 || bytes[lf - 1] != b'\r' {
                return Err(BadHead::BareLf);
            }
            let empty = lf - 1 == self.line;
            self.seen = lf + 1;
            self.line = lf + 1;
            if empty {
                return Ok(Some(lf + 1));
            }
        }
        self.seen = bytes.len();
        Ok(None)
    }
}

/// How the bytes after a head are delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Exactly this many bytes (0 when there is no body).
    Length(u64),
    Chunked,
    /// Until the connection closes (responses only).
    Close,
}

/// One header field as ranges into the buffer that holds the head.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    name: (u32, u32),
    value: (u32, u32),
    pub kind: Name,
}

spare!(Field);

/// The names pdrelay itself acts on; all others are [`Name::Other`] and travel as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    ProxyAuth,
    Te,
    Trailer,
    Upgrade,
    Expect,
    Authorization,
    AcceptEncoding,
    ContentType,
    ContentEncoding,
    RequestId,
    ServerTiming,
}

impl Name {
    fn of(name: &str) -> Name {
        // Length first: most names are told apart without comparing bytes.
        let is = |known: &str, kind: Name| {
            if name.eq_ignore_ascii_case(known) {
                kind
            } else {
                Name::Other
            }
        };
        match name.len() {
            2 => is("te", Name::Te),
            4 => is("host", Name::Host),
            6 => is("expect", Name::Expect),
            7 => match is("upgrade", Name::Upgrade) {
                Name::Other => is("trailer", Name::Trailer),
                kind => kind,
            },
            10 => match is("connection", Name::Connection) {
                Name::Other => is("keep-alive", Name::KeepAlive),
                kind => kind,
            },
            12 => match is("content-type", Name::ContentType) {
                Name::Other => is("x-request-id", Name::RequestId),
                kind => kind,
            },
            13 => match is("authorization", Name::Authorization) {
                Name::Other => is("server-timing", Name::ServerTiming),
                kind => kind,
            },
            14 => is("content-length", Name::ContentLength),
            15 => is("accept-encoding", Name::AcceptEncoding),
            16 => match is("content-encoding", Name::ContentEncoding) {
                Name::Other => is("proxy-connection", Name::ProxyConnection),
                kind => kind,
            },
            17 => is("transfer-encoding", Name::TransferEncoding),
            18 => is("proxy-authenticate", Name::ProxyAuth),
            19 => is("proxy-authorization", Name::ProxyAuth),
            _ => Name::Other,
        }
    }

    /// Hop-by-hop (RFC 9110 section 7.6.1): never travels through.
    pub fn hop_by_hop(self) -> bool {
        use Name::*;
        matches!(
            self,
            Connection
                | KeepAlive
                | ProxyConnection
                | ProxyAuth
                | Te
                | Trailer
                | TransferEncoding
                | Upgrade
        )
    }
}

impl Field {
    pub fn name<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[self.name.0 as usize..self.name.1 as usize]
    }

    pub fn value<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[self.value.0 as usize..self.value.1 as usize]
    }
}

/// What both kinds of head share.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    list: List<Field>,
    /// Names listed in `Connection:` besides close and keep-alive: hop-by-hop by declaration.
    listed: Vec<Box<[u8]>>,
    pub close: bool,
    pub keep_alive: bool,
}

impl Fields {
    pub fn iter(&self) -> std::slice::Iter<'_, Field> {
        self.list.iter()
    }

    pub fn find<'a>(&self, head: &'a [u8], kind: Name) -> Option<&'a [u8]> {
        self.list
            .iter()
            .find(|f| f.kind == kind)
            .map(|f| f.value(head))
    }

    /// Looks a header up by its name, in any case.
    pub fn get<'a>(&self, head: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let name = name.as_bytes();
        self.list
            .iter()
            .find(|f| f.name(head).eq_ignore_ascii_case(name))
            .map(|f| f.value(head))
    }

    /// May this field travel through the proxy?
    pub fn end_to_end(&self, head: &[u8], field: &Field) -> bool {
        !field.kind.hop_by_hop()
            && (self.listed.is_empty()
                // No peer can have us drop what delimits and addresses the message itself.
                || matches!(field.kind, Name::ContentLength | Name::Host)
                || !self.listed.iter().any(|l| l.eq_ignore_ascii_case(field.name(head))))
    }
}

#[derive(Debug, Clone)]
pub struct RequestHead {
    pub method: Method,
    method_range: (u32, u32),
    /// Path with query, as sent.
    target: (u32, u32),
    pub http11: bool,
    pub fields: Fields,
    pub framing: Framing,
    pub expects_continue: bool,
    /// May the connection serve another request after this one?
    pub keep_alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Other,
}

impl RequestHead {
    /// Parses a complete head (as found by [`HeadScan`]).
    pub fn parse(head: &[u8]) -> Result<RequestHead, BadHead> {
        let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut room);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            Ok(httparse::Status::Complete(_)) => {
                return Err(BadHead::Syntax("two ends of one head"));
            }
            Ok(httparse::Status::Partial) => return Err(BadHead::Syntax("the head is cut short")),
            Err(why) => return Err(syntax(why)),
        }
        let at = |text: &str| range_in(head, text.as_bytes());
        let method = parsed.method.unwrap_or("");
        let path = parsed.path.unwrap_or("");
        let http11 = parsed.version == Some(1);
        let (fields, framing) = read_fields(head, parsed.headers)?;
        let hosts = fields.iter().filter(|f| f.kind == Name::Host).count();
        if hosts > 1 || (http11 && hosts == 0) {
            return Err(BadHead::Host);
        }
        if !http11 && framing == Some(Framing::Chunked) {
            return Err(BadHead::TransferEncoding);
        }
        let expects_continue = http11
            && fields
                .find(head, Name::Expect)
                .is_some_and(|v| v.eq_ignore_ascii_case(b"100-continue"));
        let keep_alive = if http11 {
            !fields.close
        } else {
            fields.keep_alive && !fields.close
        };
        Ok(RequestHead {
            method: method_of(method),
            method_range: at(method),
            target: at(path),
            http11,
            framing: framing.unwrap_or(Framing::Length(0)),
            expects_continue,
            keep_alive,
            fields,
        })
    }

    /// The parts that need no bytes: method, version, framing.
    pub fn without_fields(&self) -> RequestHead {
        RequestHead {
            method_range: (0, 0),
            target: (0, 0),
            fields: Fields::default(),
            ..*self
        }
    }

    /// Its bytes are about to go.
    pub fn forget_fields(&mut self) {
        *self = self.without_fields();
    }

    pub fn method_text<'a>(&self, head: &'a [u8]) -> &'a str {
        text(head, self.method_range)
    }

    /// The same, for whoever outlives the head.
    pub fn method_name(&self, head: &[u8]) -> Cow<'static, str> {
        match METHODS.iter().find(|(_, method)| *method == self.method) {
            Some((name, _)) => Cow::Borrowed(name),
            None => Cow::Owned(self.method_text(head).to_owned()),
        }
    }

    /// Path with query, as sent. (httparse admits only visible characters here.)
    pub fn target<'a>(&self, head: &'a [u8]) -> &'a str {
        text(head, self.target)
    }

    /// Path with query in origin form, to be sent on. Absolute form (RFC 9112 3.2.2) must be accepted;
    /// the authority is ours whatever it says.
    pub fn origin_form<'a>(&self, head: &'a [u8]) -> &'a str {
        let target = self.target(head);
        let scheme = |name: &str| {
            let start = target.get(..name.len())?;
            start
                .eq_ignore_ascii_case(name)
                .then(|| &target[name.len()..])
        };
        match scheme("http://").or_else(|| scheme("https://")) {
            // A slash in the query of a URL without a path does not start a path.
            Some(rest) => match rest.find(['/', '?']) {
                Some(at) if rest.as_bytes()[at] == b'/' => &rest[at..],
                _ => "/",
            },
            None => target,
        }
    }

    /// What routes: [`RequestHead::origin_form`] without the query.
    pub fn path<'a>(&self, head: &'a [u8]) -> &'a str {
        let origin = self.origin_form(head);
        origin.split('?').next().unwrap_or(origin)
    }
}

#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub status: u16,
    reason: (u32, u32),
    pub http11: bool,
    pub fields: Fields,
    framing: Option<Framing>,
}

impl ResponseHead {
    pub fn parse(head: &[u8]) -> Result<ResponseHead, BadHead> {
        let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut room);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            Ok(httparse::Status::Complete(_)) => {
                return Err(BadHead::Syntax("two ends of one head"));
            }
            Ok(httparse::Status::Partial) => return Err(BadHead::Syntax("the head is cut short")),
            Err(why) => return Err(syntax(why)),
        }
        let status = parsed.code.unwrap_or(0);
        if !(100..=599).contains(&status) {
            return Err(BadHead::Syntax("the status is not between 100 and 599"));
        }
        let http11 = parsed.version == Some(1);
        let reason = range_in(head, parsed.reason.unwrap_or("").as_bytes());
        let (fields, framing) = read_fields(head, parsed.headers)?;
        if !http11 && framing == Some(Framing::Chunked) {
            return Err(BadHead::TransferEncoding);
        }
        Ok(ResponseHead {
            status,
            reason,
            http11,
            fields,
            framing,
        })
    }

    pub fn reason<'a>(&self, head: &'a [u8]) -> &'a str {
        text(head, self.reason)
    }

    /// Its bytes are about to go; what they said of the connection stays known.
    pub fn forget_fields(&mut self) {
        self.reason = (0, 0);
        self.fields.list = List::default();
        self.fields.listed = Vec::new();
    }

    /// What the answer means is another status than it says. (Its words went with the old one.)
    pub fn override_status(&mut self, status: u16) {
        self.status = status;
        self.reason = (0, 0);
    }

    /// How the body that follows is framed, given the request's method (RFC 9112 section 6.3).
    pub fn framing(&self, to_head: bool) -> Framing {
        if to_head || self.status < 200 || self.status == 204 || self.status == 304 {
            return Framing::Length(0);
        }
        self.framing.unwrap_or(Framing::Close)
    }

    /// What `Content-Length` says, also where there is no body (HEAD, 304).
    pub fn declared_length(&self) -> Option<u64> {
        match self.framing {
            Some(Framing::Length(n)) => Some(n),
            _ => None,
        }
    }

    /// May the connection be used again once the body was read to its end?
    pub fn reusable(&self, framing: Framing) -> bool {
        let open = !self.fields.close && (self.http11 || self.fields.keep_alive);
        // A 204 that announces a body may send one, which would be read as the next answer.
        let stray = self.status == 204 && !matches!(self.framing, None | Some(Framing::Length(0)));
        open && framing != Framing::Close && self.status != 101 && !stray
    }

    pub fn is_event_stream(&self, head: &[u8]) -> bool {
        let plain = match self.fields.find(head, Name::ContentEncoding) {
            Some(coding) => coding.eq_ignore_ascii_case(b"identity"),
            None => true,
        };
        const TYPE: &[u8] = b"text/event-stream";
        plain
            && self.fields.find(head, Name::ContentType).is_some_and(|t| {
                t.len() >= TYPE.len()
                    && t[..TYPE.len()].eq_ignore_ascii_case(TYPE)
                    && matches!(t.get(TYPE.len()), None | Some(b';' | b' ' | b'\t'))
            })
    }
}

fn syntax(why: httparse::Error) -> BadHead {
    use httparse::Error::*;
    match why {
        TooManyHeaders => BadHead::TooManyHeaders,
        Version => BadHead::Version,
        HeaderName => BadHead::Syntax("a header name is malformed"),
        HeaderValue => BadHead::Syntax("a header value is malformed"),
        NewLine => BadHead::Syntax("a line ending is malformed"),
        Status => BadHead::Syntax("the status line is malformed"),
        Token => BadHead::Syntax("the request line is malformed"),
    }
}

const METHODS: [(&str, Method); 7] = [
    ("POST", Method::Post),
    ("GET", Method::Get),
    ("HEAD", Method::Head),
    ("PUT", Method::Put),
    ("DELETE", Method::Delete),
    ("OPTIONS", Method::Options),
    ("PATCH", Method::Patch),
];

fn method_of(text: &str) -> Method {
    let known = METHODS.iter().find(|(name, _)| *name == text);
    known.map_or(Method::Other, |(_, method)| *method)
}

fn text(head: &[u8], range: (u32, u32)) -> &str {
    std::str::from_utf8(&head[range.0 as usize..range.1 as usize]).unwrap_or("")
}

/// `part` is a slice of `whole` (httparse hands out slices of its input); an empty one may not be.
fn range_in(whole: &[u8], part: &[u8]) -> (u32, u32) {
    if part.is_empty() {
        return (0, 0);
    }
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    (start as u32, (start + part.len()) as u32)
}

fn read_fields(
    head: &[u8],
    headers: &[httparse::Header<'_>],
) -> Result<(Fields, Option<Framing>), BadHead> {
    let mut fields = Fields {
        list: List::lent(),
        listed: Vec::new(),
        close: false,
        keep_alive: false,
    };
    let mut length: Option<u64> = None;
    let mut chunked = false;
    for header in headers {
        let kind = Name::of(header.name);
        match kind {
            Name::ContentLength => {
                let earlier = length.replace(length_of(header.value)?);
                if earlier.is_some() {
                    return Err(BadHead::TwoLengths);
                }
            }
            Name::TransferEncoding => {
                if chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(BadHead::TransferEncoding);
                }
                chunked = true;
            }
            Name::Connection => read_connection(header.value, &mut fields)?,
            _ => {}
        }
        fields.list.push(Field {
            name: range_in(head, header.name.as_bytes()),
            value: range_in(head, header.value),
            kind,
        });
    }
    let framing = match (length, chunked) {
        (Some(_), true) => return Err(BadHead::LengthAndChunked),
        (Some(n), false) => Some(Framing::Length(n)),
        (None, true) => Some(Framing::Chunked),
        (None, false) => None,
    };
    Ok((fields, framing))
}

fn read_connection(value: &[u8], fields: &mut Fields) -> Result<(), BadHead> {
    for token in value.split(|b| *b == b',') {
        let token = token.trim_ascii();
        if token.eq_ignore_ascii_case(b"close") {
            fields.close = true;
        } else if token.eq_ignore_ascii_case(b"keep-alive") {
            fields.keep_alive = true;
        } else if !token.is_empty() {
            if fields.listed.len() == LISTED_MAX {
                return Err(BadHead::Syntax(
                    "the Connection header lists too many names",
                ));
            }
            fields.listed.push(token.into());
        }
    }
    Ok(())
}

fn length_of(value: &[u8]) -> Result<u64, BadHead> {
    if value.contains(&b',') {
        return Err(BadHead::TwoLengths);
    }
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(BadHead::BadLength);
    }
    Ok(value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

/// Where `part` lies within `whole`; for callers that keep ranges.
pub fn subrange(whole: &[u8], part: &[u8]) -> Range<usize> {
    let (a, b) = range_in(whole, part);
    a as usize..b as usize
}
