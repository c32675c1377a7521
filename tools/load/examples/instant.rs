//! A server that answers at once, to find the limit of pdload itself.
//!
//! `instant PORT CPU [CHUNKS]`: one JSON answer per request, or a stream of CHUNKS events in one write.

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};
use pdload::args::Driver;
use pdload::ring::{Ring, pin};

fn main() {
    let mut words = std::env::args()
        .skip(1)
        .map(|word| word.parse::<usize>().expect("a number"));
    let port = words.next().expect("PORT");
    pin(&[words.next().expect("CPU")]).expect("CPU exists");
    let answer: &'static [u8] = answer(words.next().unwrap_or(0)).leak();
    let mut ring = Ring::build(Driver::Auto).expect("ring");
    ring.block_on(async move {
        let options = ListenerOpts::new().backlog(4096);
        let listener =
            TcpListener::bind_with_config(format!("127.0.0.1:{port}"), &options).expect("port");
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            monoio::spawn(serve(stream, answer));
        }
    });
}

fn answer(chunks: usize) -> Vec<u8> {
    const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"text\":\" word\"}]}\n\n";
    if chunks == 0 {
        let body = "{\"choices\":[{\"index\":0,\"text\":\" word\"}]}";
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
        return format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes();
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked";
    let mut text = format!("{head}\r\n\r\n");
    for _ in 0..chunks {
        text += &format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
    }
    text += "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    text.into_bytes()
}

/// Knows only what pdload sends: requests that arrive whole, or in parts, with a Content-Length.
async fn serve(mut stream: TcpStream, answer: &'static [u8]) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut missing = 0usize;
    loop {
        let (result, filled) = stream.read(buffer).await;
        buffer = filled;
        let Ok(count @ 1..) = result else { return };
        missing = match missing {
            0 => {
                let head = memchr::memmem::find(&buffer[..count], b"\r\n\r\n").expect("a head");
                let key = b"Content-Length: ";
                let at = memchr::memmem::find(&buffer, key).expect("a length") + key.len();
                let digits = std::str::from_utf8(&buffer[at..head]).expect("last in the head");
                (head + 4 + digits.parse::<usize>().expect("digits")).saturating_sub(count)
            }
            left => left.saturating_sub(count),
        };
        if missing == 0 && stream.write_all(answer).await.0.is_err() {
            return;
        }
    }
}
