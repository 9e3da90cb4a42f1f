//! `flux register`: lets others find a gRPC server that knows nothing of registries.
//!
//! The server is registered once its address takes connections, for as long as its program runs,
//! and withdrawn first thing when a signal comes: the program is told a little later, so that it
//! still answers those who have not heard. A second signal is passed on at once.

use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use flux_cluster::registry::{Registered, Registration, Registry, check_address};
use flux_telemetry::Checks;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::finish;
use super::run::{install_logs, services};
use crate::Failure;
use crate::args::Register;
use crate::settings::{Settings, read_layers, reason, resolve};

/// How often the address is tried until somebody listens.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// After this time it is said that nobody listens yet.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Signals that wait to be looked at.
const SIGNALS_MAX: usize = 8;
/// What shells add to the number of the signal that ended a program.
const SIGNALLED: i32 = 128;

/// Registers until the program ends, or a signal comes.
///
/// # Errors
/// Mistakes in the settings or the program; the program's own exit code.
pub(crate) fn run(task: Register) -> Result<(), Failure> {
    let parts = task.run.parts;
    let settings = resolve(&read_layers(task.run.config, task.run.flags)?, parts)?.settings;
    check_address(&task.address)
        .map_err(|problem| Failure::Mistake(format!("--addr: {problem}")))?;
    let registration = Registration {
        id: task
            .id
            .unwrap_or_else(|| task.address.replace(['[', ']'], "")),
        services: task.services,
        address: task.address,
        node: None,
    };
    registration
        .validate()
        .map_err(|problem| Failure::Mistake(format!("flux register: {problem}")))?;
    install_logs(&settings)?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::Failed(format!("the runtime: {error}")))?;
    finish(runtime, async {
        let metrics = flux_telemetry::Registry::new();
        let registry = services(&settings, &metrics, &Checks::new())?;
        let signals = signals()
            .map_err(|error| Failure::Failed(format!("cannot listen for signals: {error}")))?;
        let mut words = task.words.into_iter();
        match words.next() {
            None => alone(&registry, registration, signals).await,
            Some(program) => {
                let child = Command::new(&program).args(words).spawn();
                let child = child.map_err(|error| {
                    let program = program.to_string_lossy();
                    Failure::Mistake(format!("{program}: {}", reason(&error)))
                })?;
                beside(
                    &settings,
                    &registry,
                    registration,
                    Program::watch(child),
                    signals,
                )
                .await
            }
        }
    })
}

fn register(registry: &Registry, registration: Registration) -> Result<Registered, Failure> {
    registry
        .register(registration)
        .map_err(|error| Failure::Mistake(format!("flux register: {error}")))
}

/// Somebody else runs the server.
async fn alone(
    registry: &Registry,
    registration: Registration,
    mut signals: mpsc::Receiver<Signal>,
) -> Result<(), Failure> {
    let registered = register(registry, registration)?;
    while signals.recv().await.is_some_and(|signal| !ends(signal)) {}
    registered.withdraw().await;
    Ok(())
}

/// Runs beside the program that serves.
async fn beside(
    settings: &Settings,
    registry: &Registry,
    registration: Registration,
    mut program: Program,
    mut signals: mpsc::Receiver<Signal>,
) -> Result<(), Failure> {
    let address = registration.address.clone();
    let mut waiting = Some(registration);
    let mut registered: Option<Registered> = None;
    let listens = listens(&address);
    tokio::pin!(listens);
    loop {
        tokio::select! {
            status = &mut program.ended => {
                withdraw(&mut registered).await;
                return outcome(status.ok());
            }
            () = &mut listens, if waiting.is_some() => {
                if let Some(registration) = waiting.take() {
                    registered = Some(register(registry, registration)?);
                }
            }
            Some(signal) = signals.recv() => {
                if ends(signal) {
                    // Not to be registered anymore, should it not have been yet.
                    waiting = None;
                }
                if ends(signal) && registered.is_some() {
                    withdraw(&mut registered).await;
                    tokio::select! {
                        () = tokio::time::sleep(settings.registry.drain_delay) => {}
                        Some(again) = signals.recv() => program.signal(again),
                        status = &mut program.ended => return outcome(status.ok()),
                    }
                }
                program.signal(signal);
            }
        }
    }
}

async fn withdraw(registered: &mut Option<Registered>) {
    if let Some(registered) = registered.take() {
        registered.withdraw().await;
    }
}

/// Whether a signal asks a program to end.
fn ends(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::QUIT].contains(&signal)
}

/// Returns once somebody listens at the address.
async fn listens(address: &str) {
    let begun = tokio::time::Instant::now();
    let mut has_complained = false;
    loop {
        let connect = tokio::net::TcpStream::connect(address);
        if let Ok(Ok(_)) = tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            info!(address, "the server listens");
            return;
        }
        if begun.elapsed() > CONNECT_PATIENCE && !std::mem::replace(&mut has_complained, true) {
            warn!(
                address,
                "nobody listens yet; not registered until somebody does"
            );
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

/// How the program's end is told to whoever started us.
fn outcome(status: Option<ExitStatus>) -> Result<(), Failure> {
    let Some(status) = status else {
        return Err(Failure::Failed("the program was lost".to_owned()));
    };
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| SIGNALLED + signal));
    match code.and_then(|code| u8::try_from(code).ok()) {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Status(code)),
        None => Err(Failure::Failed(format!("the program ended with {status}"))),
    }
}

/// The program that serves.
#[derive(Debug)]
struct Program {
    pid: Option<Pid>,
    is_on_terminal: bool,
    ended: oneshot::Receiver<ExitStatus>,
}

impl Program {
    /// Waits for its end on a thread of its own.
    fn watch(mut child: Child) -> Self {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let (tell, ended) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            if let Ok(status) = child.wait() {
                // Whoever waited may have been stopped.
                let _is_heard = tell.send(status).is_ok();
            }
        });
        Self {
            pid,
            is_on_terminal: std::io::stdin().is_terminal(),
            ended,
        }
    }

    fn signal(&self, signal: Signal) {
        // On a terminal, ^C and ^\ have reached the program as they reached us.
        let has_it = self.is_on_terminal && matches!(signal, Signal::INT | Signal::QUIT);
        if let Some(pid) = self.pid.filter(|_| !has_it) {
            // It may have ended by itself a moment ago.
            let _was_there = kill_process(pid, signal).is_ok();
        }
    }
}

/// The signals that are passed on.
fn signals() -> std::io::Result<mpsc::Receiver<Signal>> {
    let (tell, told) = mpsc::channel(SIGNALS_MAX);
    for (kind, number) in [
        (SignalKind::terminate(), Signal::TERM),
        (SignalKind::interrupt(), Signal::INT),
        (SignalKind::hangup(), Signal::HUP),
        (SignalKind::quit(), Signal::QUIT),
        (SignalKind::user_defined1(), Signal::USR1),
        (SignalKind::user_defined2(), Signal::USR2),
    ] {
        let mut signals = signal(kind)?;
        let tell = tell.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() && tell.send(number).await.is_ok() {}
        });
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_programs_and_a_signal_counts_from_128() {
        let of = |raw| outcome(Some(ExitStatus::from_raw(raw)));
        assert!(matches!(of(0), Ok(())));
        assert!(matches!(of(7 << 8), Err(Failure::Status(7))));
        assert!(matches!(of(15), Err(Failure::Status(143))));
        assert!(matches!(outcome(None), Err(Failure::Failed(_))));
    }
}
