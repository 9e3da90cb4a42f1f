//! Where a broker is: an AMQP URL, read with humane defaults, shown without its password.

use std::fmt;

use lapin::uri::{AMQPScheme, AMQPUri};

/// Heartbeat if the URL names none, in seconds: a dead peer is noticed within twice of it.
const HEARTBEAT_SECONDS: u16 = 10;

/// An AMQP URL: `amqp://USER:PASSWORD@HOST:PORT/VHOST`.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    uri: AMQPUri,
}

impl Address {
    /// Reads a URL. Without a port 5672, without a user guest, without a virtual host `/`.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = |why: &str| {
            format!("not an AMQP URL such as amqp://user:password@127.0.0.1:5672/vhost: {why}")
        };
        if !text.starts_with("amqp://") && !text.starts_with("amqps://") {
            return Err(expected("it must begin with amqp://"));
        }
        let mut uri: AMQPUri = text
            .parse()
            .map_err(|_| expected("host, port or escapes cannot be read"))?;
        if uri.scheme == AMQPScheme::AMQPS {
            return Err("amqps:// (TLS to the broker) is not supported: use amqp://".to_owned());
        }
        // The library knows an IPv6 address only by its absence.
        if let Some((_, rest)) = text.split_once('[')
            && let Some((host, _)) = rest.split_once(']')
        {
            host.clone_into(&mut uri.authority.host);
        }
        if uri.authority.host.is_empty() {
            return Err(expected("there is no host"));
        }
        if uri.vhost.is_empty() {
            "/".clone_into(&mut uri.vhost);
        }
        // The protocol counts a virtual host in one byte.
        if uri.vhost.len() > usize::from(u8::MAX) {
            return Err(expected("the virtual host is longer than 255 bytes"));
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        Ok(Self { uri })
    }

    /// As the client library wants it.
    pub(super) fn uri(&self) -> AMQPUri {
        self.uri.clone()
    }

    /// The name of the virtual host.
    #[must_use]
    pub fn vhost(&self) -> &str {
        &self.uri.vhost
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri {
            authority, vhost, ..
        } = &self.uri;
        let user = &authority.userinfo.username;
        let slash = if vhost == "/" { "" } else { vhost };
        if authority.host.contains(':') {
            write!(f, "amqp://{user}@[{}]", authority.host)?;
        } else {
            write!(f, "amqp://{user}@{}", authority.host)?;
        }
        write!(f, ":{}/{slash}", authority.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        Address::parse(text).unwrap().to_string()
    }

    #[test]
    fn a_url_is_read_with_defaults_and_shown_without_its_password() {
        assert_eq!(shown("amqp://localhost"), "amqp://guest@localhost:5672/");
        assert_eq!(
            shown("amqp://flux:s3cret@10.0.0.7:5673/prod"),
            "amqp://flux@10.0.0.7:5673/prod"
        );
        assert_eq!(shown("amqp://a:b@h:1/%2f"), "amqp://a@h:1/");
        assert_eq!(shown("amqp://a:b@h:1/"), "amqp://a@h:1/");
        assert_eq!(shown("amqp://a:b@[::1]:7/v"), "amqp://a@[::1]:7/v");
        let address = Address::parse("amqp://flux:s3cret@h/").unwrap();
        assert!(!format!("{address:?} {address}").contains("s3cret"));
        assert_eq!(address.uri().authority.userinfo.password, "s3cret");
        assert_eq!((address.vhost(), address.uri().authority.port), ("/", 5672));
    }

    #[test]
    fn a_mistake_is_told_without_the_url() {
        let long = format!("amqp://u:s3cret@h/{}", "v".repeat(256));
        for text in [
            "",
            "localhost:5672",
            "http://u:s3cret@h/",
            "amqps://u:s3cret@h/",
            "amqp://u:s3cret@h:port/",
            "amqp://u:s3cret@h:99999/",
            "amqp://u:s3cret%zz@h\u{0}/",
            &long,
        ] {
            let problem = Address::parse(text).unwrap_err();
            assert!(
                problem.contains("amqp://") && !problem.contains("s3cret"),
                "{text}: {problem}"
            );
        }
    }
}
