//! Every mistake of a configuration at once, each with its key and a remedy.

use std::collections::HashSet;
use std::fmt;

use flux_cluster::registry::check_service;
use http::{HeaderName, HeaderValue, Method};

use super::{Config, DescriptorSource, RouteConfig, UpstreamConfig};
use crate::route::template::Template;

/// One mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key, such as `routes[2].http`.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.key, self.problem, self.remedy)
    }
}

/// Largest number of workers that makes sense.
const WORKERS_MAX: usize = 256;
/// Deepest nesting of JSON that the reader's stack is made for.
const JSON_DEPTH_MAX: usize = 100;

impl Config {
    /// Checks the whole configuration.
    ///
    /// # Errors
    /// Every mistake found, never an empty list.
    pub fn validate(&self) -> Result<(), Vec<Mistake>> {
        let mut mistakes = Mistakes(Vec::new());
        self.limits(&mut mistakes);
        self.headers(&mut mistakes);
        self.limit.check("limit", &mut mistakes);
        self.client_limit.check("client-limit", &mut mistakes);
        self.breaker.check("breaker", &mut mistakes);
        self.health.check("health", &mut mistakes);
        self.retry.check("retry", &mut mistakes);
        self.stale.check("stale", &mut mistakes);
        let mut names = HashSet::new();
        for (index, upstream) in self.upstreams.iter().enumerate() {
            let key = format!("upstreams[{index}]");
            if !names.insert(upstream.name.as_str()) {
                let problem = format!("the name {:?} is taken", upstream.name);
                mistakes.add(
                    format!("{key}.name"),
                    problem,
                    "give each upstream its own name",
                );
            }
            upstream.check(&key, &mut mistakes);
        }
        let mut paths = HashSet::new();
        for (index, route) in self.routes.iter().enumerate() {
            let key = format!("routes[{index}]");
            if !paths.insert(route.http.as_str()) {
                let problem = format!("{:?} is routed already", route.http);
                mistakes.add(format!("{key}.http"), problem, "remove one of the two");
            }
            route.check(&key, &names, &mut mistakes);
        }
        if mistakes.0.is_empty() {
            Ok(())
        } else {
            Err(mistakes.0)
        }
    }

    fn limits(&self, mistakes: &mut Mistakes) {
        let mut range = |key: &str, value: usize, least: usize, most: usize| {
            if !(least..=most).contains(&value) {
                let remedy = format!("choose {least} to {most}");
                mistakes.add(key.to_owned(), format!("{value} is out of range"), &remedy);
            }
        };
        range("workers", self.workers, 0, WORKERS_MAX);
        range("connections-max", self.connections_max, 1, 10_000_000);
        range("headers-max", self.headers_max, 1, 1_000);
        range(
            "header-bytes-max",
            self.header_bytes_max.get(),
            1 << 10,
            1 << 20,
        );
        range("body-bytes-max", self.body_bytes_max.get(), 1, 1 << 30);
        range(
            "response-bytes-max",
            self.response_bytes_max.get(),
            1,
            1 << 30,
        );
        range("json.depth-max", self.json.depth_max, 1, JSON_DEPTH_MAX);
        for (key, timeout) in [
            ("header-read-timeout", self.header_read_timeout),
            ("body-read-timeout", self.body_read_timeout),
            ("request-timeout", self.request_timeout),
            ("request-timeout-max", self.request_timeout_max),
            ("stall-timeout", self.stall_timeout),
            ("stream.time-max", self.stream.time_max),
            ("stream.open-wait", self.stream.open_wait),
            ("stream.ping-interval", self.stream.ping_interval),
        ] {
            if timeout.get().is_zero() {
                mistakes.add(
                    key.to_owned(),
                    "is zero".to_owned(),
                    "set a time, such as \"10s\"",
                );
            }
        }
        if self.request_timeout > self.request_timeout_max {
            let problem = "is longer than request-timeout-max".to_owned();
            mistakes.add(
                "request-timeout".to_owned(),
                problem,
                "raise the one or lower the other",
            );
        }
    }

    fn headers(&self, mistakes: &mut Mistakes) {
        for (index, name) in self.forward_headers.iter().enumerate() {
            let key = format!("forward-headers[{index}]");
            check_metadata_name(key, name, mistakes);
        }
        if !self.health_path.is_empty() && !self.health_path.starts_with('/') {
            let problem = "does not begin with /".to_owned();
            mistakes.add(
                "health-path".to_owned(),
                problem,
                "write it as in \"/health\"",
            );
        }
    }
}

impl UpstreamConfig {
    fn check(&self, key: &str, mistakes: &mut Mistakes) {
        self.check_source(key, mistakes);
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            if endpoint
                .parse::<http::uri::Authority>()
                .ok()
                .and_then(|a| a.port_u16())
                .is_none()
            {
                let problem = format!("{endpoint:?} is not host:port");
                let key = format!("{key}.endpoints[{index}]");
                mistakes.add(key, problem, "write it as in \"127.0.0.1:50052\"");
            }
        }
        if self.name.is_empty() {
            mistakes.add(
                format!("{key}.name"),
                "is empty".to_owned(),
                "give it a name",
            );
        }
        if self.in_flight_max == 0 {
            let key = format!("{key}.in-flight-max");
            mistakes.add(key, "is zero".to_owned(), "allow at least 1 call");
        }
        if let Some(breaker) = &self.breaker {
            breaker.check(&format!("{key}.breaker"), mistakes);
        }
        if let Some(health) = &self.health {
            health.check(&format!("{key}.health"), mistakes);
        }
        if let Some(retry) = &self.retry {
            retry.check(&format!("{key}.retry"), mistakes);
        }
        for (name, timeout) in [
            ("refresh", self.refresh),
            ("connect-timeout", self.connect_timeout),
        ] {
            if timeout.get().is_zero() {
                let key = format!("{key}.{name}");
                mistakes.add(key, "is zero".to_owned(), "set a time, such as \"1s\"");
            }
        }
        if matches!(&self.descriptors, DescriptorSource::Proto(source) if source.files.is_empty()) {
            let key = format!("{key}.descriptors.proto.files");
            mistakes.add(key, "is empty".to_owned(), "name at least one .proto file");
        }
        self.check_metadata(key, mistakes);
    }

    fn check_metadata(&self, key: &str, mistakes: &mut Mistakes) {
        for (name, value) in &self.metadata {
            let key = format!("{key}.metadata.{name}");
            check_metadata_name(key.clone(), name, mistakes);
            // The value may be a secret and is not repeated.
            if HeaderValue::from_str(value).is_err() {
                let problem = "its value is not visible ASCII".to_owned();
                mistakes.add(key, problem, "write it without line breaks");
            }
        }
    }
}

impl UpstreamConfig {
    /// Endpoints are either written down or discovered.
    fn check_source(&self, key: &str, mistakes: &mut Mistakes) {
        if self.service.is_empty() {
            if self.endpoints.is_empty() {
                let key = format!("{key}.endpoints");
                let remedy = "name at least one host:port, or a service to discover";
                mistakes.add(key, "is empty".to_owned(), remedy);
            }
            return;
        }
        let key = format!("{key}.service");
        if !self.endpoints.is_empty() {
            let problem = "cannot be combined with endpoints".to_owned();
            mistakes.add(key, problem, "keep one of the two");
        } else if let Err(problem) = check_service(&self.service) {
            mistakes.add(key, problem, "write it as in \"package.Service\"");
        }
    }
}

impl RouteConfig {
    fn check(&self, key: &str, upstreams: &HashSet<&str>, mistakes: &mut Mistakes) {
        if let Err(problem) = self.target() {
            let remedy = "write it as in \"GET /v1/things/{name}\"";
            mistakes.add(format!("{key}.http"), problem, remedy);
        }
        let is_rpc = self.rpc.split_once('/').is_some_and(|(service, method)| {
            !service.is_empty() && !method.is_empty() && !method.contains('/')
        });
        if !is_rpc {
            let problem = format!("{:?} is not an rpc", self.rpc);
            mistakes.add(
                format!("{key}.rpc"),
                problem,
                "write it as in \"package.Service/Method\"",
            );
        }
        if !self.upstream.is_empty() && !upstreams.contains(self.upstream.as_str()) {
            let problem = format!("there is no upstream {:?}", self.upstream);
            mistakes.add(
                format!("{key}.upstream"),
                problem,
                "name one of [[upstreams]]",
            );
        }
        if self.timeout.is_some_and(|timeout| timeout.get().is_zero()) {
            let problem = "is zero".to_owned();
            mistakes.add(
                format!("{key}.timeout"),
                problem,
                "leave it out or set a time",
            );
        }
        self.limit.check(&format!("{key}.limit"), mistakes);
        self.client_limit
            .check(&format!("{key}.client-limit"), mistakes);
        if let Some(breaker) = &self.breaker {
            breaker.check(&format!("{key}.breaker"), mistakes);
        }
        if let Some(fallback) = &self.fallback {
            fallback.check(&format!("{key}.fallback"), mistakes);
        }
        if self.in_flight_max == Some(0) {
            let key = format!("{key}.in-flight-max");
            mistakes.add(key, "is zero".to_owned(), "allow at least 1 call");
        }
        if self.response.is_some() && !self.response_body.is_empty() {
            let problem = "cannot be combined with response".to_owned();
            mistakes.add(
                format!("{key}.response-body"),
                problem,
                "keep one of the two",
            );
        }
    }

    /// Method and template of the `http` key.
    pub(crate) fn target(&self) -> Result<(Method, Template), String> {
        let Some((method, path)) = self.http.split_once(' ') else {
            return Err(format!("{:?} is not a method and a path", self.http));
        };
        let method: Method = method
            .parse()
            .map_err(|_| format!("{method:?} is not a method"))?;
        let template = Template::parse(path.trim()).map_err(|error| error.to_string())?;
        Ok((method, template))
    }
}

/// Headers that are never passed from one side to the other.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with("grpc-")
        || name.starts_with(':')
        || matches!(
            name,
            "connection"
                | "keep-alive"
                | "proxy-connection"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "host"
                | "content-length"
                | "content-type"
                | "content-encoding"
                | "accept-encoding"
                | "expect"
                | "date"
                | "server"
        )
}

fn check_metadata_name(key: String, name: &str, mistakes: &mut Mistakes) {
    if HeaderName::from_lowercase(name.as_bytes()).is_err() {
        let problem = format!("{name:?} is not a header name in lower case");
        mistakes.add(key, problem, "write it as in \"x-request-id\"");
    } else if is_reserved(name) {
        let problem = format!("{name:?} belongs to the connection or to gRPC");
        mistakes.add(key, problem, "remove it");
    }
}

/// The mistakes found so far.
pub(super) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(super) fn add(&mut self, key: String, problem: String, remedy: &str) {
        self.0.push(Mistake {
            key,
            problem,
            remedy: remedy.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_defaults_are_valid_and_survive_toml() {
        let config = Config::default();
        assert_eq!(config.validate(), Ok(()));
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
        assert_eq!(toml::from_str::<Config>("").unwrap(), config);
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let text = r#"
            workers = 1000
            request-timeout = "2m"
            forward-headers = ["X-Upper", "grpc-timeout"]
            [[upstreams]]
            endpoints = ["nowhere", "localhost:1"]
            [[upstreams]]
            descriptors = { proto = { files = [] } }
            metadata = { authorization = "line\nbreak", Host = "a" }
            [[upstreams]]
            name = "both"
            endpoints = ["h:1"]
            service = "a.B"
            [[upstreams]]
            name = "odd"
            service = "a/b"
            [[routes]]
            http = "GET v1"
            rpc = "Method"
            upstream = "other"
        "#;
        let mistakes = toml::from_str::<Config>(text)
            .unwrap()
            .validate()
            .unwrap_err();
        let shown: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        expect![[r#"
            workers: 1000 is out of range; choose 0 to 256
            request-timeout: is longer than request-timeout-max; raise the one or lower the other
            forward-headers[0]: "X-Upper" is not a header name in lower case; write it as in "x-request-id"
            forward-headers[1]: "grpc-timeout" belongs to the connection or to gRPC; remove it
            upstreams[0].endpoints[0]: "nowhere" is not host:port; write it as in "127.0.0.1:50052"
            upstreams[1].name: the name "default" is taken; give each upstream its own name
            upstreams[1].endpoints: is empty; name at least one host:port, or a service to discover
            upstreams[1].descriptors.proto.files: is empty; name at least one .proto file
            upstreams[1].metadata.Host: "Host" is not a header name in lower case; write it as in "x-request-id"
            upstreams[1].metadata.authorization: its value is not visible ASCII; write it without line breaks
            upstreams[2].service: cannot be combined with endpoints; keep one of the two
            upstreams[3].service: "a/b" is not the full name of a service, as in "package.Service"; write it as in "package.Service"
            routes[0].http: path template "v1": must begin with /; write it as in "GET /v1/things/{name}"
            routes[0].rpc: "Method" is not an rpc; write it as in "package.Service/Method"
            routes[0].upstream: there is no upstream "other"; name one of [[upstreams]]"#]]
        .assert_eq(&shown.join("\n"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert!(toml::from_str::<Config>("nosuch = 1").is_err());
        assert!(toml::from_str::<Config>("[[routes]]\nnosuch = 1").is_err());
    }
}
