//! Connecting to another node.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Connects to `HOST:PORT`, without delay for small messages.
///
/// # Errors
/// If there is nobody, or not in time.
///
/// # Cancellation
/// Safe to drop.
pub(super) async fn dial(address: &str) -> io::Result<TcpStream> {
    let connecting = async { TcpStream::connect(&look_up(address).await?[..]).await };
    let stream = match tokio::time::timeout(LIMIT, connecting).await {
        Ok(connected) => connected?,
        Err(_) => {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no connection in time",
            ));
        }
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The addresses of a name. A resolver may block for many seconds, above all for the name of a node
/// that is gone: on the runtime's own threads for such work it would hold up the runtime's end, and so
/// the node's.
async fn look_up(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (tell, told) = oneshot::channel();
    let address = address.to_owned();
    let thread = std::thread::Builder::new().name("flux-lookup".to_owned());
    thread.spawn(move || {
        let found = address.to_socket_addrs().map(Iterator::collect);
        // Whoever has asked may have given up.
        drop(tell.send(found));
    })?;
    told.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn names_and_addresses_are_found_and_strangers_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        for host in ["127.0.0.1", "localhost"] {
            let stream = dial(&format!("{host}:{port}")).await.expect("it listens");
            assert!(stream.nodelay().expect("connected"));
        }
        for nobody in ["name.invalid:1", "nonsense"] {
            assert!(dial(nobody).await.is_err(), "{nobody}");
        }
    }
}
