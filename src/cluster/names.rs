//! Names: where an address is. Looking a name up keeps a thread for as long as its servers take, which may
//! be half a minute: [`resolve`] is for threads that may wait, [`resolve_aside`] for those that may not.

use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{Address, Url};
use crate::net::runtime::Driver;
use crate::net::stream::{Stream, Target};

/// Of an address that needs no looking up; else nothing.
pub fn literal(address: &Address) -> Vec<Target> {
    match address {
        Address::Unix(path) => vec![Target::Unix(path.clone())],
        Address::Tcp { host, port } | Address::Url(Url { host, port, .. }) => {
            let ip: Result<IpAddr, _> = host.parse();
            ip.map(|ip| vec![Target::Tcp((ip, *port).into())])
                .unwrap_or_default()
        }
    }
}

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
