//! Changes of a cluster's shards on their way to a real RabbitMQ.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::growth::{WAIT, told};
use super::nodes::Nodes;
use crate::harness::rabbit::Broker;
use crate::rabbitmq::{Consumer, Load, check_events, events, wait_long};

/// A shard is split while its changes are published: in two, then in four while the broker is gone, and
/// the node that has published all of it so far is killed. Every write is told, in the order of its
/// shard, by the shard that it was written in.
pub(crate) fn splits_lose_nothing(broker: &mut Broker) {
    let folder = tempfile::tempdir().expect("a folder");
    let _consumer = Consumer::start(broker, "split", folder.path());
    let url = broker.url("split");
    let mut nodes = Nodes::started(3, &["--shards", "1", "--amqp", &url]);
    let leader = nodes.leader(0);
    let asked = (leader + 1) % 3;
    let load = Arc::new(Load::default());
    load.address.set(nodes.address(asked));
    let writers = load.begin();
    load.allow(40);
    load.wait(10);
    told(&nodes, asked, &["split", "0", WAIT]);
    load.wait(40);
    broker.wait_queues_durable();
    broker.kill();
    load.allow(60);
    told(&nodes, asked, &["split", "--into", "4", WAIT]);
    load.wait(60);
    nodes.kill(leader);
    load.allow(80);
    load.wait(70);
    broker.restart();
    nodes.spawn(leader);
    nodes.wait_node(leader);
    load.allow(100);
    for writer in writers {
        writer.join().expect("a writer's assertions");
    }
    wait_long("every change at the consumer", || {
        let keys: BTreeSet<String> = events(folder.path())
            .into_iter()
            .map(|event| event.key)
            .collect();
        keys.len() as u64 == Load::of(100)
    });
    check_events(&events(folder.path()), 4);
}
