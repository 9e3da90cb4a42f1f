//! Splitting a shard: the upper half of its slots becomes another shard, while it serves.
//!
//! One entry in the parent's log says so: system data under [`SLOTS_NAME`], whose value is the map
//! of all slots after the split ([`SlotMap`] as text); the child is the last shard in it. Every
//! replica that applies the entry writes what goes to the child as a *received snapshot* of the
//! child at [`BASE`], with the parent's membership, and takes it out of its own store. So the child
//! begins as a shard whose first entry was compacted, on all of the parent's voters; whoever of them
//! did not apply the entry (it was sent a later snapshot of the parent) gets the child as any
//! replica does that lacks entries. `docs/design/0020` says why nothing is lost.
//!
//! A map is known by how many shards it has: each split adds one. A submission says by which map its
//! sender chose the shard ([`crate::Submission`]); one that is older than the shard's last
//! split is refused with nothing done, and whoever sent it asks again by a later map.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use flux_env::Instant;
use flux_log::{LogId, ShardLog, SnapshotFooter};
use flux_store::{BatchView, FactRef, KeyFilter, Store};
use flux_types::bug::{self, Bug};
use flux_types::slots::SLOTS_NAME;
use flux_types::{Command, Error, LogIndex, ShardId, SlotMap, Term, WriteCommand};
use futures_util::future::BoxFuture;

use crate::codec::{SnapshotExtra, to_raft_id};
use crate::log_store::to_io;
use crate::recovery;
use crate::retire::Retiring;
use crate::runtime::{blocking, pause, spawn};
use crate::shard::{Inner, Shard};
use crate::state_machine::StateMachine;
use crate::type_config::StoredMembership;

/// What a child begins with: the place of the first entry of any log, which no leader ever writes
/// here.
const BASE: LogId = LogId {
    term: Term::new(0),
    index: LogIndex::new(1),
};

/// Stripes from which keys are taken before other tasks of the runtime get a turn.
const STRIPES_PER_TURN: usize = 4;

/// Takes in shards that were split off.
pub trait Births: fmt::Debug + Send + Sync + 'static {
    /// Whether a replica of the shard runs on this node.
    fn is_running(&self, shard: ShardId) -> bool;

    /// Puts a beginning under a replica that runs already ([`Beginning::put_under`]), on its runtime.
    fn begin(&self, shard: ShardId, beginning: Beginning) -> BoxFuture<'_, io::Result<()>>;

    /// A split is being applied here: this is whose slots are whose now, and a replica of the last shard
    /// can be started, because what it begins with is on the disk. Called on the parent's runtime; returns at once.
    fn born(&self, parent: ShardId, slots: &SlotMap);
}

/// By which maps of the slots a shard may be asked.
#[derive(Debug, Default)]
pub(crate) struct Ownership {
    /// How many shards there were after the last split that is applied here, or being applied; 0 for
    /// none.
    since: AtomicU32,
    /// The same of a split that is proposed here and may be applied elsewhere first; 0 for none.
    announced: AtomicU32,
}

impl Ownership {
    /// How many shards there were after the last split of this one.
    pub(crate) fn since(&self) -> u32 {
        self.since.load(Ordering::Acquire)
    }

    fn set_since(&self, shards: u32) {
        self.since.store(shards, Ordering::Release);
    }

    /// From now on reads of the store by older maps do not count: another node may apply the split,
    /// and serve the child, before this one does.
    pub(crate) fn announce(&self, shards: u32) {
        self.announced.store(shards, Ordering::Release);
    }

    /// What was announced is applied here, or will never be.
    pub(crate) fn withdraw(&self) {
        self.announced.store(0, Ordering::Release);
    }

    /// Whether what was read from the store by a map counts.
    fn covers(&self, routing: u32) -> bool {
        let last = self.since().max(self.announced.load(Ordering::Acquire));
        last <= routing || bug::is_on(Bug::OldMapRead)
    }

    /// Takes over what a store says that was replaced or is recovered.
    pub(crate) fn follow(&self, store: &Store) {
        let slots = store.system(SLOTS_NAME);
        let slots = slots.and_then(|text| parse(&text));
        self.set_since(slots.map_or(0, |slots| slots.shard_count()));
    }
}

fn parse(text: &[u8]) -> Option<SlotMap> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The map that a command would bring about, if it splits the shard.
pub(crate) fn of_command(command: &Command) -> Option<SlotMap> {
    match command {
        Command::Write(WriteCommand::PutSystem {
            name,
            value: Some(value),
        }) if name.as_ref() == SLOTS_NAME => parse(value),
        Command::Write(_) | Command::Read(_) => None,
    }
}

/// The map that a batch brings about, if it splits the shard: it holds nothing else then.
pub(crate) fn of_batch(batch: &BatchView<'_>) -> Option<SlotMap> {
    if batch.fact_count() != 1 {
        return None;
    }
    match batch.facts().step() {
        Some((_, FactRef::SystemPut { name, value }, _)) if name == SLOTS_NAME => parse(value),
        Some(_) | None => None,
    }
}

/// A split as one replica carries it out.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    slots: SlotMap,
    child: ShardId,
    goes: KeyFilter,
}

impl Split {
    pub(crate) fn new(slots: SlotMap) -> Self {
        let child = ShardId::new(slots.shard_count().saturating_sub(1));
        let map = slots.clone();
        let goes = KeyFilter::new(move |key| map.shard_of_key(key) == child);
        Self { slots, child, goes }
    }
}

impl StateMachine {
    /// Applies a batch that splits the shard. The store changes a part at a time: it serves reads
    /// meanwhile, those of keys that go being refused.
    pub(crate) async fn divide(
        &self,
        id: LogId,
        split: Split,
        batch: &BatchView<'_>,
    ) -> io::Result<()> {
        // A snapshot holds all of what goes or nothing of it.
        let _walking = self.snapshots.walking.lock().await;
        self.ownership.set_since(split.slots.shard_count());
        self.progress.begin(id);
        let (machine, begetting) = (self.clone(), split.clone());
        let begotten = blocking(move || machine.beget(&begetting)).await;
        if let (Begotten::Runs, Some(births)) = (begotten.map_err(io::Error::other)??, &self.births)
        {
            let beginning = Beginning {
                parent: self.without_engine(),
                split: split.clone(),
            };
            births.begin(split.child, beginning).await?;
        }
        // The child need not wait for what is left to do here.
        if let Some(births) = &self.births {
            births.born(self.shard, &split.slots);
        }
        for stripe in 0..self.store.stripe_count() {
            self.store.take_out(stripe, &split.goes);
            if stripe % STRIPES_PER_TURN == STRIPES_PER_TURN - 1 {
                pause().await;
            }
        }
        self.store.apply(batch);
        self.progress.finish(id, None);
        Ok(())
    }

    /// As [`StateMachine::divide`], while the shard is being recovered. Blocks on the disk.
    pub(crate) fn divide_again(
        &self,
        id: LogId,
        split: &Split,
        batch: &BatchView<'_>,
    ) -> io::Result<()> {
        self.progress.begin(id);
        if self.beget(split)? == Begotten::Runs {
            return Err(io::Error::other(
                "the new shard runs before its parent does",
            ));
        }
        for stripe in 0..self.store.stripe_count() {
            self.store.take_out(stripe, &split.goes);
        }
        self.store.apply(batch);
        self.progress.finish(id, None);
        Ok(())
    }

    /// Gives the child its place in the log and, if this node votes, what it begins with. Blocks on
    /// the disk.
    fn beget(&self, split: &Split) -> io::Result<Begotten> {
        self.node_log
            .grow(split.slots.shard_count())
            .map_err(to_io)?;
        let child = self.node_log.shard(split.child);
        let (_, membership) = self.progress.applied();
        let votes = membership
            .membership()
            .voter_ids()
            .any(|voter| voter == self.node.get());
        if !votes || !child.state().is_blank() {
            return Ok(Begotten::Done);
        }
        let births = self.births.as_ref();
        if births.is_some_and(|births| births.is_running(split.child)) {
            return Ok(Begotten::Runs);
        }
        self.write_base(&child, split)?;
        Ok(Begotten::Done)
    }

    /// Writes what the child begins with. Blocks on the disk.
    fn write_base(&self, child: &ShardLog, split: &Split) -> io::Result<()> {
        let (_, membership) = self.progress.applied();
        let at = Some(to_raft_id(BASE));
        let extra = SnapshotExtra {
            revision: self.store.revision(),
            last_batch_at: self.store.last_batch_at(),
            membership: StoredMembership::new(at, membership.membership().clone()),
        };
        let mut writer = child.begin_snapshot(BASE).map_err(to_io)?;
        let mut walk = self.store.walk_part(split.goes.clone());
        let block_bytes = self.block_bytes;
        while let Some(block) = walk.next_block(block_bytes).map_err(io::Error::other)? {
            writer.block(&block).map_err(to_io)?;
        }
        let footer = SnapshotFooter::new(BASE, extra.encode());
        writer.finish_installed(footer).map_err(to_io)?;
        // What is appended later is durable later: neither a vote of the child nor a purge of what
        // this was made from can outlive it.
        child.mark_installed(BASE, Box::new(drop));
        let (parent, shard) = (self.shard, split.child);
        tracing::info!(%parent, %shard, "a shard was split");
        Ok(())
    }
}

/// What became of the beginning of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begotten {
    /// It is there, or is none of this node's business.
    Done,
    /// A replica runs already that holds nothing, as after a crash before it was written.
    Runs,
}

/// What a child begins with, while its parent stands still.
#[derive(Debug)]
pub struct Beginning {
    parent: StateMachine,
    split: Split,
}

impl Beginning {
    /// Puts it under the child's replica, unless that holds something by now. Its consensus engine is
    /// ended and started anew; to be called on its runtime.
    ///
    /// # Errors
    /// The disk's, or the engine's; the node should then end.
    ///
    /// # Cancellation
    /// Goes on if dropped.
    pub async fn put_under(self, child: &Shard) -> io::Result<()> {
        let putting = spawn(put_under(Arc::clone(&child.inner), self));
        putting.await.map_err(io::Error::other)?
    }
}

async fn put_under(child: Arc<Inner>, beginning: Beginning) -> io::Result<()> {
    let _alone = child.changing.lock().await;
    let (replica, machine) = (&child.replica, &child.maker.machine);
    if replica.queue.is_closed() || replica.failure.borrow().is_some() {
        return Err(io::Error::other("the new shard has stopped"));
    }
    // No snapshot that arrives may get its name meanwhile.
    let _taking = machine.snapshots.turn.lock().await;
    let _placing = machine.snapshots.placing.lock().await;
    let _quiet = Retiring::new(replica);
    child.halt().await;
    let machine = machine.clone();
    let put = blocking(move || {
        if machine.log.state().is_blank() {
            let Beginning { parent, split } = beginning;
            parent.write_base(&machine.log, &split)?;
            recovery::recover(machine.shard, &machine).map_err(io::Error::other)?;
        }
        Ok(())
    });
    let put = put.await.map_err(io::Error::other).flatten();
    child.start_anew().await.map_err(io::Error::other)?;
    put
}

impl Shard {
    /// Splits the shard, if this replica leads: `slots` is the map afterward, in which all that is
    /// not this shard's is as before, and the last shard has what it gives away. Answers when this
    /// replica has applied it; at once if it has been split so already.
    ///
    /// # Errors
    /// As any write; a failure may have an unknown outcome, and is safe to repeat.
    ///
    /// # Cancellation
    /// Safe to drop; it may then be done.
    pub async fn split(&self, slots: &SlotMap, deadline: Instant) -> Result<(), Error> {
        let name = Bytes::from_static(SLOTS_NAME);
        let text = Bytes::from(slots.to_string());
        let done = self.put_system(name, Some(text), deadline).await;
        let applied = self.slots().map_or(0, |slots| slots.shard_count());
        if slots.shard_count() <= applied {
            return Ok(());
        }
        done
    }

    /// The map of the slots after the last split of this shard that is applied here.
    #[must_use]
    pub fn slots(&self) -> Option<SlotMap> {
        parse(&self.store().system(SLOTS_NAME)?)
    }

    /// Whether the log of this replica will not tell what `child`, which the shard has split off,
    /// begins with: it holds nothing, be it that it was let go, or what it holds was split already.
    #[must_use]
    pub fn will_not_tell_of(&self, child: ShardId) -> bool {
        let state = self.log().state();
        let holds_nothing = state.last.is_none() && state.installed.is_none();
        let given = self.slots().map_or(0, |slots| slots.shard_count());
        holds_nothing || child.get() < given
    }

    /// Whether what was read from the store counts, if the shard was chosen by a map of so many
    /// shards. To be asked after the read.
    #[must_use]
    pub fn is_current(&self, routing: u32) -> bool {
        self.replica().ownership.covers(routing)
    }

    /// Stands for election if nobody leads that this replica knows of: for a shard that has just
    /// been split off, whose leader is best where the parent's is.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn campaign(&self) {
        let replica = self.replica();
        if self.members().leader.is_none()
            && let Err(fatal) = replica.engine().raft.trigger().elect(true).await
        {
            tracing::error!(shard = %replica.id, error = %fatal, "cannot campaign");
        }
    }
}
