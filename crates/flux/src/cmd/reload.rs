//! New settings without a restart: SIGHUP, or a change of the configuration file, brings the gateway
//! what is new in it. A file with mistakes changes nothing, and is told of in the log, in the
//! metrics and by the check `config`.
//!
//! The file is looked at once a second. A change counts when it has been the same twice, so that a
//! file that is being written is not read by half.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use flux_gateway::Gateway;
use flux_telemetry::checks::{Finding, Need};
use flux_telemetry::{Checks, Counters, Labels, Registry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use crate::args::Run;
use crate::settings::{KEYS, Settings, Upstream, read_layers, resolve};

/// How often the file is looked at.
const PACE: Duration = Duration::from_secs(1);
/// Settings besides the gateway's own that a reload brings into effect.
const RELOADED: &[&str] = &["request-timeout", "gateway.rate-limit"];

/// Watches for changes.
#[derive(Debug)]
pub(crate) struct Reload {
    run: Run,
    hangup: Signal,
    pace: Interval,
    file: Option<WatchedFile>,
    settings: Settings,
    outcome: watch::Sender<Finding>,
    reloads: Counters,
}

/// The file and what is known of its content.
#[derive(Debug)]
struct WatchedFile {
    path: PathBuf,
    /// What is in effect, or was refused.
    seen: String,
    /// What it held at the last look, if that was something else.
    candidate: Option<String>,
}

impl WatchedFile {
    /// Takes a look; whether there is a change that has settled.
    fn has_changed(&mut self) -> bool {
        // A file that is away for a moment, as when an editor replaces it, has not changed yet.
        let Ok(text) = std::fs::read_to_string(&self.path) else {
            return false;
        };
        self.look(text)
    }

    fn look(&mut self, text: String) -> bool {
        if text == self.seen {
            self.candidate = None;
            return false;
        }
        if self.candidate.as_ref() == Some(&text) {
            self.candidate = None;
            self.seen = text;
            return true;
        }
        self.candidate = Some(text);
        false
    }
}

impl Reload {
    /// From now on SIGHUP no longer ends the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn watch(
        run: Run,
        file: Option<(PathBuf, String)>,
        settings: &Settings,
        registry: &Registry,
        checks: &Checks,
    ) -> std::io::Result<Self> {
        let file = file.map(|(path, seen)| WatchedFile {
            path,
            seen,
            candidate: None,
        });
        let outcome = watch::Sender::new(Finding::Ok(String::new()));
        if file.is_some() {
            let outcome = outcome.subscribe();
            checks.add("config", Need::Optional, move || outcome.borrow().clone());
        }
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            pace,
            file,
            settings: settings.clone(),
            outcome,
            reloads: registry.counters(
                "flux_gateway_reloads",
                "Configurations that were read again: taken, or refused for mistakes",
                Labels::one("result", ["taken", "refused"]),
            ),
            run,
        })
    }

    /// Waits until there is a reason to read everything again.
    ///
    /// # Cancellation
    /// Safe to drop.
    pub(crate) async fn wanted(&mut self) {
        loop {
            let Some(file) = &mut self.file else {
                let _ = self.hangup.recv().await;
                return;
            };
            tokio::select! {
                _ = self.hangup.recv() => return,
                _ = self.pace.tick() => {
                    if file.has_changed() {
                        return;
                    }
                }
            }
        }
    }

    /// Reads everything again and gives it to the gateway.
    pub(crate) fn reload(&mut self, gateway: Option<&Gateway>, upstream: Option<&Upstream>) {
        let (Some(gateway), Some(upstream)) = (gateway, upstream) else {
            info!("there is no gateway here, and nothing else reloads");
            return;
        };
        match self.try_reload(gateway, upstream) {
            Ok((settings, waiting)) => {
                self.reloads.increment(0);
                self.tell_of_restarts(&settings, &waiting);
                self.settings = settings;
                info!("the configuration was reloaded");
                self.outcome
                    .send_replace(Finding::Ok("reloaded".to_owned()));
            }
            Err(mistakes) => {
                self.reloads.increment(1);
                for mistake in mistakes.lines() {
                    error!(mistake, "the configuration was not reloaded");
                }
                let line = mistakes.lines().map(str::trim).collect::<Vec<_>>();
                self.outcome.send_replace(Finding::Failed(format!(
                    "the last good one is in effect; {}",
                    line.join("; ")
                )));
            }
        }
    }

    /// The settings now in effect, and keys of the gateway that wait for a restart.
    fn try_reload(
        &mut self,
        gateway: &Gateway,
        upstream: &Upstream,
    ) -> Result<(Settings, Vec<&'static str>), String> {
        let layers = read_layers(self.run.config.clone(), self.run.flags.clone());
        let layers = layers.map_err(|mistakes| mistakes.to_string())?;
        if let (Some(watched), Some((_, text))) = (&mut self.file, &layers.file) {
            watched.seen.clone_from(text);
            watched.candidate = None;
        }
        let resolved = resolve(&layers, self.run.parts).map_err(|mistakes| mistakes.to_string())?;
        let settings = resolved.settings;
        let listen = SocketAddr::new(self.settings.bind, self.settings.http_port);
        let config = settings.gateway(listen, upstream)?;
        let waiting = gateway.reload(config).map_err(|error| error.to_string())?;
        Ok((settings, waiting))
    }

    /// Says which changes wait for a restart.
    fn tell_of_restarts(&self, settings: &Settings, waiting: &[&str]) {
        let changed = KEYS.iter().filter(|key| {
            !RELOADED.contains(&key.name) && (key.show)(settings) != (key.show)(&self.settings)
        });
        let names = changed.map(|key| key.name.to_owned());
        let of_gateway = waiting.iter().map(|key| format!("gateway.{key}"));
        for setting in names.chain(of_gateway) {
            warn!(
                setting,
                "a changed setting takes effect with the next start"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_when_it_has_settled() {
        let mut file = WatchedFile {
            path: PathBuf::new(),
            seen: "a".to_owned(),
            candidate: None,
        };
        let mut look = |text: &str| file.look(text.to_owned());
        assert!(!look("a"));
        assert!(!look("b"));
        assert!(look("b"));
        assert!(!look("b"));
        // Half written, then whole.
        assert!(!look("c"));
        assert!(!look("cd"));
        assert!(look("cd"));
        // Taken back before it settled.
        assert!(!look("e"));
        assert!(!look("cd"));
        assert!(!look("e"));
        assert!(look("e"));
    }
}
