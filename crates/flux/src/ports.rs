//! Probing of ports, before anything is created: a process that cannot listen on all of its ports
//! must leave no trace.
//!
//! The probe sets `SO_REUSEADDR` and not `SO_REUSEPORT`: connections of a process that has just
//! ended never refuse its successor, and a second process is always refused, even where the
//! listeners themselves share their port among threads.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::settings::reason;

/// Binds every port for a moment; all of them at once, so that each stands for itself.
///
/// # Errors
/// One line for each port that is taken or may not be had, naming the flag that changes it.
pub(crate) fn probe(bind: IpAddr, ports: &[(&'static str, u16)]) -> Result<(), Vec<String>> {
    let mut held = Vec::new();
    let mut problems = Vec::new();
    for (flag, port) in ports {
        let address = SocketAddr::new(bind, *port);
        match listen(address) {
            Ok(socket) => held.push(socket),
            Err(error) => problems.push(format!(
                "--{flag} {port}: cannot listen on {address}: {}; choose another with --{flag} or FLUX_{}",
                reason(&error),
                flag.to_uppercase().replace('-', "_"),
            )),
        }
    }
    drop(held);
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems)
    }
}

fn listen(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn free_ports_pass_and_stay_free() {
        probe(LOOPBACK, &[("port", 0), ("grpc-port", 0)]).unwrap();
        let port = std::net::TcpListener::bind((LOOPBACK, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        probe(LOOPBACK, &[("port", port)]).unwrap();
        probe(LOOPBACK, &[("port", port)]).unwrap();
    }

    #[test]
    fn every_taken_port_is_named_with_its_flag() {
        let taken = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let problems = probe(
            LOOPBACK,
            &[("port", port), ("http-port", 0), ("admin-port", port)],
        );
        let problems = problems.unwrap_err();
        assert_eq!(problems.len(), 2);
        assert!(
            problems[0].starts_with(&format!("--port {port}: cannot listen on 127.0.0.1:{port}"))
        );
        assert!(
            problems[1].contains("--admin-port or FLUX_ADMIN_PORT"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_port_shared_among_threads_is_taken_all_the_same() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::new(LOOPBACK, 0).into()).unwrap();
        socket.listen(1).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        assert!(probe(LOOPBACK, &[("port", port)]).is_err());
    }
}
