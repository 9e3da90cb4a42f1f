//! Waiting until every shard is where it is to be, with a bar for those that are on their way.

use std::time::Duration;

use flux_proto::admin::DescribeRequest;
use flux_proto::admin::DescribeResponse;
use flux_proto::admin::cluster_client::ClusterClient;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;
use tonic::Request;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::picture::{Picture, is_settled};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);
const TEMPLATE: &str = "{bar:40} {percent:>3} % {msg}";
/// How much of a shard a whole replica is.
const WHOLE: u64 = 1000;

/// Asks again and again until a map of at least this version is known and everything is where it
/// says. On a terminal, standard error shows how far that is.
///
/// # Errors
/// It took longer than `limit`, or the node cannot be asked for as long as that.
///
/// # Cancellation
/// Safe to drop.
pub(super) async fn until_settled<I: Interceptor>(
    client: &mut ClusterClient<InterceptedService<Channel, I>>,
    version: u64,
    limit: Duration,
) -> Result<(), String> {
    let until = Instant::now() + limit;
    let bar = Bar::new();
    let mut problem = String::from("the node has not answered");
    loop {
        match client.describe(Request::new(DescribeRequest {})).await {
            Ok(described) => {
                let described = described.into_inner();
                bar.show(&described);
                let left = unsettled(&described, version);
                if left.is_empty() {
                    return Ok(());
                }
                problem = left.join("; ");
            }
            // It may be the one that goes.
            Err(status) => status.message().clone_into(&mut problem),
        }
        if until <= Instant::now() {
            return Err(format!("not everything is where it is to be: {problem}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is still to be waited for.
fn unsettled(described: &DescribeResponse, version: u64) -> Vec<String> {
    if described.map_version < version {
        return vec![format!("this node has not heard of map version {version}")];
    }
    let mut left = Picture(described.clone()).moves();
    let is_leaving =
        |node: &&flux_proto::admin::Node| node.state() == flux_proto::admin::NodeState::Leaving;
    let leaving = described.nodes.iter().filter(is_leaving);
    left.extend(leaving.map(|node| format!("node {} is leaving", node.number)));
    left.extend(
        described
            .splitting
            .map(|shard| format!("shard {shard} is being split")),
    );
    let idle = described
        .shards
        .iter()
        .filter(|shard| shard.slots.is_empty());
    left.extend(idle.map(|shard| format!("shard {} owns no slots yet", shard.shard)));
    left
}

/// One bar for all shards.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        // A template of ours: that it is one, the tests show.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, described: &DescribeResponse) {
        let moving = described.shards.iter().filter(|shard| !is_settled(shard));
        let count = moving.clone().count();
        let whole = described.shards.len() as u64 * WHOLE;
        let missing: u64 = moving
            .map(|shard| {
                let best = shard.progress.iter().copied().max().unwrap_or(0);
                // A replica that is whole still has to get its vote.
                WHOLE.saturating_sub(u64::from(best)).max(1)
            })
            .sum();
        self.0.set_length(whole);
        self.0.set_position(whole.saturating_sub(missing));
        self.0.set_message(format!("{count} shards to move"));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use flux_proto::admin::{Node, NodeState, Shard, SlotRange};

    use super::*;

    #[test]
    fn it_waits_for_the_map_for_every_shard_and_for_who_leaves() {
        let shard = |voters: &[u64]| Shard {
            voters: voters.iter().map(|number| number << 32 | 1).collect(),
            planned: vec![1, 2, 3],
            slots: vec![SlotRange { first: 0, last: 9 }],
            ..Shard::default()
        };
        let mut seen = DescribeResponse {
            map_version: 2,
            shards: vec![shard(&[1, 2, 3])],
            ..DescribeResponse::default()
        };
        assert_eq!(unsettled(&seen, 2), Vec::<String>::new());
        assert!(unsettled(&seen, 3).concat().contains("version 3"));
        seen.shards.push(shard(&[1, 2, 4]));
        assert!(unsettled(&seen, 2).concat().contains("shard 0 goes from"));
        seen.shards.pop();
        let mut node = Node {
            number: 4,
            ..Node::default()
        };
        node.set_state(NodeState::Leaving);
        seen.nodes.push(node);
        assert_eq!(unsettled(&seen, 2), ["node 4 is leaving"]);
        seen.nodes.pop();
        seen.splitting = Some(0);
        assert_eq!(unsettled(&seen, 2), ["shard 0 is being split"]);
        seen.splitting = None;
        seen.shards[0].slots.clear();
        assert_eq!(unsettled(&seen, 2), ["shard 0 owns no slots yet"]);
    }

    #[test]
    fn the_bar_has_a_template() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
