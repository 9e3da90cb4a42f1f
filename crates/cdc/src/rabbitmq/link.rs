//! One connection to a broker with one channel, both gone together.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::{Channel, Connection, ConnectionProperties, Event};

use super::{Address, Trouble};

/// How long the broker may take to answer the opening of a connection or channel.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// An open connection and channel. The library's own recovery is off: what is open ends with an
/// error, and whoever holds this makes a new one.
pub struct Link {
    connection: Connection,
    /// For everything that is said to the broker.
    pub channel: Channel,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// What happens to a connection by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// The broker takes nothing for now, and says why: it is short of memory or disk.
    Blocked(String),
    /// It takes messages again.
    Unblocked,
    /// The connection has ended.
    Ended(Trouble),
}

impl Link {
    /// Connects; the broker shows `name` to its operators.
    ///
    /// # Errors
    /// What kept it from opening.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn open(address: &Address, name: &str) -> Result<Self, Trouble> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let opening = async {
            let connection = Connection::connect_uri(address.uri(), properties).await?;
            let events = connection.events_listener().boxed();
            let channel = connection.create_channel().await?;
            Ok(Self {
                connection,
                channel,
                events,
            })
        };
        tokio::time::timeout(PATIENCE, opening)
            .await
            .map_err(|_| Trouble::silent("the opening of a connection"))?
    }

    /// Waits for what happens by itself.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn event(&mut self) -> LinkEvent {
        loop {
            match self.events.next().await {
                Some(Event::ConnectionBlocked(reason)) => return LinkEvent::Blocked(reason),
                Some(Event::ConnectionUnblocked) => return LinkEvent::Unblocked,
                Some(Event::Error(error)) => return LinkEvent::Ended(error.into()),
                // Flow control within the channel, and what later versions may add.
                Some(_) => {}
                None => return LinkEvent::Ended(Trouble::silent("anything: it is closed")),
            }
        }
    }

    /// Whether both still are open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Says farewell, for as long as that makes sense.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub async fn close(self) {
        let farewell = self.connection.close(200, "done".into());
        // A broker that does not answer will notice by itself.
        drop(tokio::time::timeout(FAREWELL, farewell).await);
    }
}
