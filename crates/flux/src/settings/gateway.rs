//! The gateway's part of the file, which its own types judge, and the routes that are shipped.
//!
//! A key that the file sets replaces the shipped one as a whole; `routes` in particular. The
//! gateway knows nothing of keys and values: `/api/v1/kv` is a route in `etc/flux.toml`, which is
//! compiled into the program.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use flux_gateway::{Config, DescriptorSource, Mistake, Rate, Timeout, UpstreamConfig};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::{KEYS, Resolved, Settings};

/// The shipped file.
const SHIPPED: &str = include_str!("../../../../etc/flux.toml");
/// The upstream that the settings name: this process's node, or `--upstream`.
pub(crate) const UPSTREAM: &str = "kv";
/// What other settings decide.
const DECIDED_ELSEWHERE: &[&str] = &["listen", "request-timeout"];

/// Where the gateway finds the service behind it.
#[derive(Clone, Debug)]
pub(crate) enum Upstream {
    /// The node of this process, whose descriptors are known.
    Node(SocketAddr, &'static [u8]),
    /// Another process, which is asked for its descriptors.
    Other(String),
    /// Whoever has registered this service; they are asked for their descriptors.
    Discovered(&'static str),
}

/// The gateway's own keys.
pub(super) fn keys() -> impl Iterator<Item = String> {
    let table = toml::Table::try_from(Config::default()).unwrap_or_default();
    table
        .into_iter()
        .map(|(key, _)| key)
        .filter(|key| !DECIDED_ELSEWHERE.contains(&key.as_str()))
}

pub(super) fn is_key(word: &str) -> bool {
    keys().any(|key| key == word)
}

/// Whether the gateway's types take a value; where in the file the problem lies, if that is known.
pub(super) fn check(
    word: &str,
    value: &Spanned<DeValue<'_>>,
    is_element: bool,
) -> Result<(), (String, Option<usize>)> {
    let mut value = value.clone();
    if is_element {
        let span = value.span();
        value = Spanned::new(span, DeValue::Array(std::iter::once(value).collect()));
    }
    let span = value.span();
    let mut table = DeTable::new();
    table.insert(Spanned::new(span.clone(), word.to_owned().into()), value);
    let deserializer = ValueDeserializer::from(Spanned::new(span, DeValue::Table(table)));
    match Config::deserialize(deserializer) {
        Ok(_) => Ok(()),
        Err(error) => Err((
            error.message().to_owned(),
            error.span().map(|span| span.start),
        )),
    }
}

/// A value without its place in the file.
pub(super) fn plain(value: Spanned<DeValue<'_>>) -> Result<toml::Value, toml::de::Error> {
    toml::Value::deserialize(ValueDeserializer::from(value))
}

/// The gateway's configuration: shipped, with what the file replaces.
pub(crate) fn config(
    settings: &Settings,
    listen: SocketAddr,
    upstream: &Upstream,
) -> Result<Config, toml::de::Error> {
    let mut tables = shipped()?;
    tables.extend(settings.gateway_tables.clone());
    let mut config = Config::deserialize(toml::Value::Table(tables))?;
    config.listen = listen;
    config.request_timeout =
        Timeout::millis(u64::try_from(settings.request_timeout.as_millis()).unwrap_or(u64::MAX));
    config.request_timeout_max = config.request_timeout_max.max(config.request_timeout);
    if settings.rate_limit != Rate::NONE {
        config.limit.rate = settings.rate_limit;
    }
    let mut kv = UpstreamConfig {
        name: UPSTREAM.to_owned(),
        ..UpstreamConfig::default()
    };
    kv.metadata = settings
        .upstream_password
        .iter()
        .map(|password| ("authorization".to_owned(), format!("Bearer {password}")))
        .collect();
    match upstream {
        Upstream::Node(address, set) => {
            kv.endpoints = vec![address.to_string()];
            kv.descriptors = DescriptorSource::Embedded(Bytes::from_static(set));
        }
        Upstream::Other(endpoint) => kv.endpoints = vec![endpoint.clone()],
        Upstream::Discovered(service) => (*service).clone_into(&mut kv.service),
    }
    config.upstreams.insert(0, kv);
    Ok(config)
}

/// The shipped `[gateway]` without what is a setting.
fn shipped() -> Result<toml::Table, toml::de::Error> {
    let file: toml::Table = SHIPPED.parse()?;
    let mut gateway = match file.get("gateway") {
        Some(toml::Value::Table(table)) => table.clone(),
        _ => toml::Table::new(),
    };
    for key in KEYS.iter().filter(|key| key.section() == "gateway") {
        gateway.remove(key.name.trim_start_matches("gateway."));
    }
    Ok(gateway)
}

/// Lets the gateway judge everything together; each mistake gets the line it stands in.
pub(super) fn review(resolved: &Resolved, path: Option<&Path>, mistakes: &mut Vec<String>) {
    // Where it will listen and what will be behind it is not known yet and is none of the mistakes.
    let nowhere = SocketAddr::new(resolved.settings.bind, 1);
    let config = match config(&resolved.settings, nowhere, &Upstream::Node(nowhere, &[])) {
        Ok(config) => config,
        Err(error) => {
            mistakes.push(format!("[gateway]: {}", error.message()));
            return;
        }
    };
    let Err(found) = config.validate() else {
        return;
    };
    for Mistake {
        key,
        problem,
        remedy,
    } in found
    {
        let key = own_upstream_aside(&key);
        let line = line_of(resolved, &key);
        let place = match (path, line) {
            (Some(path), Some(line)) => format!("{}:{line}: ", path.display()),
            _ => String::new(),
        };
        mistakes.push(format!("{place}gateway.{key}: {problem}; {remedy}"));
    }
}

/// The nearest line that is known for a path such as `upstreams[0].endpoints[1]`.
fn line_of(resolved: &Resolved, key: &str) -> Option<usize> {
    let mut key = key;
    loop {
        if let Some(line) = resolved.gateway_lines.get(key) {
            return Some(*line);
        }
        let end = key.rfind(['.', '['])?;
        key = key.get(..end)?;
    }
}

/// `upstreams[1]` of the configuration is `upstreams[0]` of the file, because the first is ours.
fn own_upstream_aside(key: &str) -> String {
    let Some((index, after)) = key
        .strip_prefix("upstreams[")
        .and_then(|rest| rest.split_once(']'))
        .and_then(|(index, after)| Some((index.parse::<usize>().ok()?.checked_sub(1)?, after)))
    else {
        return key.to_owned();
    };
    format!("upstreams[{index}]{after}")
}
