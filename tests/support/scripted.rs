//! An engine that answers with bytes of the test's choosing, for what the simulator is too well-behaved to
//! say. Health probes are answered and not kept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What comes back for one request.
pub enum Say {
    /// These bytes; the connection stays open.
    Bytes(Vec<u8>),
    /// These bytes, then a clean end of the connection.
    Close(Vec<u8>),
    /// These pieces, with a pause before each but the first; the connection stays open.
    Slowly(Vec<Vec<u8>>, std::time::Duration),
    /// These bytes, then a reset.
    Reset(Vec<u8>),
}

/// Dropped: it accepts nothing more.
pub struct Scripted {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Scripted {
    /// `answer` is given the number of the request and all of its bytes.
    pub fn start(answer: impl Fn(usize, &str) -> Say + Send + Sync + 'static) -> Scripted {
        Scripted::start_at("127.0.0.1:0", answer)
    }

    /// The same at a place that something demands.
    pub fn start_at(
        place: &str,
        answer: impl Fn(usize, &str) -> Say + Send + Sync + 'static,
    ) -> Scripted {
        let listener = TcpListener::bind(place).expect("a port");
        let address = listener.local_addr().expect("its address");
        let (requests, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let engine = Scripted {
            address,
            requests: Arc::clone(&requests),
            stop: stop.clone(),
        };
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (requests, answer) = (Arc::clone(&requests), answer.clone());
                std::thread::spawn(move || serve(stream, &requests, &*answer));
            }
        });
        engine
    }

    /// All requests so far: head and body as received.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// The bodies of all requests so far.
    pub fn bodies(&self) -> Vec<String> {
        let body = |r: String| r.split_once("\r\n\r\n").map(|(_, b)| b.to_owned());
        self.requests().into_iter().filter_map(body).collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    mut stream: TcpStream,
    requests: &Mutex<Vec<String>>,
    answer: &(dyn Fn(usize, &str) -> Say + Send + Sync),
) {
    let mut rest = Vec::new();
    while let Some(request) = request(&mut stream, &mut rest) {
        let probe = request.starts_with("GET /health ")
            // What an instance serves; not a client's question.
            || (request.starts_with("GET /v1/models ") && request.contains("user-agent: pdrelay\r\n"));
        let say = if probe {
            Say::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec())
        } else {
            let mut requests = requests.lock().unwrap();
            requests.push(request.clone());
            let number = requests.len() - 1;
            drop(requests);
            answer(number, &request)
        };
        let one;
        let (pieces, pause) = match &say {
            Say::Bytes(bytes) | Say::Close(bytes) | Say::Reset(bytes) => {
                one = vec![bytes.clone()];
                (&one, std::time::Duration::ZERO)
            }
            Say::Slowly(pieces, pause) => (pieces, *pause),
        };
        for (number, piece) in pieces.iter().enumerate() {
            if number > 0 {
                std::thread::sleep(pause);
            }
            if stream.write_all(piece).is_err() {
                return;
            }
        }
        match say {
            Say::Bytes(_) | Say::Slowly(..) => {}
            Say::Close(_) => return,
            Say::Reset(_) => {
                // Let what was written arrive: a reset takes it away.
                std::thread::sleep(std::time::Duration::from_millis(20));
                let linger = Some(std::time::Duration::ZERO);
                let _ = socket2::SockRef::from(&stream).set_linger(linger);
                return;
            }
        }
    }
}

fn request(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Option<String> {
    let mut piece = [0u8; 16 << 10];
    loop {
        if let Some(end) = super::find(rest, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok())
                .unwrap_or(0usize);
            if rest.len() >= end + 4 + length {
                let all: Vec<u8> = rest.drain(..end + 4 + length).collect();
                return Some(String::from_utf8_lossy(&all).into_owned());
            }
        }
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => rest.extend_from_slice(&piece[..n]),
            _ => return None,
        }
    }
}

/// A whole answer with a length.
pub fn answer(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
