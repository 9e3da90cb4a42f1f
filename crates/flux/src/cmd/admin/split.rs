//! Splitting shards one after the other until there are as many as wanted.

use std::time::Duration;

use flux_proto::admin::change_map_request::Change;
use flux_proto::admin::cluster_client::ClusterClient;
use flux_proto::admin::{ChangeMapRequest, DescribeRequest, DescribeResponse, Shard};
use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Asks for one split after the other, each of the shard that has the most slots, until there are
/// `count` shards. Answers the version of the map that says so. Does nothing if there are so many.
///
/// # Errors
/// It took longer than `limit`, or the node refuses.
///
/// # Cancellation
/// Safe to drop; a split that was asked for is done.
pub(super) async fn until<I: Interceptor>(
    client: &mut ClusterClient<InterceptedService<Channel, I>>,
    count: u32,
    limit: Duration,
) -> Result<u64, String> {
    let until = Instant::now() + limit;
    loop {
        let described = client.describe(Request::new(DescribeRequest {})).await;
        let described = described.map_err(|status| status.message().to_owned())?;
        let described = described.into_inner();
        if described.nodes.iter().all(|node| node.number == 0) {
            return Err("this node is alone: there is no cluster to change".to_owned());
        }
        // A cluster that has only just begun gets its map within moments.
        let is_at_rest = described.map_version != 0
            && described.splitting.is_none()
            && owning(&described) == described.shards.len();
        if is_at_rest && count as usize <= described.shards.len() {
            return Ok(described.map_version);
        }
        if described.paused && described.splitting.is_some() {
            return Err(
                "shards are to stay as they are for now: resume lets them go on".to_owned(),
            );
        }
        if until <= Instant::now() {
            return Err(format!(
                "there are {} shards, not {count}, and it took too long",
                owning(&described)
            ));
        }
        if is_at_rest && let Some(shard) = largest(&described.shards) {
            let change = Some(Change::Split(shard));
            match client.change_map(ChangeMapRequest { change }).await {
                Ok(_) => {}
                // Somebody else has asked for one, or the leader is just changing.
                Err(status)
                    if matches!(status.code(), Code::FailedPrecondition | Code::Unavailable) => {}
                Err(status) => return Err(status.message().to_owned()),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How many shards own slots.
fn owning(described: &DescribeResponse) -> usize {
    let shards = described.shards.iter();
    shards.filter(|shard| !shard.slots.is_empty()).count()
}

/// The shard with the most slots, the first of them.
fn largest(shards: &[Shard]) -> Option<u32> {
    let size = |shard: &&Shard| {
        let ranges = shard.slots.iter();
        let slots: u32 = ranges.map(|range| range.last + 1 - range.first).sum();
        (slots, std::cmp::Reverse(shard.shard))
    };
    shards.iter().max_by_key(size).map(|shard| shard.shard)
}

#[cfg(test)]
mod tests {
    use flux_proto::admin::SlotRange;

    use super::*;

    fn shard(number: u32, ranges: &[(u32, u32)]) -> Shard {
        let range = |(first, last): &(u32, u32)| SlotRange {
            first: *first,
            last: *last,
        };
        Shard {
            shard: number,
            slots: ranges.iter().map(range).collect(),
            ..Shard::default()
        }
    }

    #[test]
    fn the_largest_shard_is_the_next_and_of_equal_ones_the_first() {
        assert_eq!(largest(&[]), None);
        let halves = [shard(0, &[(0, 8191)]), shard(1, &[(8192, 16383)])];
        assert_eq!(largest(&halves), Some(0));
        let thirds = [
            shard(0, &[(0, 4095)]),
            shard(1, &[(8192, 12000), (12001, 16383)]),
            shard(2, &[(4096, 8191)]),
        ];
        assert_eq!(largest(&thirds), Some(1));
    }
}
