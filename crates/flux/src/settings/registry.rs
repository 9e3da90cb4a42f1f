//! `[registry]`: where services are registered and found, and how the settings of it fit together.

use std::path::PathBuf;
use std::time::Duration;

use flux_cluster::registry::{Config, Kind, TTL_MAX, TTL_MIN, check_address};

use super::keys::{ALL, DRAINING, Form, Key, show_path, some_text};
use super::{Part, Settings, value};

/// The settings as they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registry {
    /// `None`: what the other settings imply.
    pub(crate) kind: Option<Kind>,
    /// Members of etcd.
    pub(crate) etcd: Vec<String>,
    pub(crate) etcd_user: String,
    pub(crate) etcd_password: String,
    pub(crate) file: Option<PathBuf>,
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) drain_delay: Duration,
}

impl Default for Registry {
    fn default() -> Self {
        let config = Config::default();
        Self {
            kind: None,
            etcd: Vec::new(),
            etcd_user: String::new(),
            etcd_password: String::new(),
            file: None,
            prefix: config.prefix,
            ttl: config.ttl,
            drain_delay: Duration::from_secs(1),
        }
    }
}

impl Registry {
    /// The kind that was named, or that the addresses or the file imply.
    pub(crate) fn kind(&self) -> Kind {
        match self.kind {
            Some(kind) => kind,
            None if !self.etcd.is_empty() => Kind::Etcd,
            None if self.file.is_some() => Kind::File,
            None => Kind::Memory,
        }
    }

    /// Whether others than this process look into it.
    pub(crate) fn is_shared(&self) -> bool {
        self.kind() != Kind::Memory
    }

    /// As the registry takes it.
    pub(crate) fn config(&self) -> Config {
        Config {
            kind: self.kind(),
            etcd: self.etcd.clone(),
            user: self.etcd_user.clone(),
            password: self.etcd_password.clone(),
            file: self.file.clone().unwrap_or_default(),
            prefix: self.prefix.clone(),
            ttl: self.ttl,
        }
    }

    /// Where it is, for people.
    pub(crate) fn place(&self) -> String {
        match self.kind() {
            Kind::Memory => "this process".to_owned(),
            Kind::File => self
                .file
                .as_ref()
                .map_or_else(String::new, |file| file.display().to_string()),
            Kind::Etcd => format!("etcd {}", self.etcd.join(",")),
        }
    }
}

pub(super) const KIND: Key = Key {
    name: "registry.kind",
    flag: "registry",
    variable: "FLUX_REGISTRY",
    placeholder: "KIND",
    form: Form::Text,
    parts: ALL,
    help: "Where services are registered and found: memory, file or etcd; empty: as the next two imply",
    set: |settings, text| {
        settings.registry.kind = parse_kind(text)?;
        Ok(())
    },
    show: |settings| {
        settings
            .registry
            .kind
            .map_or_else(String::new, |kind| kind.as_str().to_owned())
    },
};

pub(super) const ETCD: Key = Key {
    name: "registry.etcd",
    flag: "etcd",
    variable: "FLUX_ETCD",
    placeholder: "HOST:PORT,…",
    form: Form::Text,
    parts: ALL,
    help: "Members of etcd, any of which may be asked",
    set: |settings, text| {
        settings.registry.etcd = parse_etcd(text)?;
        Ok(())
    },
    show: |settings| settings.registry.etcd.join(","),
};

pub(super) const ETCD_USER: Key = Key {
    name: "registry.etcd-user",
    flag: "etcd-user",
    variable: "FLUX_ETCD_USER",
    placeholder: "NAME",
    form: Form::Text,
    parts: ALL,
    help: "Name of an etcd user; empty: etcd asks nobody",
    set: |settings, text| {
        settings.registry.etcd_user = text.to_owned();
        Ok(())
    },
    show: |settings| settings.registry.etcd_user.clone(),
};

pub(super) const ETCD_PASSWORD: Key = Key {
    name: "registry.etcd-password",
    flag: "etcd-password",
    variable: "FLUX_ETCD_PASSWORD",
    placeholder: "PASSWORD",
    form: Form::Text,
    parts: ALL,
    help: "Password of the etcd user. Prefer the variable: flags are public",
    set: |settings, text| {
        settings.registry.etcd_password = text.to_owned();
        Ok(())
    },
    show: |settings| settings.registry.etcd_password.clone(),
};

pub(super) const FILE: Key = Key {
    name: "registry.file",
    flag: "registry-file",
    variable: "FLUX_REGISTRY_FILE",
    placeholder: "PATH",
    form: Form::Text,
    parts: ALL,
    help: "File of the registry, for nodes and gateways of one machine",
    set: |settings, text| {
        settings.registry.file = some_text(text).map(PathBuf::from);
        Ok(())
    },
    show: |settings| show_path(settings.registry.file.as_ref()),
};

pub(super) const PREFIX: Key = Key {
    name: "registry.prefix",
    flag: "registry-prefix",
    variable: "FLUX_REGISTRY_PREFIX",
    placeholder: "TEXT",
    form: Form::Text,
    parts: ALL,
    help: "What all keys in etcd begin with; no slash at its ends",
    set: |settings, text| {
        flux_cluster::registry::check_prefix(text)?;
        text.clone_into(&mut settings.registry.prefix);
        Ok(())
    },
    show: |settings| settings.registry.prefix.clone(),
};

pub(super) const TTL: Key = Key {
    name: "registry.ttl",
    flag: "registry-ttl",
    variable: "FLUX_REGISTRY_TTL",
    placeholder: "DURATION",
    form: Form::Text,
    parts: ALL,
    help: "How long a registration outlives its process, 2s to 10m",
    set: |settings, text| {
        settings.registry.ttl = parse_ttl(text)?;
        Ok(())
    },
    show: |settings| value::show_duration(settings.registry.ttl),
};

pub(super) const DRAIN_DELAY: Key = Key {
    name: "registry.drain-delay",
    flag: "drain-delay",
    variable: "FLUX_DRAIN_DELAY",
    placeholder: "DURATION",
    form: Form::Text,
    parts: DRAINING,
    help: "How long a stop serves on after the registration is withdrawn",
    set: |settings, text| {
        settings.registry.drain_delay = value::duration(text)?;
        Ok(())
    },
    show: |settings| value::show_duration(settings.registry.drain_delay),
};

/// Reads `HOST:PORT,HOST:PORT`; `http://` before one, as etcd's own tools write it, is let pass.
pub(super) fn parse_etcd(text: &str) -> Result<Vec<String>, String> {
    let mut members = Vec::new();
    for member in value::parts(text) {
        let member = member.strip_prefix("http://").unwrap_or(member);
        let member = member.strip_suffix('/').unwrap_or(member);
        if member.starts_with("https://") {
            return Err(format!("{member:?}: etcd behind TLS is not supported"));
        }
        check_address(member)?;
        members.push(member.to_owned());
    }
    Ok(members)
}

pub(super) fn parse_kind(text: &str) -> Result<Option<Kind>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let kinds = [Kind::Memory, Kind::File, Kind::Etcd];
    value::one_of(text, &kinds, Kind::as_str).map(Some)
}

pub(super) fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = value::duration(text)?;
    if (TTL_MIN..=TTL_MAX).contains(&ttl) && ttl.subsec_nanos() == 0 {
        Ok(ttl)
    } else {
        Err("must be 2s to 10m, in whole seconds".to_owned())
    }
}

/// What no single setting shows.
pub(super) fn review(settings: &Settings, parts: &[Part], mistakes: &mut Vec<String>) {
    let registry = &settings.registry;
    match registry.kind() {
        Kind::Etcd if registry.etcd.is_empty() => mistakes.push(
            "--registry etcd: name its members with --etcd HOST:PORT,HOST:PORT (FLUX_ETCD)"
                .to_owned(),
        ),
        Kind::File if registry.file.is_none() => {
            mistakes.push("--registry file: name the file with --registry-file PATH".to_owned())
        }
        Kind::Memory | Kind::File | Kind::Etcd => {}
    }
    if registry.etcd_user.is_empty() && !registry.etcd_password.is_empty() {
        mistakes.push("--etcd-password: it belongs to an --etcd-user, which is missing".to_owned());
    }
    if parts == [Part::Gateway] && settings.upstream.is_none() && !registry.is_shared() {
        mistakes.push(
            "--upstream HOST:PORT is required: the gRPC address behind the gateway; or --etcd \
             HOST:PORT, to find it there"
                .to_owned(),
        );
    }
    if parts == [Part::Registration] && !registry.is_shared() {
        mistakes.push(
            "--etcd HOST:PORT (FLUX_ETCD) or --registry-file PATH is required: where to register"
                .to_owned(),
        );
    }
    if parts.contains(&Part::Node)
        && registry.is_shared()
        && settings.bind.is_unspecified()
        && settings.node.advertise.is_empty()
    {
        mistakes.push(format!(
            "--bind {}: with a registry, --advertise HOST (FLUX_ADVERTISE) must say under which \
             name others reach this node",
            settings.bind
        ));
    }
}
