//! Bytes as text: as they are if they are UTF-8, else in base64.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use flux_proto::cdc::KeyState;

/// Bytes as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// The text.
    pub text: String,
    /// Whether it is base64 of the bytes.
    pub is_base64: bool,
}

impl Text {
    /// As keys and values stand in the data of an event.
    #[must_use]
    pub fn of_value(bytes: &Bytes) -> Self {
        Self::new(bytes, |bytes| STANDARD.encode(bytes))
    }

    /// As a key stands in the `subject`.
    #[must_use]
    pub fn of_subject(bytes: &Bytes) -> Self {
        Self::new(bytes, |bytes| URL_SAFE_NO_PAD.encode(bytes))
    }

    fn new(bytes: &Bytes, encode: impl FnOnce(&[u8]) -> String) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self {
                text: text.to_owned(),
                is_base64: false,
            },
            Err(_) => Self {
                text: encode(bytes),
                is_base64: true,
            },
        }
    }

    /// The word for it in the data of an event.
    #[must_use]
    pub const fn encoding(&self) -> &'static str {
        if self.is_base64 { "base64" } else { "utf8" }
    }
}

/// The value in the data of an event, as it was before it became text; `None` if it says none or is
/// not what its encoding says.
#[must_use]
pub fn decode_value(state: &KeyState) -> Option<Bytes> {
    let value = state.value.as_deref()?;
    match state.encoding.as_deref() {
        None | Some("utf8") => Some(Bytes::copy_from_slice(value.as_bytes())),
        Some("base64") => STANDARD.decode(value).ok().map(Bytes::from),
        Some(_) => None,
    }
}
