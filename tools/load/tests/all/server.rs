//! A small blocking server: a thread per connection, and a closure that answers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use clap::Parser;
use pdload::args::Args;
use pdload::report::Report;

/// A request as the server got it.
pub struct Asked {
    pub head: String,
    pub body: Vec<u8>,
    /// How many came before it on this connection.
    pub number: usize,
}

/// Serves until the test ends. `answer` returns false to close the connection.
pub fn serve(answer: impl Fn(&mut TcpStream, &Asked) -> bool + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || connection(stream, &*answer));
        }
    });
    url
}

fn connection(mut stream: TcpStream, answer: &dyn Fn(&mut TcpStream, &Asked) -> bool) {
    stream.set_nodelay(true).unwrap();
    for number in 0.. {
        let Some(mut asked) = read_request(&mut stream) else {
            return;
        };
        asked.number = number;
        if !answer(&mut stream, &asked) {
            return;
        }
    }
}

fn read_request(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&part[..count]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = header(&head, "content-length")
            .unwrap()
            .parse::<usize>()
            .unwrap();
        let mut body = bytes.split_off(end + 4);
        let have = body.len();
        assert!(have <= length, "more than one request was sent");
        body.resize(length, 0);
        stream.read_exact(&mut body[have..]).ok()?;
        return Some(Asked {
            head,
            body,
            number: 0,
        });
    }
}

pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })
}

pub fn send(stream: &mut TcpStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).is_ok()
}

pub fn json_answer(stream: &mut TcpStream, text: &str) -> bool {
    let body = format!("{{\"choices\":[{{\"index\":0,\"text\":\"{text}\"}}]}}");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    send(
        stream,
        &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
    )
}

pub const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

pub fn chunk(stream: &mut TcpStream, data: &str) -> bool {
    let event = format!("data: {data}\n\n");
    send(stream, &format!("{:x}\r\n{event}\r\n", event.len()))
}

pub fn token(stream: &mut TcpStream, text: &str) -> bool {
    chunk(
        stream,
        &format!("{{\"choices\":[{{\"index\":0,\"text\":\"{text}\"}}]}}"),
    )
}

pub fn finish(stream: &mut TcpStream) -> bool {
    chunk(stream, "[DONE]") && send(stream, "0\r\n\r\n")
}

/// Runs pdload with the words of `line`.
pub fn load(url: &str, line: &str) -> Report {
    let words = ["pdload", "--url", url]
        .into_iter()
        .chain(line.split_whitespace());
    pdload::run::run(Args::parse_from(words)).unwrap()
}
