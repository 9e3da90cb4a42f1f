//! Who leads what: a node's answer to FLUX.TOPOLOGY, and which node an operation is sent to.
//!
//! Pure. What is known may be out of date: a node that does not lead forwards what it is sent, so
//! a wrong guess costs a detour and no error.

use bytes::Bytes;
use flux_cluster::slot_of_key;
use flux_wire::flux::Operation;
use flux_wire::resp::Value;
use flux_wire::resp::introspect::key_positions;

/// The cluster as a node has described it. Empty: nothing is known, every node is as good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// First and last slot, and where their leader is, if that is known.
    ranges: Vec<(u16, u16, Option<String>)>,
    /// Addresses of all nodes that are said to be reachable.
    nodes: Vec<String>,
}

impl Route {
    /// Reads a node's answer; `None` if it is none.
    pub(crate) fn parse(answer: &Value) -> Option<Self> {
        let mut nodes = Vec::new();
        let mut addresses = Vec::new();
        for node in items(field(answer, "nodes")?)? {
            let host = text(field(node, "host")?)?;
            let port = integer(field(node, "port")?)?;
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host
            };
            let address = format!("{host}:{port}");
            if field(node, "reachable")? == &Value::Boolean(true) {
                nodes.push(address.clone());
            }
            addresses.push((text(field(node, "id")?)?, address));
        }
        let mut ranges = Vec::new();
        for shard in items(field(answer, "shards")?)? {
            let leader = text(field(shard, "leader")?);
            let leader = leader.and_then(|leader| {
                let found = addresses.iter().find(|(id, _)| *id == leader);
                found.map(|(_, address)| address.clone())
            });
            for pair in items(field(shard, "slots")?)?.chunks_exact(2) {
                let [first, last] = pair else { continue };
                let slot = |value| u16::try_from(integer(value)?).ok();
                ranges.push((slot(first)?, slot(last)?, leader.clone()));
            }
        }
        Some(Self { ranges, nodes })
    }

    /// All nodes that are said to be reachable.
    pub(crate) fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// The node that leads the shard of an operation's first key, if it has one and that is known.
    pub(crate) fn leader_of(&self, operation: &Operation) -> Option<&str> {
        let slot = slot_of_key(&first_key(operation)?).get();
        let range = self
            .ranges
            .iter()
            .find(|(first, last, _)| *first <= slot && slot <= *last)?;
        range.2.as_deref()
    }
}

/// The first key that an operation names.
fn first_key(operation: &Operation) -> Option<Bytes> {
    match operation {
        Operation::Get { key }
        | Operation::Set { key, .. }
        | Operation::Delete { key, .. }
        | Operation::CompareAndSet { key, .. }
        | Operation::Increment { key, .. }
        | Operation::Expire { key, .. } => Some(key.clone()),
        Operation::Ping { .. } => None,
        Operation::Command { argv } => {
            let at = key_positions(argv)?.next()?;
            argv.get(at).cloned()
        }
    }
}

fn field<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let Value::Map(pairs) = value else {
        return None;
    };
    let found = pairs
        .iter()
        .find(|(key, _)| matches!(key, Value::Bulk(key) if key == name));
    found.map(|(_, value)| value)
}

fn items(value: &Value) -> Option<&[Value]> {
    if let Value::Array(items) = value {
        return Some(items);
    }
    None
}

fn text(value: &Value) -> Option<String> {
    if let Value::Bulk(bytes) = value {
        return String::from_utf8(bytes.to_vec()).ok();
    }
    None
}

const fn integer(value: &Value) -> Option<i64> {
    if let Value::Integer(number) = value {
        return Some(*number);
    }
    None
}

/// A node's answer, for tests: two shards, led by these addresses.
#[cfg(test)]
pub(crate) fn answer(leaders: [Option<&str>; 2], nodes: &[&str]) -> Value {
    let bulk = |text: &str| Value::Bulk(Bytes::copy_from_slice(text.as_bytes()));
    let map = |pairs: Vec<(&str, Value)>| {
        Value::Map(pairs.into_iter().map(|(k, v)| (bulk(k), v)).collect())
    };
    let shard = |(leader, first, last): (Option<&str>, i64, i64)| {
        map(vec![
            ("leader", leader.map_or(Value::Null, bulk)),
            (
                "slots",
                Value::Array(vec![Value::Integer(first), Value::Integer(last)]),
            ),
        ])
    };
    let node = |address: &&str| {
        let (host, port) = address.rsplit_once(':').expect("an address");
        map(vec![
            ("id", bulk(address)),
            ("host", bulk(host)),
            ("port", Value::Integer(port.parse().expect("a port"))),
            ("reachable", Value::Boolean(true)),
        ])
    };
    let [low, high] = leaders;
    let shards = [(low, 0, 8191), (high, 8192, 16383)].map(shard);
    map(vec![
        ("own", bulk("own")),
        ("shards", Value::Array(shards.to_vec())),
        ("nodes", Value::Array(nodes.iter().map(node).collect())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Operation {
        Operation::Command {
            argv: line.split(' ').map(|word| word.to_owned().into()).collect(),
        }
    }

    #[test]
    fn an_operation_goes_to_the_leader_of_its_first_key() {
        let nodes = ["10.0.0.1:7379", "10.0.0.2:7379"];
        let route = Route::parse(&answer([Some(nodes[0]), Some(nodes[1])], &nodes));
        let route = route.expect("it is one");
        assert_eq!(route.nodes(), nodes);
        // Slots 5061 and 12182.
        for (operation, leader) in [
            (Operation::Get { key: "bar".into() }, Some(nodes[0])),
            (Operation::Get { key: "foo".into() }, Some(nodes[1])),
            (words("MGET foo bar"), Some(nodes[1])),
            (words("PING"), None),
            (words("nonsense foo"), None),
        ] {
            assert_eq!(route.leader_of(&operation), leader, "{operation:?}");
        }
    }

    #[test]
    fn a_shard_without_a_known_leader_has_none() {
        let route = Route::parse(&answer([None, Some("10.0.0.9:1")], &["10.0.0.1:7379"]));
        let route = route.expect("it is one");
        for key in ["foo", "bar"] {
            let operation = Operation::Get { key: key.into() };
            assert_eq!(route.leader_of(&operation), None);
        }
    }

    #[test]
    fn what_is_no_topology_is_none() {
        for value in [Value::Null, Value::Map(Vec::new()), Value::Integer(1)] {
            assert_eq!(Route::parse(&value), None);
        }
    }
}
