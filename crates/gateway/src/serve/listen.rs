//! Listening sockets: one per worker on the same port, so that the kernel spreads connections.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel holds for a worker that is busy.
const BACKLOG: i32 = 1_024;

/// Opens `count` listeners on one address; with port 0 all get the port that the first was given.
///
/// # Errors
/// What the system says, with the address meant. A port on which another process listens is
/// refused even if that process would share it.
pub(crate) fn open(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, io::Error> {
    // Sockets that share a port do not notice a stranger on it; one that does not share does.
    drop(listener(address, false)?);
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let socket = listener(address, true)?;
        address = socket.local_addr()?;
        listeners.push(socket);
    }
    Ok(listeners)
}

fn listener(address: SocketAddr, is_shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_listeners_have_the_same_port_and_strangers_are_refused() {
        let listeners = open("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(
            listeners
                .iter()
                .all(|one| one.local_addr().unwrap() == address)
        );
        assert_eq!(
            open(address, 1).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(listeners);
        assert!(open(address, 1).is_ok());
    }
}
