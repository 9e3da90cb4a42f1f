//! One connection to a broker with one channel, both gone together.

use std::fmt;
use std::time::Duration;

use lapin::{Channel, Connection, ConnectionProperties};

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
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
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
            let channel = connection.create_channel().await?;
            Ok(Self {
                connection,
                channel,
            })
        };
        tokio::time::timeout(PATIENCE, opening)
            .await
            .map_err(|_| Trouble::silent("the opening of a connection"))?
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
