//! Names: where an address is. Looking a name up keeps a thread for as long as its servers take, which may
//! be half a minute: [`resolve`] is for threads that may wait, [`resolve_aside`] for those that may not.

use std::net::ToSocketAddrs;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use super::literal;
use crate::config::{Address, Url};
use crate::net::runtime::Driver;
use crate::net::stream::{Stream, Target};

/// Blocks.
pub fn resolve(address: &Address) -> Vec<Target> {
    match address {
        Address::Unix(path) => vec![Target::Unix(path.clone())],
        Address::Tcp { host, port } | Address::Url(Url { host, port, .. }) => {
            (host.as_str(), *port)
                .to_socket_addrs()
                .map(|found| found.map(Target::Tcp).collect())
                .unwrap_or_default()
        }
    }
}

/// On a thread of its own, while whoever waits here serves others.
pub async fn resolve_aside(address: &Address) -> Vec<Target> {
    let known = literal(address);
    if !known.is_empty() {
        return known;
    }
    let found = Arc::new(Mutex::new(Vec::new()));
    let Ok((ear, mouth)) = UnixStream::pair() else {
        return Vec::new();
    };
    let (to, address) = (found.clone(), address.clone());
    let look = move || {
        let targets = resolve(&address);
        *to.lock().unwrap_or_else(PoisonError::into_inner) = targets;
        // The other end now reads the end.
        drop(mouth);
    };
    let thread = std::thread::Builder::new().name("lookup".into());
    if thread.spawn(look).is_err() {
        return Vec::new();
    }
    if let Ok(ear) = Stream::from_unix(ear.into(), Driver::Epoll) {
        let _ = ear.read(Vec::with_capacity(1)).await;
    }
    std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_from_where_nothing_may_wait() {
        let mut runtime = crate::net::runtime::control().unwrap();
        let found = |text: &str| {
            let address = Address::parse(text).unwrap();
            runtime.block_on(resolve_aside(&address))
        };
        let at = |ip: [u8; 4]| Target::Tcp((ip, 7).into());
        let [literal, name, none] =
            ["10.0.0.1:7", "localhost:7", "no-such-host.invalid:7"].map(found);
        assert_eq!(literal, [at([10, 0, 0, 1])]);
        assert!(name.contains(&at([127, 0, 0, 1])), "{name:?}");
        assert_eq!(none, []);
    }
}
