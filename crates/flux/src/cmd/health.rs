//! `flux health`: asks the admin port whether everything is ready, for scripts and containers that
//! have no HTTP client.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::args::Run;
use crate::settings::{read_layers, reason, resolve_each};
use crate::{Failure, out};

/// A probe that takes longer has its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than `/readyz` says about 64 shards.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Asks `/readyz` and says what it says.
///
/// # Errors
/// When it is not ready, or nobody answers.
pub(crate) fn run(run: Run) -> Result<(), Failure> {
    let parts = run.parts;
    let settings = resolve_each(&read_layers(run.config, run.flags)?, parts)?.settings;
    let host = match settings.bind {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) | IpAddr::V6(_) => settings.bind,
    };
    let address = SocketAddr::new(host, settings.admin_port_for(parts));
    let (status, body) = ask(address)
        .map_err(|error| Failure::Failed(format!("http://{address}/readyz: {}", reason(&error))))?;
    let first = body.lines().next().unwrap_or_default();
    if status == 200 {
        out::line("ready");
        Ok(())
    } else {
        Err(Failure::Failed(format!(
            "http://{address}/readyz: {status} {first}"
        )))
    }
}

/// One request of HTTP/1.0, which ends with the connection.
fn ask(address: SocketAddr) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| std::io::Error::other("the answer is not HTTP"))?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn the_answer_is_status_and_body() {
        let address = answering("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n");
        assert_eq!(ask(address).unwrap(), (200, "ok\n".to_owned()));
        let address = answering("HTTP/1.1 503 Service Unavailable\r\n\r\nshard 0 cannot write\n");
        assert_eq!(
            ask(address).unwrap(),
            (503, "shard 0 cannot write\n".to_owned())
        );
        assert!(ask(answering("FLX1\0\0")).is_err());
    }
}
