//! The request id that a call brings along: `flux-request-id: session/sequence/lowest-unanswered`.

use flux_proto::convert::InvalidField;
use flux_proto::status;
use flux_types::{RequestId, SessionId};
use tonic::Status;
use tonic::metadata::MetadataMap;

const REQUEST_ID: &str = "flux-request-id";

/// The request id of a call, if it brings one.
///
/// # Errors
/// If it is there and cannot be read: who sends one must not be taken for somebody who does not
/// care how often a write is done.
pub(super) fn of(metadata: &MetadataMap) -> Result<Option<RequestId>, Status> {
    let Some(header) = metadata.get(REQUEST_ID) else {
        return Ok(None);
    };
    let parsed = header.to_str().ok().and_then(parse);
    if parsed.is_none() {
        return Err(refused(
            "must be a UUID of version 7, and two whole numbers from 1, with slashes between",
        ));
    }
    Ok(parsed)
}

/// That a call which takes none brings none.
///
/// # Errors
/// It brings one.
pub(super) fn none_of(metadata: &MetadataMap) -> Result<(), Status> {
    if metadata.contains_key(REQUEST_ID) {
        return Err(refused("goes with single calls, not with a batch"));
    }
    Ok(())
}

fn refused(why: &'static str) -> Status {
    let invalid = InvalidField::new(REQUEST_ID, why);
    status::to_tonic(&status::from_invalid_field(&invalid))
}

fn parse(text: &str) -> Option<RequestId> {
    let mut parts = text.split('/');
    let session = SessionId::parse(parts.next()?.as_bytes())?;
    let sequence = parts.next()?.parse().ok()?;
    let lowest_unanswered = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(RequestId {
        session,
        sequence,
        lowest_unanswered,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "0190a6d4-7c2e-7d3f-8a1b-2c3d4e5f6071";

    fn of_text(text: &str) -> Result<Option<RequestId>, Status> {
        let mut metadata = MetadataMap::new();
        metadata.insert(REQUEST_ID, text.parse().unwrap());
        of(&metadata)
    }

    #[test]
    fn a_call_may_bring_a_request_id_and_must_bring_a_whole_one() {
        assert_eq!(of(&MetadataMap::new()).unwrap(), None);
        let id = of_text(&format!("{SESSION}/7/5")).unwrap().unwrap();
        assert_eq!(id.session.to_string(), SESSION);
        assert_eq!((id.sequence, id.lowest_unanswered), (7, 5));
        for text in [
            "",
            SESSION,
            &format!("{SESSION}/7"),
            &format!("{SESSION}/7/5/3"),
            &format!("{SESSION}/-7/5"),
            "session/7/5",
        ] {
            let status = of_text(text).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{text}");
            assert!(status.message().contains(REQUEST_ID), "{status}");
        }
    }
}
