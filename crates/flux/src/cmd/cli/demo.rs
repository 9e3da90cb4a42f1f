//! `flux cli demo`: connects, writes, reads, counts, expires and deletes, says what it sees, and
//! fails if anything is not as it must be.

use std::time::Duration;

use flux_client::{Client, Compare, Error};
use tokio::time::{Instant, sleep};

use super::said;
use crate::{Failure, out};

/// How long the key of the demonstration lives.
const TTL: Duration = Duration::from_millis(100);
/// How long its end is waited for. A busy machine is no failure.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests that are on their way at once.
const INCREMENTS: usize = 100;

/// Runs the demonstration on keys of its own, which are gone afterwards.
pub(super) async fn run(client: &Client) -> Result<(), Failure> {
    let prefix = format!("flux-demo:{}", std::process::id());
    let demo = Demo {
        client,
        hello: format!("{prefix}:hello"),
        count: format!("{prefix}:count"),
    };
    let outcome = demo.steps().await;
    // Whatever went wrong: nothing is left behind.
    for key in [&demo.hello, &demo.count] {
        drop(client.delete(key.clone()).await);
    }
    outcome
}

struct Demo<'a> {
    client: &'a Client,
    hello: String,
    count: String,
}

impl Demo<'_> {
    async fn steps(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        self.client.ping().await.map_err(|error| said(&error))?;
        let address = &self.client.config().address;
        out::line(&format!(
            "connected  to {address}, a round trip took {:?}",
            begun.elapsed()
        ));
        self.write_and_read().await?;
        self.compare().await?;
        self.count().await?;
        self.expire().await?;
        self.delete().await?;
        out::line("everything was as it must be");
        Ok(())
    }

    async fn write_and_read(&self) -> Result<(), Failure> {
        let key = &self.hello;
        self.client
            .set(key.clone(), "world")
            .await
            .map_err(|error| said(&error))?;
        out::line(&format!("wrote      {key} = world"));
        let value = self.value(key).await?;
        must("the value", value.as_deref(), Some("world"))?;
        out::line(&format!("read       {key} = world"));
        Ok(())
    }

    async fn compare(&self) -> Result<(), Failure> {
        let key = &self.hello;
        let swap = |expected: &'static str, value: &'static str| async move {
            let expected = Compare::ValueIs(expected.into());
            let written = self
                .client
                .compare_and_set(key.clone(), expected, value)
                .await;
            written
                .map(|written| written.applied)
                .map_err(|error| said(&error))
        };
        must(
            "a swap of the right value",
            swap("world", "again").await?,
            true,
        )?;
        must(
            "a swap of the wrong value",
            swap("world", "never").await?,
            false,
        )?;
        must(
            "the value",
            self.value(key).await?.as_deref(),
            Some("again"),
        )?;
        out::line(&format!("swapped    {key} = again, and not a second time"));
        Ok(())
    }

    async fn count(&self) -> Result<(), Failure> {
        let key = &self.count;
        let begun = Instant::now();
        let tasks: Vec<_> = (0..INCREMENTS)
            .map(|_| {
                let (client, key) = (self.client.clone(), key.clone());
                tokio::spawn(async move { client.increment(key, 1).await })
            })
            .collect();
        for task in tasks {
            let sum = task
                .await
                .map_err(|error| Failure::Failed(error.to_string()))?;
            sum.map_err(|error: Error| said(&error))?;
        }
        let elapsed = begun.elapsed();
        must(
            "the count",
            self.value(key).await?,
            Some(INCREMENTS.to_string()),
        )?;
        out::line(&format!(
            "counted    {key} = {INCREMENTS}, {INCREMENTS} requests at once took {elapsed:?}"
        ));
        Ok(())
    }

    async fn expire(&self) -> Result<(), Failure> {
        let key = &self.hello;
        let was_there = self
            .client
            .expire(key.clone(), TTL)
            .await
            .map_err(|error| said(&error))?;
        must("the key", was_there, true)?;
        let begun = Instant::now();
        while self.value(key).await?.is_some() {
            if begun.elapsed() > PATIENCE {
                return Err(Failure::Failed(format!("{key} outlives its {TTL:?}")));
            }
            sleep(Duration::from_millis(5)).await;
        }
        out::line(&format!(
            "expired    {key}, seen gone {:?} after it was given {TTL:?}",
            begun.elapsed()
        ));
        Ok(())
    }

    async fn delete(&self) -> Result<(), Failure> {
        let key = &self.count;
        let delete = || async {
            self.client
                .delete(key.clone())
                .await
                .map_err(|error| said(&error))
        };
        must("a deletion", delete().await?, true)?;
        must("a second deletion", delete().await?, false)?;
        must("the value", self.value(key).await?, None)?;
        out::line(&format!("deleted    {key}"));
        Ok(())
    }

    async fn value(&self, key: &str) -> Result<Option<String>, Failure> {
        let value = self
            .client
            .get(key.to_owned())
            .await
            .map_err(|error| said(&error))?;
        Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// What is seen must be what was expected.
fn must<T: PartialEq + std::fmt::Debug>(what: &str, seen: T, expected: T) -> Result<(), Failure> {
    if seen == expected {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "{what} is {seen:?} and must be {expected:?}"
    )))
}
