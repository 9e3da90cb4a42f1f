//! What is refused by its headers alone, before anything is looked up.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, StatusCode};

use crate::status::{Code, Failure};

/// What a request body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    Form,
    /// Anything else, which only `google.api.HttpBody` takes.
    Other,
}

/// Refuses headers beyond the limits.
pub(crate) fn headers(
    headers: &HeaderMap,
    bytes_max: usize,
    count_max: usize,
) -> Result<(), Failure> {
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    if bytes > bytes_max || headers.len() > count_max {
        return Err(
            Failure::new(Code::ResourceExhausted, "the request headers are too large")
                .http(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
                .reason("HEADERS_TOO_LARGE"),
        );
    }
    let only_chunked = headers
        .get(TRANSFER_ENCODING)
        .is_none_or(|v| v == "chunked");
    if !only_chunked || headers.get_all(TRANSFER_ENCODING).iter().count() > 1 {
        let message = "only the chunked transfer coding is known";
        let mut failure = Failure::new(Code::Unimplemented, message).reason("TRANSFER_CODING");
        // What is the body and what comes after it is not known then.
        failure.set_header(CONNECTION, "close");
        return Err(failure);
    }
    Ok(())
}

/// The type of a request body. Without a header it is taken for JSON.
pub(crate) fn media_type(headers: &HeaderMap) -> MediaType {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return MediaType::Json;
    };
    let text = value.to_str().unwrap_or_default();
    let essence = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    match essence.as_str() {
        "application/json" | "" => MediaType::Json,
        "application/x-www-form-urlencoded" => MediaType::Form,
        other if other.starts_with("application/") && other.ends_with("+json") => MediaType::Json,
        _ => MediaType::Other,
    }
}

/// The timeout that the caller asks for: `grpc-timeout` (digits and a unit) or
/// `x-request-timeout` (seconds, or with a unit as in configuration).
pub(crate) fn requested_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let parsed = match (
        headers.get("grpc-timeout"),
        headers.get("x-request-timeout"),
    ) {
        (Some(value), _) => ("grpc-timeout", value.to_str().ok().and_then(grpc_timeout)),
        (None, Some(value)) => (
            "x-request-timeout",
            value.to_str().ok().and_then(plain_timeout),
        ),
        (None, None) => return Ok(None),
    };
    match parsed {
        (_, Some(timeout)) => Ok(Some(timeout)),
        (name, None) => {
            let message = format!("the header {name} is not a timeout");
            Err(Failure::new(Code::InvalidArgument, message))
        }
    }
}

fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = is_number.then(|| digits.parse().ok())??;
    Some(match unit {
        'H' => Duration::from_secs(count * 3_600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

fn plain_timeout(text: &str) -> Option<Duration> {
    if let Ok(timeout) = text.parse::<crate::config::Timeout>() {
        return Some(timeout.get());
    }
    let seconds: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn timeouts_are_read_in_both_notations() {
        for (name, text, expected) in [
            ("grpc-timeout", "250m", Some(Duration::from_millis(250))),
            ("grpc-timeout", "2S", Some(Duration::from_secs(2))),
            ("grpc-timeout", "1H", Some(Duration::from_secs(3_600))),
            ("grpc-timeout", "123456789m", None),
            ("grpc-timeout", "m", None),
            ("grpc-timeout", "5", None),
            (
                "x-request-timeout",
                "1.5",
                Some(Duration::from_millis(1_500)),
            ),
            (
                "x-request-timeout",
                "300ms",
                Some(Duration::from_millis(300)),
            ),
            ("x-request-timeout", "-1", None),
            ("x-request-timeout", "NaN", None),
            ("x-request-timeout", "1e300", None),
        ] {
            let found = requested_timeout(&map(&[(name, text)]));
            assert_eq!(found.ok().flatten(), expected, "{name}: {text}");
        }
        assert!(requested_timeout(&HeaderMap::new()).unwrap().is_none());
    }

    #[test]
    fn media_types_ignore_case_and_parameters() {
        for (text, expected) in [
            ("application/json; charset=utf-8", MediaType::Json),
            ("Application/JSON", MediaType::Json),
            ("application/problem+json", MediaType::Json),
            ("application/x-www-form-urlencoded", MediaType::Form),
            ("text/plain", MediaType::Other),
            ("application/grpc", MediaType::Other),
        ] {
            assert_eq!(
                media_type(&map(&[("content-type", text)])),
                expected,
                "{text}"
            );
        }
        assert_eq!(media_type(&HeaderMap::new()), MediaType::Json);
    }
}
