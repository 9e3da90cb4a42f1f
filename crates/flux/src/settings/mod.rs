//! Settings: where they come from and which of them wins.
//!
//! Defaults, then the file that `--config` or `FLUX_CONFIG` names (none is looked for by itself:
//! what a process does must not depend on the folder it was started in), then `FLUX_*` variables,
//! then flags. Each layer overwrites the one before, every mistake in any layer is reported, and
//! every value remembers its origin. This is the only place of the project that reads the
//! environment or a configuration file.

mod cluster;
mod file;
mod gateway;
mod keys;
mod registry;
mod telemetry;
pub(crate) mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use gateway::{UPSTREAM, Upstream};
pub(crate) use keys::{Form, KEYS, Key};
pub(crate) use registry::Registry;
pub(crate) use telemetry::{Telemetry, of_environment};
pub(crate) use value::{duration as parse_duration, port as parse_port};

/// What a process can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The key-value node.
    Node,
    /// The HTTP gateway.
    Gateway,
    /// The registration of a service that somebody else runs.
    Registration,
}

/// Everything that can be set, as typed values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) bind: IpAddr,
    /// `None`: 9180, or 9181 for a gateway alone.
    pub(crate) admin_port: Option<u16>,
    pub(crate) password: Option<String>,
    pub(crate) insecure: bool,
    pub(crate) request_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) ready_file: Option<PathBuf>,
    pub(crate) log_level: String,
    pub(crate) telemetry: Telemetry,
    /// What only a node looks at; what it shares with others is filled in by [`Settings::node`].
    pub(crate) node: flux_server::Config,
    pub(crate) http_port: u16,
    pub(crate) upstream: Option<String>,
    /// The gateway's `limit.rate`, if it is given so.
    pub(crate) rate_limit: flux_gateway::Rate,
    /// What the gateway gives the upstream "kv" when a request brings no authorization.
    pub(crate) upstream_password: Option<String>,
    /// Where services are registered and found.
    pub(crate) registry: Registry,
    /// What the file says about the gateway beyond these settings: routes, upstreams, limits.
    pub(crate) gateway_tables: toml::Table,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            admin_port: None,
            password: None,
            insecure: false,
            request_timeout: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(10),
            ready_file: None,
            log_level: "info".to_owned(),
            telemetry: Telemetry::default(),
            node: flux_server::Config::default(),
            http_port: 8080,
            upstream: None,
            rate_limit: flux_gateway::Rate::NONE,
            upstream_password: None,
            registry: Registry::default(),
            gateway_tables: toml::Table::new(),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Line of the file.
    File(PathBuf, usize),
    /// An environment variable.
    Variable(&'static str),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// The layers above the defaults, as they were found.
#[derive(Debug, Default)]
pub(crate) struct Layers {
    /// The file with its text.
    pub(crate) file: Option<(PathBuf, String)>,
    /// Variables by their names.
    pub(crate) variables: BTreeMap<&'static str, OsString>,
    /// Flags by their names, without dashes.
    pub(crate) flags: BTreeMap<&'static str, OsString>,
}

/// Settings with their origins; what has no origin is a default.
#[derive(Debug, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) settings: Settings,
    pub(crate) origins: BTreeMap<&'static str, Origin>,
    /// Lines of what the gateway's own types judge, by paths such as `routes[0].http`.
    pub(crate) gateway_lines: BTreeMap<String, usize>,
}

/// All mistakes found, one line each.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistakes(pub(crate) Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// Reads the variables that name settings, and the file that `flag` or `FLUX_CONFIG` names.
///
/// # Errors
/// When that file cannot be read.
pub(crate) fn read_layers(
    config: Option<OsString>,
    flags: BTreeMap<&'static str, OsString>,
) -> Result<Layers, Mistakes> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let file = match config.or_else(|| variable("FLUX_CONFIG")) {
        None => None,
        Some(path) => {
            let path = PathBuf::from(path);
            let text = std::fs::read_to_string(&path).map_err(|error| {
                Mistakes(vec![format!(
                    "--config {}: {}",
                    path.display(),
                    reason(&error)
                )])
            })?;
            Some((path, text))
        }
    };
    let variables = KEYS
        .iter()
        .map(|key| key.variable)
        .chain(telemetry::STANDARD.iter().map(|(name, ..)| *name))
        .filter_map(|name| variable(name).map(|value| (name, value)))
        .collect();
    Ok(Layers {
        file,
        variables,
        flags,
    })
}

/// What an I/O error says, without the code that its display appends.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(characters).collect()
    })
}

/// Lays the layers over the defaults and checks the whole.
///
/// # Errors
/// All mistakes of all layers, in the order file, variables, flags, relations.
pub(crate) fn resolve(layers: &Layers, parts: &[Part]) -> Result<Resolved, Mistakes> {
    let (resolved, mut mistakes) = overlay(layers, parts);
    if mistakes.is_empty() {
        check_relations(&resolved, parts, &mut mistakes);
    }
    if mistakes.is_empty() && parts.contains(&Part::Node) {
        review_node(&resolved, parts, &mut mistakes);
    }
    if mistakes.is_empty() && parts.contains(&Part::Gateway) {
        let path = layers.file.as_ref().map(|(path, _)| path.as_path());
        gateway::review(&resolved, path, &mut mistakes);
    }
    if mistakes.is_empty() {
        Ok(resolved)
    } else {
        Err(Mistakes(mistakes))
    }
}

/// Each setting for itself, for those who start nothing: what two of them mean together for a node
/// is no concern of somebody who asks a gateway how it is.
///
/// # Errors
/// All mistakes.
pub(crate) fn resolve_each(layers: &Layers, parts: &[Part]) -> Result<Resolved, Mistakes> {
    let (resolved, mistakes) = overlay(layers, parts);
    if mistakes.is_empty() {
        Ok(resolved)
    } else {
        Err(Mistakes(mistakes))
    }
}

fn overlay(layers: &Layers, parts: &[Part]) -> (Resolved, Vec<String>) {
    let mut resolved = Resolved {
        settings: Settings::default(),
        origins: BTreeMap::new(),
        gateway_lines: BTreeMap::new(),
    };
    let mut mistakes = Vec::new();
    if let Some((path, text)) = &layers.file {
        file::read(path, text, &mut resolved, &mut mistakes);
    }
    telemetry::standard(layers, &mut resolved, &mut mistakes);
    let named = KEYS
        .iter()
        .filter(|key| key.parts.iter().any(|part| parts.contains(part)));
    for key in named.clone() {
        if let Some(value) = layers.variables.get(key.variable) {
            overwrite(
                key,
                Origin::Variable(key.variable),
                value,
                &mut resolved,
                &mut mistakes,
            );
        }
    }
    for key in named {
        if let Some(value) = layers.flags.get(key.flag) {
            overwrite(
                key,
                Origin::Flag(key.flag),
                value,
                &mut resolved,
                &mut mistakes,
            );
        }
    }
    (resolved, mistakes)
}

fn overwrite(
    key: &'static Key,
    origin: Origin,
    value: &OsString,
    resolved: &mut Resolved,
    mistakes: &mut Vec<String>,
) {
    let outcome = value
        .to_str()
        .ok_or_else(|| format!("{value:?} is not UTF-8"))
        .and_then(|text| (key.set)(&mut resolved.settings, text));
    match outcome {
        Ok(()) => {
            resolved.origins.insert(key.name, origin);
        }
        Err(problem) => mistakes.push(format!("{origin}: {problem}")),
    }
}

/// What no single value shows: two listeners on one port, a listener open to the world.
fn check_relations(resolved: &Resolved, parts: &[Part], mistakes: &mut Vec<String>) {
    let settings = &resolved.settings;
    let mut ports: BTreeMap<u16, &'static str> = BTreeMap::new();
    for (flag, port) in settings.ports(parts) {
        if port == 0 {
            continue;
        }
        if let Some(other) = ports.insert(port, flag) {
            mistakes.push(format!(
                "--{other} and --{flag} are both {port}: change one of them"
            ));
        }
    }
    let listens = parts != [Part::Registration];
    if listens && !settings.bind.is_loopback() && !settings.insecure && settings.password.is_none()
    {
        mistakes.push(format!(
            "--bind {}: beyond loopback a --password (FLUX_PASSWORD) is required, or --insecure",
            settings.bind
        ));
    }
    registry::review(settings, parts, mistakes);
}

/// Lets the node judge everything together; each mistake is named by where its value came from.
fn review_node(resolved: &Resolved, parts: &[Part], mistakes: &mut Vec<String>) {
    let Err(found) = resolved.settings.node(parts).validate() else {
        return;
    };
    for flux_server::Mistake { key, problem } in found {
        let row = KEYS.iter().find(|row| row.flag == key);
        let origin = row.and_then(|row| resolved.origins.get(row.name));
        let origin = origin.map_or_else(|| format!("--{key}"), Origin::to_string);
        mistakes.push(match row {
            Some(row) if !origin.starts_with("--") => format!("{origin}: {}: {problem}", row.name),
            _ => format!("{origin}: {problem}"),
        });
    }
}

impl Settings {
    /// The node's configuration.
    pub(crate) fn node(&self, parts: &[Part]) -> flux_server::Config {
        flux_server::Config {
            bind: self.bind,
            admin_port: self.admin_port_for(parts),
            password: self.password.clone().unwrap_or_default(),
            insecure: self.insecure,
            request_timeout: self.request_timeout,
            drain_timeout: self.drain_timeout,
            // A node alone is one of many that share the work.
            shards_initial: if parts == [Part::Node] { 4 } else { 1 },
            ..self.node.clone()
        }
    }

    /// The gateway's configuration.
    pub(crate) fn gateway(
        &self,
        listen: SocketAddr,
        upstream: &Upstream,
    ) -> Result<flux_gateway::Config, String> {
        gateway::config(self, listen, upstream).map_err(|error| error.message().to_owned())
    }

    /// The flag and port of every listener, in the order in which they are named to people.
    pub(crate) fn ports(&self, parts: &[Part]) -> Vec<(&'static str, u16)> {
        let mut ports = Vec::new();
        if parts.contains(&Part::Node) {
            ports.push(("port", self.node.port));
            ports.push(("grpc-port", self.node.grpc_port));
            if self.node.node_id != 0 {
                ports.push(("peer-port", self.node.peer_port));
            }
        }
        if parts.contains(&Part::Gateway) {
            ports.push(("http-port", self.http_port));
        }
        if parts != [Part::Registration] {
            ports.push(("admin-port", self.admin_port_for(parts)));
        }
        ports
    }

    /// The admin port: a gateway alone stands beside a node on the same machine.
    pub(crate) fn admin_port_for(&self, parts: &[Part]) -> u16 {
        let default = if parts == [Part::Gateway] { 9181 } else { 9180 };
        self.admin_port.unwrap_or(default)
    }
}

/// A URL with its password masked; what cannot be told apart is masked as a whole.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "(set, not shown)".to_owned();
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(authority_end).unwrap_or((rest, ""));
    let Some((user, host)) = authority.rsplit_once('@') else {
        return if path.contains('@') {
            "(set, not shown)".to_owned()
        } else {
            url.to_owned()
        };
    };
    if path.contains('@') {
        return "(set, not shown)".to_owned();
    }
    let user = user.split(':').next().unwrap_or_default();
    format!("{scheme}://{user}:***@{host}{path}")
}

/// The effective settings as a file, each line with its origin; passwords are not shown.
pub(crate) fn show(resolved: &Resolved) -> String {
    const HIDDEN: &str = "(set, not shown)";
    let mut settings = resolved.settings.clone();
    for password in [&mut settings.password, &mut settings.upstream_password] {
        if password.is_some() {
            *password = Some(HIDDEN.to_owned());
        }
    }
    let broker = &mut settings.node.cdc.rabbitmq.url;
    if !broker.is_empty() {
        // The rest of it may be needed; its password never is.
        *broker = without_password(broker);
    }
    if !settings.registry.etcd_password.is_empty() {
        HIDDEN.clone_into(&mut settings.registry.etcd_password);
    }
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        if key.section() != section {
            section = key.section();
            text.push_str(&format!("\n[{section}]\n"));
        }
        let origin = resolved
            .origins
            .get(key.name)
            .map_or_else(|| "default".to_owned(), Origin::to_string);
        text.push_str(&format!("{:<40} # {origin}\n", key.line(&settings)));
    }
    if !settings.gateway_tables.is_empty() {
        let mut gateway = toml::Table::new();
        gateway.insert(
            "gateway".to_owned(),
            toml::Value::Table(settings.gateway_tables),
        );
        text.push('\n');
        text.push_str(&gateway.to_string());
    }
    text
}

#[cfg(test)]
mod tests;
