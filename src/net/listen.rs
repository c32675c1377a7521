//! Listening: one `SO_REUSEPORT` socket per shard.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Connections waiting to be accepted, per shard; the kernel caps it at `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Binds one listener per shard to the same address; port 0 is chosen once. Before that it makes sure
/// that nobody else has the port: with `SO_REUSEPORT` a second process would silently share it.
pub fn bind(address: SocketAddr, shards: usize) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 {
        drop(bind_one(address, false)?);
    }
    let first = bind_one(address, true)?;
    let bound = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..shards {
        listeners.push(bind_one(bound, true)?);
    }
    Ok(listeners)
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        // `::` serves IPv4 too, as users of `--host ::` expect.
        let _ = socket.set_only_v6(false);
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    if shared {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// Has the kernel give this listener of a group the connections whose packets the CPU works on, so that packets, socket
/// and shard share a cache. A CPU that no listener of the group names gets any of them.
pub fn prefer_packets_of(listener: &TcpListener, cpu: usize) {
    // Refused by no kernel that has SO_REUSEPORT groups; without it connections are spread as before.
    let _ = socket2::SockRef::from(listener).set_cpu_affinity(cpu);
}
