//! How a prompt begins: its first words, for policies that send prompts with a common beginning to one
//! instance. Reads no further than it must, however long the prompt is.

use super::json::{self, Object};

/// Bytes of words at most: a text without spaces would be one word of many megabytes, and what follows
/// this much says little about who has the beginning cached.
const BYTES_MAX: usize = 16 << 10;

/// Bytes that are looked at in one go.
const STEP: usize = 4 << 10;

/// The types of parts that are text.
const TEXTS: [&[u8]; 3] = [b"\"text\"", b"\"input_text\"", b"\"output_text\""];

/// The first `count` words of the prompt (or of the messages' contents), each behind the other with one
/// space. A prompt that is no text is taken as Python would write it, as xPyD-proxy does.
pub fn first_words(body: &[u8], object: &Object, count: usize) -> String {
    let mut words = Words {
        out: String::new(),
        left: count,
        within: false,
    };
    let listed = |value: &&[u8]| value.starts_with(b"[");
    let input = object.get(body, "input");
    if let Some(messages) = object.get(body, "messages").or(input.filter(listed)) {
        for message in json::elements(messages) {
            let content = Object::scan(message, usize::MAX).ok();
            let content = content.and_then(|it| it.range(message, "content"));
            let more = content.is_none_or(|range| words.content(&message[range]));
            words.within = false;
            if !more {
                break;
            }
        }
    } else {
        match object.get(body, "prompt").or(input) {
            Some(text) if text.starts_with(b"\"") => _ = words.string(text),
            Some(b"null") | None => {}
            Some(other) => _ = words.written(other),
        }
    }
    words.out
}

struct Words {
    out: String,
    /// Words that may still begin.
    left: usize,
    /// In the middle of one.
    within: bool,
}

/// All of these say whether there is use for more.
impl Words {
    fn text(&mut self, text: &str) -> bool {
        // As Python splits: the separators of ASCII are space, too.
        let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
        let mut rest = text;
        loop {
            let end = rest.find(space).unwrap_or(rest.len());
            if end > 0 && !self.piece(&rest[..end]) {
                return false;
            }
            let Some(c) = rest[end..].chars().next() else {
                return true;
            };
            self.within = false;
            rest = &rest[end + c.len_utf8()..];
        }
    }

    /// Some of a word, or all.
    fn piece(&mut self, piece: &str) -> bool {
        if !self.within {
            if self.left == 0 {
                return false;
            }
            self.left -= 1;
            self.within = true;
            if !self.out.is_empty() {
                self.out.push(' ');
            }
        }
        let mut end = piece.len().min(BYTES_MAX.saturating_sub(self.out.len()));
        while !piece.is_char_boundary(end) {
            end -= 1;
        }
        self.out.push_str(&piece[..end]);
        end == piece.len()
    }

    /// A JSON string, quotes included.
    fn string(&mut self, value: &[u8]) -> bool {
        let raw = &value[1..value.len().saturating_sub(1).max(1)];
        let mut at = 0;
        while at < raw.len() {
            if raw[at] == b'\\' {
                let (c, used) = json::escape(&raw[at + 1..]);
                at += 1 + used;
                if !self.text(c.encode_utf8(&mut [0; 4])) {
                    return false;
                }
                continue;
            }
            let mut end = raw.len().min(at + STEP);
            // Not in the middle of a character.
            while end < raw.len() && raw[end] & 0xc0 == 0x80 {
                end += 1;
            }
            end = memchr::memchr(b'\\', &raw[at..end]).map_or(end, |found| at + found);
            if !self.text(&String::from_utf8_lossy(&raw[at..end])) {
                return false;
            }
            at = end;
        }
        true
    }

    /// A message's content: a text, or parts of which some are text.
    fn content(&mut self, value: &[u8]) -> bool {
        match value.first() {
            Some(b'"') => self.string(value),
            Some(b'[') => json::elements(value).all(|part| {
                self.within = false;
                let text = Object::scan(part, usize::MAX).ok();
                let text = text
                    .filter(|it| TEXTS.iter().any(|kind| it.get(part, "type") == Some(kind)))
                    .and_then(|it| it.range(part, "text"));
                let text = text.map(|range| &part[range]);
                text.is_none_or(|text| !text.starts_with(b"\"") || self.string(text))
            }),
            _ => true,
        }
    }

    /// Lists of tokens or texts, as Python writes them: `[1, 2]`, `['a', 'b']`.
    fn written(&mut self, value: &[u8]) -> bool {
        let mut at = 0;
        while at < value.len() {
            let start = at;
            let more = match value[at] {
                b'"' => {
                    at += 1;
                    while at < value.len() && value[at] != b'"' {
                        at += if value[at] == b'\\' { 2 } else { 1 };
                    }
                    at = (at + 1).min(value.len());
                    self.text("'") && self.string(&value[start..at]) && self.text("'")
                }
                b' ' | b'\t' | b'\r' | b'\n' => {
                    at += 1;
                    true
                }
                byte @ (b',' | b':') => {
                    at += 1;
                    self.text(if byte == b',' { ", " } else { ": " })
                }
                _ => {
                    let ends = |b: &u8| b"\",: \t\r\n".contains(b);
                    let length = value[at..].iter().position(ends);
                    at = length.map_or(value.len(), |n| at + n.max(1));
                    self.text(&String::from_utf8_lossy(&value[start..at]))
                }
            };
            if !more {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(body: &str, count: usize) -> String {
        let object = Object::scan(body.as_bytes(), 128).unwrap();
        first_words(body.as_bytes(), &object, count)
    }

    #[test]
    fn words_are_split_as_python_splits() {
        let body = r#"{"prompt":"  the \t quick\nbrown\u2003fox\u001cjumps \u00e9\ud83d\ude00 "}"#;
        assert_eq!(words(body, 99), "the quick brown fox jumps é😀");
        assert_eq!(words(body, 2), "the quick");
        assert_eq!(words(r#"{"prompt":""}"#, 9), "");
        assert_eq!(words(r#"{"prompt":null}"#, 9), "");
        assert_eq!(words(r#"{"model":"m"}"#, 9), "");
        assert_eq!(words(r#"{"prompt":"one two"}"#, 0), "");
    }

    #[test]
    fn contents_of_messages_are_joined() {
        let body = r#"{"messages":[
            {"role":"system","content":"be brief"}, {"role":"user","content":[
              {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},
              {"type":"text","text":"what is\tthis"}, {"type":"text","text":"?"}]},
            {"role":"assistant","content":null}, {"role":"user"}, {"content":"] , \"["}]}"#;
        assert_eq!(words(body, 99), "be brief what is this ? ] , \"[");
        assert_eq!(words(body, 3), "be brief what");
        assert_eq!(words(r#"{"messages":[]}"#, 3), "");
    }

    #[test]
    fn inputs_of_responses_are_prompts() {
        assert_eq!(words(r#"{"input":"be brief now"}"#, 2), "be brief");
        let body = r#"{"input":[{"role":"system","content":"be brief"},{"content":[
            {"type":"input_image","image_url":"data:image/png;base64,AAAA"},{"type":"input_text","text":"look"}]}]}"#;
        assert_eq!(words(body, 99), "be brief look");
    }

    #[test]
    fn prompts_that_are_lists_are_taken_as_python_writes_them() {
        assert_eq!(words(r#"{"prompt":[1,2, 30]}"#, 99), "[1, 2, 30]");
        assert_eq!(words(r#"{"prompt":[1,2,30]}"#, 2), "[1, 2,");
        assert_eq!(words(r#"{"prompt":["a b","c"]}"#, 99), "['a b', 'c']");
        assert_eq!(words(r#"{"prompt":[[1,2],[3]]}"#, 99), "[[1, 2], [3]]");
    }

    #[test]
    fn a_text_without_spaces_is_not_read_to_its_end() {
        let body = format!(r#"{{"prompt":"{}"}}"#, "字".repeat(1 << 20));
        let got = words(&body, 256);
        assert!(got.len() < BYTES_MAX + 4 && got.chars().all(|c| c == '字'));
    }

    /// Wherever the pieces are cut, the words are those of the whole.
    #[test]
    fn long_texts_are_read_in_pieces_that_never_show() {
        let text: String = (0..20_000)
            .map(|i| ["a", "é", " ", "\\n", "字", "\\u0041"][i * i % 7 % 6])
            .collect();
        let body = format!(r#"{{"prompt":"{text}"}}"#);
        let plain = json::string_value(format!("\"{text}\"").as_bytes())
            .unwrap()
            .into_owned();
        let plain = String::from_utf8(plain).unwrap();
        let wanted: Vec<&str> = plain.split_whitespace().take(3000).collect();
        let wanted = wanted.join(" ");
        let got = words(&body, 3000);
        assert!(wanted.starts_with(&got) && got.len() > 10_000);
    }
}
