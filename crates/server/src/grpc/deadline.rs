//! The deadline that a call brings along, as the gRPC protocol writes it.

use std::time::Duration;

use flux_proto::convert::InvalidField;
use flux_proto::status;
use tonic::Status;
use tonic::metadata::MetadataMap;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What is left to a call when it arrives, if it says so.
///
/// # Errors
/// If the header is there and cannot be read: a caller that sets a deadline must not be taken for
/// one that has all the time.
pub(super) fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>, Status> {
    let Some(header) = metadata.get(GRPC_TIMEOUT) else {
        return Ok(None);
    };
    let parsed = header.to_str().ok().and_then(parse);
    if parsed.is_none() {
        let invalid = InvalidField::new(GRPC_TIMEOUT, "must be 1 to 8 digits and one of HMSmun");
        return Err(status::to_tonic(&status::from_invalid_field(&invalid)));
    }
    Ok(parsed)
}

/// A timeout value and its unit, of the gRPC over HTTP/2 specification.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::metadata::MetadataMap;

    use super::{parse, timeout};

    #[test]
    fn every_unit_of_the_specification_is_read() {
        for (text, expected) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("0m", Duration::ZERO),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_timeout_is_refused_rather_than_ignored() {
        for text in [
            "",
            "S",
            "1",
            "1s",
            "123456789S",
            "-1S",
            "+1S",
            "1.5S",
            "1 S",
            "é",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
        let mut metadata = MetadataMap::new();
        assert_eq!(timeout(&metadata).unwrap(), None);
        metadata.insert("grpc-timeout", "soon".parse().unwrap());
        let refused = timeout(&metadata).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    }
}
