//! How a node becomes, or is again, one of a cluster: what its folder says of it, what the others
//! say, and then its log. The decisions are [`crate::peer::formation`]'s and the functions' here
//! that take only values; the rest is carrying them out, each step durable before the next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flux_cluster::ring::Weight;
use flux_env::{Clock, Disk, RealDisk};
use flux_log::{
    IDENTITY_NAME, Identity, LOCK_NAME, LOST_AND_FOUND_NAME, Log, MEMBER_NAME, OpenError,
};
use flux_raft::Formation;
use flux_types::{ClusterId, ShardId};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::blocking;
use super::open::{ALONE_NUMBER, Opening, open};
use crate::config::{Config, Fsync};
use crate::cores::Places;
use crate::error::StartError;
use crate::peer::book::Book;
use crate::peer::formation::{Step, decide};
use crate::peer::member::{MAP_NAME, Member, PEERS_NAME, Stage, read_cards, read_map};
use crate::peer::news::{Card, Decision, News, Standing};
use crate::peer::{self, Peers, ask_news, exchange};
use crate::ports::Addresses;
use crate::registration::host;

/// How long a node that was told to accept loss listens whether it must.
const HEARING: Duration = Duration::from_secs(3);
/// Pause between two rounds of asking.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a reason to refuse must stand: a node that has just been restarted may still be taken
/// for its former self, and the other one of two that contradict each other wants to know as well.
const REFUSAL_STANDS: Duration = Duration::from_secs(3);
/// How often those who wait are told for whom.
const TELL: Duration = Duration::from_secs(5);

/// What a node of a cluster has once it has joined.
pub(super) struct Joined {
    pub(super) peers: Arc<Peers>,
    pub(super) log: Log,
    member: Member,
    disk: Arc<dyn Disk>,
}

/// What is needed for it.
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) listener: std::net::TcpListener,
    pub(super) addresses: Addresses,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) places: &'a Arc<Places>,
}

impl Joined {
    /// What a shard's replica does at its very first start.
    pub(super) fn formation(&self, shard: ShardId) -> Formation {
        let voters = self.member.decision.as_ref().and_then(|decision| {
            let voters = decision.voters.get(shard.get() as usize)?;
            voters.contains(&self.member.node).then_some(voters)
        });
        voters.map_or(Formation::Join, |voters| {
            Formation::Members(voters.iter().copied().collect())
        })
    }

    /// How many shards there were when the cluster was formed.
    pub(super) fn founding(&self) -> u32 {
        let decision = self.member.decision.as_ref();
        decision.map_or(0, Decision::shard_count)
    }

    /// Begins another life, because a shard cannot be recovered from what is on the disk. The log is
    /// closed and nothing uses it.
    pub(super) async fn rebuild(
        &mut self,
        config: &Config,
        clock: &Arc<dyn Clock>,
        problem: String,
    ) -> Result<(), StartError> {
        let (peers, disk) = (Arc::clone(&self.peers), Arc::clone(&self.disk));
        self.log = reborn(config, clock, &peers, &disk, &mut self.member, problem).await?;
        Ok(())
    }

    /// Notes that the log of this life is there: from now on an empty one is a lost one.
    pub(super) async fn settled(&mut self, config: &Config) -> Result<(), StartError> {
        self.member.stage = Stage::Joined;
        keep(&self.disk, config, &self.member).await
    }
}

/// See the module.
///
/// # Errors
/// A mistake in what the nodes were told, a folder of something else, or a majority that may have
/// forgotten what it acknowledged.
pub(super) async fn join(parts: Parts<'_>) -> Result<Joined, StartError> {
    let config = parts.config;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (mut member, cards, map, lock) = {
        let (disk, config) = (Arc::clone(&disk), config.clone());
        blocking(move || prepare(&*disk, &config)).await??
    };
    let standing = match member.stage {
        Stage::Drawn if member.decision.is_none() => Standing::Fresh,
        Stage::Suspect => Standing::Suspect,
        Stage::Drawn | Stage::Joined => Standing::Starting,
    };
    let peers = start_peers(&parts, &member, standing, cards)?;
    let stopping = StopOnDrop(Some(Arc::clone(&peers)));
    if member.decision.is_none() {
        member.decision = Some(form(&peers, config).await?);
        keep(&disk, config, &member).await?;
        peers.book.tell(|own| {
            own.decision.clone_from(&member.decision);
            own.standing = Standing::Starting;
        });
    }
    if let Some(map) = map {
        peers.book.hear_map(&map);
    }
    // Owned by the node: ends when the peers are stopped.
    parts.places.handle(0).spawn(exchange(
        Arc::clone(&peers),
        config.join.clone(),
        Arc::clone(&disk),
        config.data_dir.clone(),
    ));
    drop(lock);
    let mut opened = open_as(config, parts.clock, &member, Trust::Whole).await;
    if config.accept_loss && matches!(&opened, Err(Problem::Rebuild(_))) {
        opened = accept_loss(&parts, &peers, &disk, &mut member, opened).await?;
    }
    let log = match opened {
        Ok(log) if is_empty_but_should_not_be(&log, &member) => {
            log.close();
            let problem = "the log of this node is empty, though it had one".to_owned();
            reborn(config, parts.clock, &peers, &disk, &mut member, problem).await?
        }
        Ok(log) => log,
        Err(Problem::Rebuild(problem)) => {
            reborn(config, parts.clock, &peers, &disk, &mut member, problem).await?
        }
        Err(Problem::Other(error)) => return Err(error),
    };
    stopping.disarm();
    Ok(Joined {
        peers,
        log,
        member,
        disk,
    })
}

/// Stops the peers unless the start has succeeded.
struct StopOnDrop(Option<Arc<Peers>>);

impl StopOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(peers) = self.0.take() {
            peers.stop();
        }
    }
}

type Prepared = (
    Member,
    Vec<Card>,
    Option<Bytes>,
    Box<dyn flux_env::LockGuard>,
);

fn folder_error(config: &Config, problem: String) -> StartError {
    StartError::DataDir {
        path: config.data_dir.clone(),
        problem,
    }
}

/// Takes the folder and finds out which node it is; a new one gets its id, durably.
fn prepare(disk: &dyn Disk, config: &Config) -> Result<Prepared, StartError> {
    let dir = &config.data_dir;
    let shown = dir.display();
    let failed = |error: std::io::Error| {
        folder_error(
            config,
            format!("cannot use data directory {shown}: {error}"),
        )
    };
    disk.create_dir_all(dir).map_err(failed)?;
    let lock = disk.lock(&dir.join(LOCK_NAME)).map_err(failed)?;
    let lock = lock.ok_or_else(|| {
        let problem = format!("data directory {shown} is in use by another process");
        folder_error(config, problem)
    })?;
    let member = Member::read(disk, dir).map_err(failed)?;
    let identity =
        Identity::read(disk, dir).map_err(|error| folder_error(config, error.to_string()))?;
    let member = match (member, identity) {
        (None, Some(identity)) => {
            if let Some(problem) = not_adoptable(disk, config, &identity) {
                return Err(folder_error(config, problem));
            }
            info!("a node that was alone begins a cluster with what it has");
            Member::adopted(identity)
        }
        (None, None) => {
            refuse_strangers(disk, config)?;
            Member::draw(config.node_id, None).map_err(failed)?
        }
        (Some(member), _) if member.node.physical() != config.node_id => {
            let problem = format!(
                "data directory {shown} belongs to node {}, not {}: check --node-id and --data-dir",
                member.node.physical(),
                config.node_id
            );
            return Err(folder_error(config, problem));
        }
        (Some(member), None) if member.stage == Stage::Joined => {
            warn!("the data of this node is gone: it joins again as a new one");
            Member::draw(config.node_id, member.decision).map_err(failed)?
        }
        (Some(member), Some(identity))
            if identity.node != member.node && member.stage == Stage::Drawn =>
        {
            // A former life, of which this node had begun to part.
            remove_data(disk, dir).map_err(failed)?;
            member
        }
        (Some(member), _) => member,
    };
    member.write(disk, dir).map_err(failed)?;
    Ok((member, read_cards(disk, dir), read_map(disk, dir), lock))
}

/// Why the folder of a node that was alone cannot be that of this node of a cluster.
fn not_adoptable(disk: &dyn Disk, config: &Config, identity: &Identity) -> Option<String> {
    let shown = config.data_dir.display();
    let was_member = [PEERS_NAME, MAP_NAME]
        .iter()
        .any(|name| disk.exists(&config.data_dir.join(name)));
    if was_member {
        return Some(format!(
            "data directory {shown} is one of a node of a cluster and its file {MEMBER_NAME} is missing: \
             bring it back from a copy, or choose an empty folder, so that the node joins again"
        ));
    }
    let number = identity.node.physical();
    (number != config.node_id).then(|| {
        let whole = format!(
            "data directory {shown} belongs to a node that is alone: start it without --node-id"
        );
        if number == ALONE_NUMBER {
            format!("{whole}, or with --node-id {number} to begin a cluster with what it has")
        } else {
            format!("{whole}, or choose another folder")
        }
    })
}

/// A folder with files and without ours belongs to somebody else.
fn refuse_strangers(disk: &dyn Disk, config: &Config) -> Result<(), StartError> {
    let dir = &config.data_dir;
    let names = disk.read_dir(dir).unwrap_or_default();
    let ours = [LOCK_NAME, LOST_AND_FOUND_NAME, "MEMBER.tmp", "IDENTITY.tmp"];
    let foreign = names.iter().find(|name| !ours.contains(&name.as_str()));
    match foreign {
        None => Ok(()),
        Some(found) => Err(folder_error(
            config,
            format!(
                "data directory {} holds `{found}`, which flux did not write; choose an empty \
                 directory",
                dir.display()
            ),
        )),
    }
}

/// Removes log and snapshots of a former life.
fn remove_data(disk: &dyn Disk, dir: &Path) -> std::io::Result<()> {
    for folder in ["log", "snap"].map(|name| dir.join(name)) {
        if !disk.exists(&folder) {
            continue;
        }
        for name in disk.read_dir(&folder)? {
            disk.remove(&folder.join(name))?;
        }
        disk.sync_dir(&folder)?;
    }
    let identity = dir.join(IDENTITY_NAME);
    if disk.exists(&identity) {
        disk.remove(&identity)?;
    }
    disk.sync_dir(dir)
}

/// Makes what this node knows of itself durable.
async fn keep(disk: &Arc<dyn Disk>, config: &Config, member: &Member) -> Result<(), StartError> {
    let (disk, dir, member) = (Arc::clone(disk), config.data_dir.clone(), member.clone());
    let written = blocking(move || member.write(&*disk, &dir)).await?;
    written.map_err(|source| StartError::System {
        what: "failed to note which node this is",
        source,
    })
}

fn start_peers(
    parts: &Parts<'_>,
    member: &Member,
    standing: Standing,
    cards: Vec<Card>,
) -> Result<Arc<Peers>, StartError> {
    let (config, addresses) = (parts.config, parts.addresses);
    let peer = match config.advertise_peer_port {
        0 => addresses.peer.map_or(0, |address| address.port()),
        mapped => mapped,
    };
    let own = News {
        card: Card {
            node: member.node,
            stamp: parts.clock.unix_millis(),
            host: host(config, addresses.resp.ip()),
            peer,
            resp: addresses.resp.port(),
            grpc: addresses.grpc.port(),
            admin: addresses.admin.port(),
            weight: Weight::new(config.weight).unwrap_or_default(),
            zone: config.zone.clone(),
        },
        standing,
        list: config.join.clone(),
        replicas: u16::try_from(config.replicas).unwrap_or(u16::MAX),
        shards: u16::try_from(config.shards.unwrap_or(config.shards_initial)).unwrap_or(u16::MAX),
        decision: member.decision.clone(),
        ..News::default()
    };
    let peers = Peers::new(peer::Parts {
        book: Book::new(Arc::clone(parts.clock), own, cards),
        clock: Arc::clone(parts.clock),
        password: Arc::from(config.password.as_str()),
        places: Arc::clone(parts.places),
        // A listener on every address does not say where it is reached; the list does.
        takes_host_from_list: config.advertise.is_empty() && config.bind.is_unspecified(),
        replace_after: config.replace_after,
        replicas: config.replicas as usize,
        move_rate: config.move_rate,
    });
    let system = |source| StartError::System {
        what: "failed to listen for other nodes",
        source,
    };
    let listener = parts.listener.try_clone().map_err(system)?;
    let handle = parts.places.handle(0);
    let _entered = handle.enter();
    let listener = TcpListener::from_std(listener).map_err(system)?;
    handle.spawn(peer::accept(Arc::clone(&peers), listener));
    Ok(peers)
}

/// Asks until there is a cluster to belong to.
async fn form(peers: &Arc<Peers>, config: &Config) -> Result<Decision, StartError> {
    let drawn = loop {
        let drawn = flux_env::entropy_u64().map_err(|source| StartError::System {
            what: "failed to draw random bits",
            source,
        })?;
        if drawn != 0 {
            break ClusterId::new(drawn);
        }
    };
    let clock = peers.clock();
    let (mut refused_since, mut told_at) = (None, None);
    loop {
        let asking = config
            .join
            .iter()
            .map(|address| async move { (address.clone(), ask_news(peers, address).await) });
        let heard: BTreeMap<String, Option<News>> = futures_util::future::join_all(asking)
            .await
            .into_iter()
            .collect();
        let now = clock.now();
        let step = decide(&peers.book.news(Vec::new()), &heard, drawn);
        if !matches!(step, Step::Refuse(_)) {
            refused_since = None;
        }
        match step {
            Step::Adopt(decision) => {
                info!(
                    cluster = format!("{:016x}", decision.cluster.get()),
                    "joining a cluster"
                );
                return Ok(decision);
            }
            Step::Found(decision) => {
                info!(
                    cluster = format!("{:016x}", decision.cluster.get()),
                    "founding a cluster"
                );
                return Ok(decision);
            }
            Step::Refuse(problem) => {
                let since = *refused_since.get_or_insert(now);
                if REFUSAL_STANDS <= now.saturating_since(since) {
                    // Who has seen it later must be able to see it as long.
                    tokio::time::sleep(REFUSAL_STANDS).await;
                    return Err(StartError::Cluster { problem });
                }
            }
            Step::Wait(missing) => {
                if told_at.is_none_or(|told| TELL <= now.saturating_since(told)) {
                    told_at = Some(now);
                    info!(
                        waiting_for = missing.join(","),
                        "waiting for the other nodes"
                    );
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Of which log a node is content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// One that holds all that this node has acknowledged.
    Whole,
    /// Any that can be read.
    Any,
}

enum Problem {
    /// This replica cannot be trusted; others may have its data.
    Rebuild(String),
    Other(StartError),
}

/// Opens the log of this life of the node.
async fn open_as(
    config: &Config,
    clock: &Arc<dyn Clock>,
    member: &Member,
    trust: Trust,
) -> Result<Log, Problem> {
    let Some(decision) = &member.decision else {
        let problem = "a node without a cluster has no log".to_owned();
        return Err(Problem::Other(StartError::Cluster { problem }));
    };
    if member.stage == Stage::Suspect {
        return Err(Problem::Rebuild(
            "this node could not trust its data when it last started".to_owned(),
        ));
    }
    let opening = Opening {
        shards: decision.shard_count(),
        may_have_grown: true,
        cluster: decision.cluster,
        node: member.node,
        refuse_power_loss: member.is_relaxed
            && trust == Trust::Whole
            && decision.voters.iter().any(|voters| 1 < voters.len()),
    };
    let opened = {
        let (config, clock) = (config.clone(), Arc::clone(clock));
        blocking(move || open(&config, clock, opening)).await
    };
    match opened.map_err(Problem::Other)?.map_err(Problem::Other)? {
        Ok(log) => {
            let found = log.identity();
            if found.node == member.node && found.cluster == decision.cluster {
                return Ok(log);
            }
            log.close();
            let problem = format!(
                "data directory {} belongs to node {:016x} of cluster {:016x}",
                config.data_dir.display(),
                found.node.get(),
                found.cluster.get()
            );
            Err(Problem::Other(folder_error(config, problem)))
        }
        Err(error @ (OpenError::PowerLoss { .. } | OpenError::Damaged { .. })) => {
            Err(Problem::Rebuild(error.to_string()))
        }
        Err(error) => Err(Problem::Other(super::open::open_error(config, &error))),
    }
}

/// A voter of this life that had a log has one.
fn is_empty_but_should_not_be(log: &Log, member: &Member) -> bool {
    let Some(decision) = member
        .decision
        .as_ref()
        .filter(|_| member.stage == Stage::Joined)
    else {
        return false;
    };
    (0..).zip(&decision.voters).any(|(shard, voters)| {
        let state = log.shard(ShardId::new(shard)).state();
        let is_empty = state.vote.is_none() && state.last.is_none() && state.tombstone.is_none();
        voters.contains(&member.node) && is_empty
    })
}

/// What the voters of a cluster are like, for one that cannot trust itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quorum {
    /// Everything that was acknowledged is safe with the others.
    Safe,
    /// So many of a shard's voters cannot be trusted that it may be lost.
    Lost,
    /// Not enough have been heard of.
    Unknown,
}

/// Judges for a node that cannot trust itself, by what is known of the others. `shards` are the
/// numbers of each one's voters, and whether its leader says so: who they are may have changed since.
fn judge(own: u32, shards: &[(BTreeSet<u32>, bool)], others: &BTreeMap<u32, Standing>) -> Quorum {
    let mut is_safe = true;
    for (numbers, is_said) in shards {
        let majority = numbers.len() / 2 + 1;
        let count = |standing| {
            let is_so = |number: &&u32| others.get(*number) == Some(&standing);
            numbers.iter().filter(is_so).count()
        };
        let lost = count(Standing::Suspect) + usize::from(numbers.contains(&own));
        if numbers.len() - lost < majority {
            return Quorum::Lost;
        }
        is_safe &= *is_said && majority <= count(Standing::Member);
    }
    if is_safe {
        Quorum::Safe
    } else {
        Quorum::Unknown
    }
}

/// Begins another life: what this node held is rebuilt from the others, if a majority of every
/// shard has it (rules 12 and 13).
async fn reborn(
    config: &Config,
    clock: &Arc<dyn Clock>,
    peers: &Arc<Peers>,
    disk: &Arc<dyn Disk>,
    member: &mut Member,
    problem: String,
) -> Result<Log, StartError> {
    warn!(%problem, "this node cannot trust its data; it asks the others");
    member.stage = Stage::Suspect;
    keep(disk, config, member).await?;
    peers.book.tell(|own| own.standing = Standing::Suspect);
    let decision = member.decision.clone().unwrap_or_else(|| Decision {
        cluster: ClusterId::new(0),
        voters: Vec::new(),
    });
    wait_for_quorum(peers, member, &problem).await?;
    *member = Member::draw(config.node_id, Some(decision)).map_err(|source| {
        let what = "failed to draw random bits";
        StartError::System { what, source }
    })?;
    keep(disk, config, member).await?;
    {
        let (disk, dir) = (Arc::clone(disk), config.data_dir.clone());
        let removed = blocking(move || remove_data(&*disk, &dir)).await?;
        removed.map_err(|source| StartError::System {
            what: "failed to remove data that cannot be trusted",
            source,
        })?;
    }
    let stamp = clock.unix_millis();
    peers.book.tell(|own| {
        own.card.node = member.node;
        own.card.stamp = stamp;
        own.standing = Standing::Starting;
    });
    info!("this node joins again as a new one and gets its data from the others");
    match open_as(config, clock, member, Trust::Whole).await {
        Ok(log) => Ok(log),
        Err(Problem::Rebuild(problem)) => Err(StartError::Damaged { problem }),
        Err(Problem::Other(error)) => Err(error),
    }
}

/// Goes on with what is on the disk of a node that cannot trust itself, as told; unless the others
/// have all, by what they say within [`HEARING`]: they may have gone on without what is here, which
/// then is no history of theirs. Answers what else the open has found.
async fn accept_loss(
    parts: &Parts<'_>,
    peers: &Arc<Peers>,
    disk: &Arc<dyn Disk>,
    member: &mut Member,
    opened: Result<Log, Problem>,
) -> Result<Result<Log, Problem>, StartError> {
    let until = peers.clock().now() + HEARING;
    let quorum = loop {
        let quorum = quorum(peers, member);
        if quorum != Quorum::Unknown || until <= peers.clock().now() {
            break quorum;
        }
        tokio::time::sleep(PAUSE).await;
    };
    if quorum == Quorum::Safe {
        return Ok(opened);
    }
    warn!("going on with what is on the disk, as told; what was acknowledged last may be lost");
    member.stage = Stage::Joined;
    keep(disk, parts.config, member).await?;
    peers.book.tell(|own| own.standing = Standing::Starting);
    Ok(open_as(parts.config, parts.clock, member, Trust::Any).await)
}

/// What the voters of the cluster are like, by what this node has heard of them.
fn quorum(peers: &Arc<Peers>, member: &Member) -> Quorum {
    let others: BTreeMap<u32, Standing> = peers
        .book
        .others()
        .into_iter()
        .filter(|(.., is_alive)| *is_alive)
        .map(|(card, standing, _)| (card.node.physical(), standing))
        .collect();
    let decision = member.decision.as_ref();
    decision.map_or(Quorum::Safe, |decision| {
        judge(member.node.physical(), &peers.voters(decision), &others)
    })
}

async fn wait_for_quorum(
    peers: &Arc<Peers>,
    member: &Member,
    problem: &str,
) -> Result<(), StartError> {
    let mut told_at = None;
    loop {
        match quorum(peers, member) {
            Quorum::Safe => return Ok(()),
            Quorum::Lost => {
                let problem = format!(
                    "{problem}; of a majority of the nodes the same is true, so that what was \
                     acknowledged may be lost. Nothing was changed. Bring back nodes that are \
                     whole; or, if only power has failed, go on with what is on the disks by \
                     starting every node with --accept-loss"
                );
                // The others must hear of it too.
                tokio::time::sleep(REFUSAL_STANDS).await;
                return Err(StartError::Damaged { problem });
            }
            Quorum::Unknown => {}
        }
        let now = peers.clock().now();
        if told_at.is_none_or(|told| TELL <= now.saturating_since(told)) {
            told_at = Some(now);
            info!("waiting for a majority of the nodes that has all data");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether a policy acknowledges what is not on the disk.
pub(super) const fn is_relaxed(fsync: Fsync) -> bool {
    match fsync {
        Fsync::Always => false,
        Fsync::EverySec | Fsync::Never => true,
    }
}

impl Joined {
    /// Notes under which policy this node acknowledges from now on. Before a single voter of it
    /// answers: after a power cut only this tells what may be missing.
    pub(super) async fn note_fsync(&mut self, config: &Config) -> Result<(), StartError> {
        self.member.is_relaxed = is_relaxed(config.fsync);
        keep(&self.disk, config, &self.member).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_12_only_a_majority_that_is_well_makes_up_for_one_that_is_not() {
        let numbers = BTreeSet::from([1, 2, 3]);
        let both = || [(2, Standing::Member), (3, Standing::Member)];
        let with = |standings: &[(u32, Standing)]| {
            judge(
                1,
                &[(numbers.clone(), true)],
                &standings.iter().copied().collect(),
            )
        };
        assert_eq!(with(&[]), Quorum::Unknown);
        let nobody_says_so = judge(1, &[(numbers.clone(), false)], &BTreeMap::from(both()));
        assert_eq!(nobody_says_so, Quorum::Unknown);
        assert_eq!(with(&[(2, Standing::Member)]), Quorum::Unknown);
        assert_eq!(with(&both()), Quorum::Safe);
        assert_eq!(with(&[(2, Standing::Suspect)]), Quorum::Lost);
        let mixed = [(2, Standing::Suspect), (3, Standing::Member)];
        assert_eq!(with(&mixed), Quorum::Lost);
        // Who has not opened its log yet may find that it is in the same state.
        let starting = [(2, Standing::Starting), (3, Standing::Member)];
        assert_eq!(with(&starting), Quorum::Unknown);
    }
}
