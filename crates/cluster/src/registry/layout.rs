//! What stands in the registry: keys and values, written exactly and read tolerantly.
//!
//! The layout is that of etcd's official gRPC naming (`client/v3/naming`), so that any client which
//! knows that one finds our nodes: `flux/services/<package.Service>/<id>` holds
//! `{"Op":0,"Addr":"host:port","Metadata":null}`. `Metadata` is always written as `null`, because an
//! object there panics older Go clients; what else there is to say about a node stands under
//! `flux/nodes/<id>`. Keys have no leading slash, since that client cuts one off. It also looks for
//! its target without the slash that should follow, so no service's name may be the beginning of
//! another's.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::endpoint::{Endpoint, WEIGHT_DEFAULT};

/// Largest weight that is believed.
const WEIGHT_MAX: u32 = 1_000;
/// Longest id, service or prefix.
const NAME_BYTES_MAX: usize = 256;
/// Longest value that is looked at.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// One registration: an address, for some services, and what there is to know about the node.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// Tells this instance from the others of its services.
    pub id: String,
    /// Full names of the services that can be called there. None: only the node's key is written.
    pub services: Vec<String>,
    /// `host:port`; an IPv6 host in brackets.
    pub address: String,
    /// What is written under the node's key; `None` leaves that key out.
    pub node: Option<NodeEntry>,
}

/// What is written about a node beside its services' addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeEntry {
    /// As in the key.
    pub id: String,
    /// `host:port` of gRPC.
    pub grpc: String,
    /// `host:port` of RESP and FLUX.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resp: String,
    /// `host:port` of HTTP, if there is a gateway in the process.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub http: String,
    /// `host:port` of the admin port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub admin: String,
    /// Where it stands.
    pub zone: String,
    /// Its share of the calls.
    pub weight: u32,
    /// What runs there.
    pub version: String,
    /// How many shards its data is in; 0: it has no data.
    pub shards: u32,
    /// Whether it waits to take over and wants no calls.
    pub standby: bool,
    /// Milliseconds since the Unix epoch.
    pub started_at: u64,
}

/// One key with its value.
pub(crate) type Entry = (String, String);

/// The value of a service's key, in the order and spelling of the Go struct.
#[derive(Serialize)]
struct GoEndpoint<'a> {
    #[serde(rename = "Op")]
    op: u8,
    #[serde(rename = "Addr")]
    address: &'a str,
    #[serde(rename = "Metadata")]
    metadata: Option<()>,
}

impl Registration {
    /// Everything that is written, in one transaction.
    pub(crate) fn entries(&self, prefix: &str) -> Vec<Entry> {
        let value = json(&GoEndpoint {
            op: 0,
            address: &self.address,
            metadata: None,
        });
        let services = self
            .services
            .iter()
            .map(|service| (service_key(prefix, service, &self.id), value.clone()));
        let node = self
            .node
            .iter()
            .map(|node| (node_key(prefix, &self.id), json(node)));
        services.chain(node).collect()
    }

    /// Judges names and address.
    ///
    /// # Errors
    /// What is wrong, as a sentence fragment.
    pub fn validate(&self) -> Result<(), String> {
        check_id(&self.id)?;
        for service in &self.services {
            check_service(service)?;
        }
        check_address(&self.address)
    }
}

fn json(value: &impl Serialize) -> String {
    // Plain structs of strings and numbers: there is nothing that JSON could not hold.
    serde_json::to_string(value).unwrap_or_default()
}

/// `flux/services/<service>/`: the slash keeps `a.Kv` from matching `a.KvAdmin`.
pub(crate) fn service_prefix(prefix: &str, service: &str) -> String {
    format!("{prefix}/services/{service}/")
}

fn service_key(prefix: &str, service: &str, id: &str) -> String {
    format!("{}{id}", service_prefix(prefix, service))
}

fn node_key(prefix: &str, id: &str) -> String {
    format!("{prefix}/nodes/{id}")
}

/// Checks an instance's id.
///
/// # Errors
/// What is wrong, as a sentence fragment.
pub fn check_id(id: &str) -> Result<(), String> {
    let is_sound = !id.is_empty()
        && id.len() <= NAME_BYTES_MAX
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':'));
    if is_sound {
        return Ok(());
    }
    Err(format!(
        "{id:?} is not a name of letters, digits, '.', '_', '-' and ':'"
    ))
}

/// Checks a service's full name.
///
/// # Errors
/// What is wrong, as a sentence fragment.
pub fn check_service(service: &str) -> Result<(), String> {
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if service.len() <= NAME_BYTES_MAX && service.split('.').all(is_word) {
        return Ok(());
    }
    Err(format!(
        "{service:?} is not the full name of a service, as in \"package.Service\""
    ))
}

/// Checks the prefix of all keys.
///
/// # Errors
/// What is wrong, as a sentence fragment.
pub fn check_prefix(prefix: &str) -> Result<(), String> {
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    if prefix.len() <= NAME_BYTES_MAX && prefix.split('/').all(is_word) {
        return Ok(());
    }
    Err(format!(
        "{prefix:?} is not a prefix such as \"flux\" or \"prod/flux\": no slash at its ends"
    ))
}

/// Checks `host:port`.
///
/// # Errors
/// What is wrong, as a sentence fragment.
pub fn check_address(address: &str) -> Result<(), String> {
    let wrong = || format!("{address:?} is not host:port");
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Err(wrong());
    }
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if let Some(inside) = bracketed {
        let is_ipv6 = inside.parse::<std::net::Ipv6Addr>().is_ok();
        return if is_ipv6 { Ok(()) } else { Err(wrong()) };
    }
    if host.contains(':') {
        return Err(format!(
            "{address:?} is not host:port: an IPv6 address stands in brackets"
        ));
    }
    let is_host = !host.is_empty()
        && host.len() <= NAME_BYTES_MAX
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if is_host { Ok(()) } else { Err(wrong()) }
}

/// `host:port`, with brackets where they are needed.
#[must_use]
pub fn address_of(host: &str, port: u16) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Reads the value of a service's key as anybody may have written it: JSON with `Addr` (Go's
/// naming), `address` (others), with or without `Op` and `Metadata`, or a bare `host:port`.
/// `Metadata` may be `null`, a string, or an object of which `weight` and `zone` are used.
///
/// # Errors
/// Why it is not an endpoint, as a sentence fragment for the log.
pub(crate) fn parse_endpoint(value: &[u8]) -> Result<Endpoint, String> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("it has {} bytes", value.len()));
    }
    let text = std::str::from_utf8(value).map_err(|_| "it is not UTF-8".to_owned())?;
    let text = text.trim();
    if !text.starts_with('{') {
        let bare = text.trim_matches('"');
        check_address(bare)?;
        return Ok(Endpoint::at(bare));
    }
    let json: Value = serde_json::from_str(text).map_err(|_| "it is not JSON".to_owned())?;
    let field = |names: &[&str]| names.iter().find_map(|name| json.get(name));
    if field(&["Op", "op"]).and_then(Value::as_u64) == Some(1) {
        return Err("it says that it is deleted".to_owned());
    }
    let address = field(&["Addr", "addr", "Address", "address"])
        .and_then(Value::as_str)
        .ok_or("it has no \"Addr\"")?;
    check_address(address)?;
    let mut endpoint = Endpoint::at(address);
    let own = |name: &str| {
        let metadata = field(&["Metadata", "metadata"]).and_then(|metadata| metadata.get(name));
        metadata.or_else(|| json.get(name))
    };
    if let Some(weight) = own("weight") {
        endpoint.weight = weight_of(weight);
    }
    if let Some(zone) = own("zone").and_then(Value::as_str) {
        zone.clone_into(&mut endpoint.zone);
    }
    Ok(endpoint)
}

/// A weight as a number, or as a number in a string.
fn weight_of(value: &Value) -> u32 {
    let number = value
        .as_u64()
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    number
        .and_then(|weight| u32::try_from(weight).ok())
        .map_or(WEIGHT_DEFAULT, |weight| weight.clamp(1, WEIGHT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(id: &str, services: &[&str]) -> Registration {
        Registration {
            id: id.to_owned(),
            services: services.iter().map(|name| (*name).to_owned()).collect(),
            address: "10.0.0.7:7001".to_owned(),
            node: None,
        }
    }

    #[test]
    fn a_registration_is_written_as_the_official_naming_writes_it() {
        let mut registration = registration("n1", &["flux.kv.v1.Kv"]);
        assert_eq!(
            registration.entries("flux"),
            [(
                "flux/services/flux.kv.v1.Kv/n1".to_owned(),
                r#"{"Op":0,"Addr":"10.0.0.7:7001","Metadata":null}"#.to_owned()
            )]
        );
        registration.node = Some(NodeEntry {
            id: "n1".to_owned(),
            grpc: "10.0.0.7:7001".to_owned(),
            weight: 1,
            ..NodeEntry::default()
        });
        let entries = registration.entries("flux");
        assert_eq!(entries[1].0, "flux/nodes/n1");
        let node: NodeEntry = serde_json::from_str(&entries[1].1).unwrap();
        assert_eq!(Some(node), registration.node);
        assert!(entries.iter().all(|(key, _)| !key.starts_with('/')));
    }

    #[test]
    fn what_others_write_is_read() {
        let zoned = |weight, zone: &str| Endpoint {
            address: "h:1".to_owned(),
            weight,
            zone: zone.to_owned(),
        };
        for (value, expected) in [
            (r#"{"Op":0,"Addr":"h:1","Metadata":null}"#, zoned(1, "")),
            (r#"{"Addr":"h:1"}"#, zoned(1, "")),
            (r#"{"Op":0,"Addr":"h:1","Metadata":"blue"}"#, zoned(1, "")),
            (
                r#"{"Op":0,"Addr":"h:1","Metadata":{"weight":3,"zone":"a"}}"#,
                zoned(3, "a"),
            ),
            (r#"{"Addr":"h:1","Metadata":{"weight":"7"}}"#, zoned(7, "")),
            (r#"{"Addr":"h:1","Metadata":{"weight":-3}}"#, zoned(1, "")),
            (r#"{"Addr":"h:1","Metadata":{"weight":0}}"#, zoned(1, "")),
            (
                r#"{"network":"tcp","address":"h:1","weight":10}"#,
                zoned(10, ""),
            ),
            ("h:1", zoned(1, "")),
            (" h:1\n", zoned(1, "")),
            ("\"h:1\"", zoned(1, "")),
        ] {
            assert_eq!(parse_endpoint(value.as_bytes()), Ok(expected), "{value}");
        }
        let ipv6 = parse_endpoint(br#"{"Addr":"[::1]:50052"}"#).unwrap();
        assert_eq!(ipv6.address, "[::1]:50052");
    }

    #[test]
    fn what_is_not_an_endpoint_says_why() {
        for (value, part) in [
            (&b"{"[..], "not JSON"),
            (b"{\"Addr\":7}", "no \"Addr\""),
            (b"{\"Op\":1,\"Addr\":\"h:1\"}", "deleted"),
            (b"{\"Addr\":\"::1:50052\"}", "brackets"),
            (b"{\"Addr\":\"[h]:1\"}", "not host:port"),
            (b"h:0", "not host:port"),
            (b"h:65536", "not host:port"),
            (b"http://h:1/", "not host:port"),
            (b"", "not host:port"),
            (b"\xff", "not UTF-8"),
            (&[b'a'; VALUE_BYTES_MAX + 1], "bytes"),
        ] {
            let problem = parse_endpoint(value).unwrap_err();
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn names_that_would_break_the_layout_are_refused() {
        assert!(registration("n1", &["a.B"]).validate().is_ok());
        assert!(registration("a/b", &["a.B"]).validate().is_err());
        assert!(registration("", &["a.B"]).validate().is_err());
        for service in ["", "a/b", ".a", "a.", "a..b", "a b"] {
            assert!(
                registration("n", &[service]).validate().is_err(),
                "{service}"
            );
        }
        for prefix in ["", "/flux", "flux/", "a//b", "a b"] {
            assert!(check_prefix(prefix).is_err(), "{prefix}");
        }
        assert!(check_prefix("flux").is_ok() && check_prefix("prod/flux").is_ok());
        assert_eq!(address_of("::1", 5), "[::1]:5");
        assert_eq!(address_of("node", 5), "node:5");
    }
}
