//! What is told about the process: spans to a collector, the form of log lines.
//!
//! The variables that OpenTelemetry has standardized are read here too. They stand between the
//! file and the `FLUX_*` variables, because whoever set them meant every program of the machine.

use std::collections::BTreeMap;

use flux_telemetry::logs::Format;

use super::{Layers, Origin, Resolved, Settings};

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Telemetry {
    /// `http://HOST:PORT` of a collector; `None`: no spans are made.
    pub(crate) otlp: Option<String>,
    /// Share of the traces that begin here that are recorded, from 0 to 1.
    pub(crate) trace_sample: f64,
    /// Whether a caller's decision to record is followed.
    pub(crate) follows_parent: bool,
    /// `service.name`; `None`: each part its own.
    pub(crate) service_name: Option<String>,
    /// What else is said of the process to a collector.
    pub(crate) attributes: BTreeMap<String, String>,
    /// `OTEL_SDK_DISABLED`, or another variable that asks for no spans.
    pub(crate) is_disabled: bool,
    pub(crate) log_format: Format,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp: None,
            trace_sample: 0.01,
            follows_parent: true,
            service_name: None,
            attributes: BTreeMap::new(),
            is_disabled: false,
            log_format: Format::Auto,
        }
    }
}

/// Reads a value; the error is what follows the name of the variable.
type Set = fn(&mut Settings, &str) -> Result<(), String>;

/// A standard variable: its name, the setting that it decides if it is one, how it is read.
/// A later one wins over an earlier.
type Standard = (&'static str, Option<&'static str>, Set);

const OTLP: &str = "telemetry.otlp";

/// The standard variables. Further ones, about the exporter's own doings (headers, compression), are
/// read by the exporter.
pub(super) const STANDARD: &[Standard] = &[
    ("OTEL_SDK_DISABLED", None, |settings, text| {
        settings.telemetry.is_disabled |= text.eq_ignore_ascii_case("true");
        Ok(())
    }),
    ("OTEL_TRACES_EXPORTER", None, |settings, text| match text {
        "otlp" => Ok(()),
        "none" => {
            settings.telemetry.is_disabled = true;
            Ok(())
        }
        _ => Err(format!("{text:?} is not otlp or none")),
    }),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", None, grpc_only),
    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", None, grpc_only),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", Some(OTLP), set_otlp),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", Some(OTLP), set_otlp),
    ("OTEL_RESOURCE_ATTRIBUTES", None, |settings, text| {
        let attributes = attributes(text)?;
        let name = attributes.get("service.name").cloned();
        settings.telemetry.service_name = name;
        settings.telemetry.attributes = attributes;
        Ok(())
    }),
    ("OTEL_SERVICE_NAME", None, |settings, text| {
        settings.telemetry.service_name = Some(text.to_owned());
        Ok(())
    }),
    ("OTEL_TRACES_SAMPLER", None, |settings, text| {
        let (ratio, follows_parent) = match text {
            "always_on" => (1.0, false),
            "always_off" => (0.0, false),
            "traceidratio" => (1.0, false),
            "parentbased_always_on" | "parentbased_traceidratio" => (1.0, true),
            "parentbased_always_off" => (0.0, true),
            _ => {
                return Err(format!(
                    "{text:?} is not always_on, always_off, traceidratio, or one of these after \
                     parentbased_"
                ));
            }
        };
        settings.telemetry.trace_sample = ratio;
        settings.telemetry.follows_parent = follows_parent;
        Ok(())
    }),
    ("OTEL_TRACES_SAMPLER_ARG", None, |settings, text| {
        settings.telemetry.trace_sample = ratio(text)?;
        Ok(())
    }),
];

/// Lays the standard variables over what the file says.
pub(super) fn standard(layers: &Layers, resolved: &mut Resolved, mistakes: &mut Vec<String>) {
    // The argument belongs to those samplers that take one.
    let sampler = layers.variables.get("OTEL_TRACES_SAMPLER");
    let takes_argument = sampler
        .and_then(|sampler| sampler.to_str())
        .is_some_and(|sampler| sampler.ends_with("traceidratio"));
    for (name, setting, set) in STANDARD {
        let Some(value) = layers.variables.get(name) else {
            continue;
        };
        if *name == "OTEL_TRACES_SAMPLER_ARG" && !takes_argument {
            continue;
        }
        let outcome = value
            .to_str()
            .ok_or_else(|| format!("{value:?} is not UTF-8"))
            .and_then(|text| set(&mut resolved.settings, text));
        let origin = Origin::Variable(name);
        match (outcome, setting) {
            (Ok(()), Some(setting)) => {
                resolved.origins.insert(setting, origin);
            }
            (Ok(()), None) => {
                if name.starts_with("OTEL_TRACES_SAMPLER") {
                    resolved.origins.insert("telemetry.trace-sample", origin);
                }
            }
            (Err(problem), _) => mistakes.push(format!("{origin}: {problem}")),
        }
    }
}

/// What the environment says of telemetry, for a program that has no other settings.
pub(crate) fn of_environment() -> Result<Telemetry, super::Mistakes> {
    let layers = super::read_layers(None, BTreeMap::new())?;
    of_layers(&layers)
}

fn of_layers(layers: &Layers) -> Result<Telemetry, super::Mistakes> {
    let mut resolved = Resolved {
        settings: Settings::default(),
        origins: BTreeMap::new(),
        gateway_lines: BTreeMap::new(),
    };
    let mut mistakes = Vec::new();
    standard(layers, &mut resolved, &mut mistakes);
    for key in super::KEYS
        .iter()
        .filter(|key| key.section() == "telemetry")
    {
        if let Some(value) = layers.variables.get(key.variable) {
            let origin = Origin::Variable(key.variable);
            super::overwrite(key, origin, value, &mut resolved, &mut mistakes);
        }
    }
    if mistakes.is_empty() {
        Ok(resolved.settings.telemetry)
    } else {
        Err(super::Mistakes(mistakes))
    }
}

fn grpc_only(_: &mut Settings, text: &str) -> Result<(), String> {
    if text == "grpc" {
        return Ok(());
    }
    Err(format!("{text:?} is not spoken here, only grpc"))
}

fn set_otlp(settings: &mut Settings, text: &str) -> Result<(), String> {
    settings.telemetry.otlp = otlp(text)?;
    Ok(())
}

/// Parses the address of a collector: `http://HOST:PORT`, or `HOST:PORT`.
pub(super) fn otlp(text: &str) -> Result<Option<String>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.starts_with("https://") {
        return Err(format!(
            "{text:?}: TLS to a collector is not built in; send to a collector beside this process"
        ));
    }
    let bare = text.strip_prefix("http://").unwrap_or(text);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    match super::value::host_and_port(bare) {
        Ok(address) => Ok(Some(format!("http://{address}"))),
        Err(_) => Err(format!(
            "{text:?} is not http://HOST:PORT, such as http://127.0.0.1:4317"
        )),
    }
}

/// Parses a share: `1%`, or `0.01`.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.strip_suffix('%') {
        Some(number) => (number, 100.0),
        None => (text, 1.0),
    };
    let is_plain = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    match number.parse::<f64>() {
        Ok(number) if is_plain && number <= unit => Ok(number / unit),
        Ok(_) | Err(_) => Err(format!("{text:?} is not a share such as 1%, 0.01 or 100%")),
    }
}

/// Writes a share in percent.
pub(super) fn show_ratio(ratio: f64) -> String {
    // Rounded to a millionth, beyond which a share of requests means nothing.
    let percent = (ratio * 1e8).round() / 1e6;
    format!("{percent}%")
}

/// Parses `auto`, `json` or `pretty`.
pub(super) fn log_format(text: &str) -> Result<Format, String> {
    super::value::one_of(text, &Format::ALL, Format::as_str)
}

/// Parses `key=value,key=value`, percent-decoded, as OpenTelemetry's resource specification has it.
fn attributes(text: &str) -> Result<BTreeMap<String, String>, String> {
    let decoded = |word: &str| -> Option<String> {
        let bytes = percent_encoding::percent_decode_str(word.trim());
        bytes.decode_utf8().ok().map(Into::into)
    };
    let mut attributes = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let pair = pair
            .split_once('=')
            .and_then(|(key, value)| Some((decoded(key)?, decoded(value)?)));
        let Some((key, value)) = pair.filter(|(key, _)| !key.is_empty()) else {
            return Err(format!("{text:?} is not key=value,key=value"));
        };
        attributes.insert(key, value);
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::super::{KEYS, Part, resolve};
    use super::*;

    fn telemetry(variables: &[(&'static str, &str)]) -> Result<Telemetry, String> {
        let variables = variables.iter();
        let layers = Layers {
            variables: variables
                .map(|(name, value)| (*name, value.into()))
                .collect(),
            ..Layers::default()
        };
        let resolved = resolve(&layers, &[Part::Node]);
        resolved
            .map(|resolved| resolved.settings.telemetry)
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn shares_are_read_as_percent_or_ratio_and_written_as_percent() {
        for (text, share, shown) in [
            ("1%", 0.01, "1%"),
            ("0.01", 0.01, "1%"),
            ("100%", 1.0, "100%"),
            ("1", 1.0, "100%"),
            ("0", 0.0, "0%"),
            ("0.5%", 0.005, "0.5%"),
        ] {
            assert!((ratio(text).unwrap() - share).abs() < 1e-12, "{text}");
            assert_eq!(show_ratio(ratio(text).unwrap()), shown);
        }
        for text in ["", "%", "-1%", "101%", "1.01", "all", "NaN", "inf", "1e-2"] {
            assert!(
                ratio(text).unwrap_err().contains("is not a share"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_collectors_address_is_plain_http_with_a_port() {
        for text in ["http://jaeger:4317", "http://jaeger:4317/", "jaeger:4317"] {
            assert_eq!(otlp(text), Ok(Some("http://jaeger:4317".to_owned())));
        }
        assert_eq!(otlp(""), Ok(None));
        for text in [
            "https://jaeger:4317",
            "jaeger",
            "http://jaeger",
            "grpc://jaeger:1",
        ] {
            assert!(otlp(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_standard_variables_are_honoured_below_our_own() {
        let given = telemetry(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
            ("OTEL_SERVICE_NAME", "kv"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=x,a%20b=c%2Cd, e = f",
            ),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ])
        .unwrap();
        let wanted = [("service.name", "x"), ("a b", "c,d"), ("e", "f")];
        assert_eq!(
            given,
            Telemetry {
                otlp: Some("http://collector:4317".to_owned()),
                trace_sample: 0.25,
                follows_parent: false,
                service_name: Some("kv".to_owned()),
                attributes: wanted.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
                ..Telemetry::default()
            }
        );
        let own = telemetry(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
            ("FLUX_OTLP", "http://own:4317"),
            ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
            ("FLUX_TRACE_SAMPLE", "50%"),
        ])
        .unwrap();
        assert_eq!(own.otlp.as_deref(), Some("http://own:4317"));
        assert!((own.trace_sample - 0.5).abs() < 1e-12 && own.follows_parent);
        assert!(
            telemetry(&[("OTEL_SDK_DISABLED", "TRUE")])
                .unwrap()
                .is_disabled
        );
        assert!(
            telemetry(&[("OTEL_TRACES_EXPORTER", "none")])
                .unwrap()
                .is_disabled
        );
    }

    #[test]
    fn a_program_without_settings_has_those_of_the_environment() {
        let layers = |value: &str| Layers {
            variables: [
                ("FLUX_OTLP", value.into()),
                ("FLUX_PORT", "nonsense".into()),
            ]
            .into(),
            ..Layers::default()
        };
        let telemetry = of_layers(&layers("jaeger:4317")).unwrap();
        assert_eq!(telemetry.otlp.as_deref(), Some("http://jaeger:4317"));
        let mistakes = of_layers(&layers("nowhere")).unwrap_err().to_string();
        assert!(mistakes.starts_with("FLUX_OTLP: "), "{mistakes}");
    }

    #[test]
    fn an_argument_without_a_sampler_that_takes_one_is_not_looked_at() {
        for sampler in [&[][..], &[("OTEL_TRACES_SAMPLER", "parentbased_always_on")]] {
            let given = [sampler, &[("OTEL_TRACES_SAMPLER_ARG", "nonsense")]].concat();
            assert!(telemetry(&given).is_ok(), "{given:?}");
        }
    }

    #[test]
    fn a_standard_variable_that_cannot_be_followed_is_a_mistake_by_name() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_RESOURCE_ATTRIBUTES", "nothing"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
        ] {
            let mistake = telemetry(&[(name, value)]).unwrap_err();
            assert!(
                mistake.starts_with(name) && mistake.contains(value),
                "{mistake}"
            );
        }
    }

    #[test]
    fn what_a_standard_variable_decides_is_a_setting() {
        for (name, setting, _) in STANDARD {
            let is_known = |setting| KEYS.iter().any(|key| key.name == setting);
            assert!(setting.is_none_or(is_known), "{name}");
        }
    }
}
