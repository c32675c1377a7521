//! Generators and slow, obvious reference readers that the tests compare with.

use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Places to cut a buffer at; see [`cut`].
pub fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..8)
}

/// `bytes` in pieces; together they are all of it. Some may be empty.
pub fn cut<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
    at.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in at.into_iter().chain([bytes.len()]) {
        pieces.push(&bytes[start..end]);
        start = end;
    }
    pieces
}

/// The whole buffer, byte by byte, and every cut into two.
pub fn fixed_splits(bytes: &[u8]) -> Vec<Vec<&[u8]>> {
    let mut all: Vec<Vec<&[u8]>> = (0..=bytes.len())
        .map(|at| vec![&bytes[..at], &bytes[at..]])
        .collect();
    all.push(bytes.chunks(1).collect());
    all
}

/// A chunked body with what a scan of it must find.
#[derive(Debug, Clone)]
pub struct Chunked {
    pub bytes: Vec<u8>,
    pub payload: Vec<u8>,
    /// Offsets between two chunks (0 included, the end not).
    pub boundaries: Vec<usize>,
}

/// `plain`: no extensions and no trailers.
pub fn chunked(plain: bool) -> impl Strategy<Value = Chunked> {
    let extension = if plain {
        Just("").boxed()
    } else {
        select(vec![
            "",
            "",
            ";a",
            ";a=1",
            " ; a=\"x;y\"",
            "  ",
            "\t",
            ";\u{e9}",
            ";5",
        ])
        .boxed()
    };
    let data = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..40),
        select(vec![
            b"\r\n".to_vec(),
            b"0\r\n\r\n".to_vec(),
            vec![b'x'; 0x100]
        ]),
    ];
    let trailer = select(vec!["X-Sum: 1", "a:", "Content-Length: 5", "0", "Host: x"]);
    let trailers = prop::collection::vec(trailer, if plain { 0..=0 } else { 0..=3 });
    let zeros = select(vec!["", "0", "00"]);
    let chunk = (data, extension.clone(), any::<bool>(), zeros.clone());
    let last = (select(vec!["0", "000"]), extension, trailers);
    (prop::collection::vec(chunk, 0..6), last).prop_map(|(chunks, (zero, extension, trailers))| {
        let mut out = Chunked {
            bytes: vec![],
            payload: vec![],
            boundaries: vec![0],
        };
        for (data, extension, upper, zeros) in chunks {
            let hex = match upper {
                true => format!("{:X}", data.len()),
                false => format!("{:x}", data.len()),
            };
            out.bytes
                .extend_from_slice(format!("{zeros}{hex}{extension}\r\n").as_bytes());
            out.bytes.extend_from_slice(&data);
            out.bytes.extend_from_slice(b"\r\n");
            out.payload.extend_from_slice(&data);
            out.boundaries.push(out.bytes.len());
        }
        out.bytes
            .extend_from_slice(format!("{zero}{extension}\r\n").as_bytes());
        for line in trailers {
            out.bytes
                .extend_from_slice(format!("{line}\r\n").as_bytes());
        }
        out.bytes.extend_from_slice(b"\r\n");
        out
    })
}

/// One member of a JSON object as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    /// Between the quotes.
    pub key: String,
    pub value: String,
    /// From the key's first quote to the end of the value.
    pub whole: String,
}

impl Raw {
    /// The key as JSON readers see it.
    pub fn name(&self) -> String {
        serde_json::from_str(&format!("\"{}\"", self.key)).expect("a key")
    }
}

/// The members of a well-formed object, read one byte at a time.
pub fn members(text: &str) -> Vec<Raw> {
    let bytes = text.as_bytes();
    let space = |at: &mut usize| {
        while bytes[*at].is_ascii_whitespace() {
            *at += 1;
        }
    };
    let string = |at: &mut usize| {
        *at += 1;
        while bytes[*at] != b'"' {
            *at += if bytes[*at] == b'\\' { 2 } else { 1 };
        }
        *at += 1;
    };
    let mut out = vec![];
    let mut at = 0;
    space(&mut at);
    at += 1;
    loop {
        space(&mut at);
        match bytes[at] {
            b'}' => return out,
            b',' => at += 1,
            _ => {
                let start = at;
                string(&mut at);
                let key = text[start + 1..at - 1].to_owned();
                space(&mut at);
                at += 1;
                space(&mut at);
                let value = at;
                let mut depth = 0;
                while depth > 0 || !matches!(bytes[at], b',' | b'}' | b' ' | b'\n' | b'\r' | b'\t')
                {
                    match bytes[at] {
                        b'"' => {
                            string(&mut at);
                            continue;
                        }
                        b'[' | b'{' => depth += 1,
                        b']' | b'}' => depth -= 1,
                        _ => {}
                    }
                    at += 1;
                }
                out.push(Raw {
                    key,
                    value: text[value..at].to_owned(),
                    whole: text[start..at].to_owned(),
                });
            }
        }
    }
}

pub fn space() -> impl Strategy<Value = &'static str> {
    select(vec!["", "", "", " ", "\n", "\t\r\n  "])
}

/// A JSON string without its quotes.
pub fn string_text() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "a",
        "\u{e9}",
        "\u{1f600}",
        "\\n",
        "\\\"",
        "\\\\",
        "\\u0041",
        "\\ud83d\\ude00",
        "\\/",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\\u00e9",
        "\u{7f}",
        "stream",
    ]);
    prop::collection::vec(piece, 0..6).prop_map(|p| p.concat())
}

/// The text of a JSON value, nested up to three levels.
pub fn value_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        select(vec![
            "true",
            "false",
            "null",
            "0",
            "-1",
            "1.50",
            "12345678901234567890",
            "1E+2"
        ])
        .prop_map(str::to_owned),
        string_text().prop_map(|s| format!("\"{s}\"")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let list = (
            prop::collection::vec((space(), inner.clone(), space()), 0..4),
            space(),
        );
        let map = (
            prop::collection::vec((space(), string_text(), space(), inner, space()), 0..4),
            space(),
        );
        prop_oneof![
            list.prop_map(|(items, end)| {
                let items: Vec<_> = items
                    .into_iter()
                    .map(|(a, v, b)| format!("{a}{v}{b}"))
                    .collect();
                format!("[{}{end}]", items.join(","))
            }),
            map.prop_map(|(items, end)| {
                let items: Vec<_> = items
                    .into_iter()
                    .map(|(a, k, b, v, c)| format!("{a}\"{k}\"{b}:{v}{c}"))
                    .collect();
                format!("{{{}{end}}}", items.join(","))
            }),
        ]
    })
}

/// The text of an object whose keys repeat often, some of them written with escapes.
pub fn object_text() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        4 => select(vec![
            "stream", "str\\u0065am", "\\u0073\\u0074\\u0072eam", "n", "\\u006e", "max_tokens", "model", "",
            "\\\"stream", "stream\\u0000", "\\\\u006e", "N",
        ])
        .prop_map(str::to_owned),
        1 => string_text(),
    ];
    let member = (space(), key, space(), space(), value_text(), space());
    (
        space(),
        prop::collection::vec(member, 0..7),
        space(),
        space(),
    )
        .prop_map(|(before, members, inside, after)| {
            let members: Vec<_> = members
                .into_iter()
                .map(|(a, k, b, c, v, d)| format!("{a}\"{k}\"{b}:{c}{v}{d}"))
                .collect();
            let inside = if members.is_empty() { inside } else { "" };
            format!("{before}{{{}{inside}}}{after}", members.join(","))
        })
}
