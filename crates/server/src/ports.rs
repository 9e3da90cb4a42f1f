//! Listening sockets, bound before anything else happens.
//!
//! A process that cannot have all its ports must leave no trace, so they are bound before the data
//! folder is touched, and held from then on: nobody can take one in between. Connections that
//! arrive while the node recovers wait in the kernel's queue. `SO_REUSEADDR` lets a successor
//! start while connections of its predecessor linger; without `SO_REUSEPORT` a second process is
//! always refused.

use std::net::{IpAddr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::error::StartError;

/// Connections that the kernel keeps for us while we are not accepting.
const BACKLOG: i32 = 1024;

/// The sockets of a node.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// RESP and FLUX.
    pub(crate) resp: TcpListener,
    pub(crate) grpc: TcpListener,
    pub(crate) admin: TcpListener,
    /// Other nodes; none if this one is alone.
    pub(crate) peer: Option<TcpListener>,
}

/// Where a node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// RESP and FLUX.
    pub resp: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
    /// `/metrics`, `/healthz`, `/readyz`.
    pub admin: SocketAddr,
    /// Other nodes; none if this one is alone.
    pub peer: Option<SocketAddr>,
}

/// A free port for other nodes, held from now until its node takes it: nodes that start together
/// must be told each other's addresses before any of them runs.
#[derive(Debug)]
pub struct PeerPort {
    listener: TcpListener,
    address: SocketAddr,
}

impl PeerPort {
    /// Takes any free port.
    ///
    /// # Errors
    /// When the system has none.
    pub fn reserve(bind: IpAddr) -> Result<Self, StartError> {
        let listener = listen(SocketAddr::new(bind, 0), "peer-port")?;
        let address = address_of(&listener)?;
        Ok(Self { listener, address })
    }

    /// Where its node will be reached.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Listeners {
    /// Binds all of them, or none. The peer port may have been reserved before.
    pub(crate) fn bind(config: &Config, peer: Option<PeerPort>) -> Result<Self, StartError> {
        let bind = |key, port| listen(SocketAddr::new(config.bind, port), key);
        Ok(Self {
            resp: bind("port", config.port)?,
            grpc: bind("grpc-port", config.grpc_port)?,
            admin: bind("admin-port", config.admin_port)?,
            peer: match (config.node_id, peer) {
                (0, _) => None,
                (_, Some(reserved)) => Some(reserved.listener),
                (_, None) => Some(bind("peer-port", config.peer_port)?),
            },
        })
    }

    pub(crate) fn addresses(&self) -> Result<Addresses, StartError> {
        Ok(Addresses {
            resp: address_of(&self.resp)?,
            grpc: address_of(&self.grpc)?,
            admin: address_of(&self.admin)?,
            peer: self.peer.as_ref().map(address_of).transpose()?,
        })
    }
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::System {
        what: "failed to ask a listener for its address",
        source,
    })
}

fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, StartError> {
    let open = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|source| StartError::Port {
        address,
        key,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_the_flag_that_changes_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let config = Config {
            port: 0,
            grpc_port: port,
            admin_port: 0,
            ..Config::default()
        };
        let error = Listeners::bind(&config, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "port {port} is taken (another process listens on 127.0.0.1:{port}); \
                 choose another with --grpc-port"
            )
        );
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_reserved_port_is_taken_by_nobody_but_its_node() {
        let reserved = PeerPort::reserve([127, 0, 0, 1].into()).unwrap();
        let address = reserved.address();
        let config = Config {
            node_id: 1,
            peer_port: address.port(),
            port: 0,
            grpc_port: 0,
            admin_port: 0,
            ..Config::default()
        };
        let error = Listeners::bind(&config, None).unwrap_err();
        assert!(
            matches!(
                error,
                StartError::Port {
                    key: "peer-port",
                    ..
                }
            ),
            "{error}"
        );
        let listeners = Listeners::bind(&config, Some(reserved)).unwrap();
        assert_eq!(listeners.addresses().unwrap().peer, Some(address));
    }

    #[test]
    fn a_port_that_another_process_shares_is_taken_all_the_same() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(1).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        assert!(listen(address, "port").is_err());
    }
}
