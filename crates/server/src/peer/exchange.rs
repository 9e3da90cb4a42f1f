//! The exchange of news: every node asks every other, several times a second.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use flux_env::Disk;
use flux_raft::network::frame::FrameKind;

use super::handshake::Lane;
use super::news::News;
use super::{Address, Peers, member};

/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(1);
/// Every so many rounds the addresses of the list are tried that nobody known is at.
const LIST_ROUNDS: u32 = 5;

impl Peers {
    async fn ask(self: &Arc<Self>, address: Address) -> Option<News> {
        let link = self.link_to(address.clone(), 0, Lane::Control);
        let news = self.book.news(self.leaders());
        let asked_ms = news.time_ms;
        let asking = link.ask(FrameKind::News, 0, |out: &mut BytesMut| news.write(out));
        let asked_at = self.clock.now();
        let answer = tokio::time::timeout(LIMIT, asking).await.ok()?.ok()?;
        if let Address::Node(node) = address {
            let took = self.clock.now().saturating_since(asked_at);
            self.traffics.of(node.physical()).answered_after(took);
        }
        let came_ms = self.clock.unix_millis();
        let news = News::read(answer).ok()?;
        self.book.hear(&news);
        self.book
            .note_clock(news.card.node, news.time_ms, asked_ms, came_ms);
        if let Address::Place(place) = &address
            && self.takes_host_from_list
            && news.card.node == self.book.node()
            && let Some((host, _)) = place.rsplit_once(':')
        {
            let host = host.trim_matches(['[', ']']);
            self.book.tell(|own| host.clone_into(&mut own.card.host));
        }
        Some(news)
    }
}

/// Asks whoever is at an address for its news.
///
/// # Cancellation
/// Safe to drop.
pub(crate) async fn ask_news(peers: &Arc<Peers>, address: &str) -> Option<News> {
    peers.ask(Address::Place(address.to_owned())).await
}

/// Exchanges news until the node ends, and keeps where everybody is.
///
/// # Cancellation
/// Safe to drop.
pub(crate) async fn exchange(
    peers: Arc<Peers>,
    list: Vec<String>,
    disk: Arc<dyn Disk>,
    dir: std::path::PathBuf,
) {
    let mut round = 0_u32;
    let mut own_address = BTreeSet::new();
    loop {
        let others = peers.book.others();
        let mut asked: Vec<_> = others
            .iter()
            .map(|(card, ..)| Address::Node(card.node))
            .collect();
        if round.is_multiple_of(LIST_ROUNDS) {
            let known: BTreeSet<String> = others
                .iter()
                .map(|(card, ..)| card.peer_address())
                .collect();
            let unknown = list
                .iter()
                .filter(|address| !known.contains(*address) && !own_address.contains(*address));
            asked.extend(unknown.cloned().map(Address::Place));
        }
        let asking = asked.into_iter().map(|address| {
            let peers = Arc::clone(&peers);
            async move { (address.clone(), peers.ask(address).await) }
        });
        for (address, news) in futures_util::future::join_all(asking).await {
            if let (Address::Place(place), Some(news)) = (address, news)
                && news.card.node == peers.book.node()
            {
                own_address.insert(place);
            }
        }
        if let Some(cards) = peers.book.changed_cards() {
            let (disk, dir) = (Arc::clone(&disk), dir.clone());
            let kept =
                tokio::task::spawn_blocking(move || member::write_cards(&*disk, &dir, &cards));
            if let Ok(Err(error)) = kept.await {
                tracing::warn!(%error, "cannot keep the addresses of other nodes");
            }
        }
        if let Some(map) = peers.book.changed_map() {
            let (disk, dir) = (Arc::clone(&disk), dir.clone());
            let kept = tokio::task::spawn_blocking(move || {
                member::write_map(&*disk, &dir, &String::from_utf8_lossy(&map))
            });
            if let Ok(Err(error)) = kept.await {
                tracing::warn!(%error, "cannot keep the cluster map");
            }
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = peers.stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}
