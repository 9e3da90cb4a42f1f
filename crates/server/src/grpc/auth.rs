//! The password, as the metadata entry `authorization` carries it.

use std::fmt;
use std::sync::Arc;

use flux_types::{Error, ErrorCode};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::to_status;

/// Tells the password that clients must present now; empty: none. It can change while the node runs.
#[derive(Clone)]
pub(crate) struct Password(Arc<dyn Fn() -> Arc<str> + Send + Sync>);

impl Password {
    /// The password is what `read` says at each call.
    pub(crate) fn new(read: impl Fn() -> Arc<str> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl Password {
    /// What it is now; empty: none.
    pub(crate) fn current(&self) -> Arc<str> {
        (self.0)()
    }

    /// Whether a request that presents this may read values.
    pub(crate) fn allows(&self, presented: Option<&[u8]>) -> bool {
        Authorization::new(self.clone()).check(presented).is_ok()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Password").finish_non_exhaustive()
    }
}

/// Lets a call through if it presents the password: `Bearer PASSWORD`, or the password alone.
#[derive(Clone)]
pub(super) struct Authorization {
    password: Password,
}

impl Authorization {
    pub(super) const fn new(password: Password) -> Self {
        Self { password }
    }

    fn check(&self, presented: Option<&[u8]>) -> Result<(), Error> {
        let password = self.password.current();
        if password.is_empty() {
            return Ok(());
        }
        let Some(presented) = presented else {
            return Err(Error::not_done(
                ErrorCode::Unauthenticated,
                "a password is required: send the metadata entry authorization: Bearer PASSWORD",
            ));
        };
        let (scheme, rest) = presented.split_at_checked(7).unwrap_or_default();
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer ");
        let word = if is_bearer { rest } else { presented };
        if is_same(word, password.as_bytes()) {
            return Ok(());
        }
        Err(Error::not_done(
            ErrorCode::WrongPassword,
            "the password is wrong",
        ))
    }
}

impl Interceptor for Authorization {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let presented = request.metadata().get("authorization");
        self.check(presented.map(|value| value.as_bytes()))
            .map_err(|error| to_status(&error))?;
        Ok(request)
    }
}

/// Compares in a time that depends on the length of what was presented and not on how much of it is
/// right, so that a password cannot be guessed piece by piece.
fn is_same(presented: &[u8], password: &[u8]) -> bool {
    let mut difference = u8::from(presented.len() != password.len());
    for (index, byte) in presented.iter().enumerate() {
        let expected = password.get(index).copied().unwrap_or(!byte);
        difference |= byte ^ expected;
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use flux_types::ErrorCode;

    use super::{Authorization, Password, is_same};

    #[test]
    fn the_password_passes_bare_and_as_a_bearer_token() {
        let authorization = Authorization::new(Password::new(|| "open sesame".into()));
        for presented in ["open sesame", "Bearer open sesame", "bearer open sesame"] {
            assert_eq!(authorization.check(Some(presented.as_bytes())), Ok(()));
        }
        let code = |presented: Option<&str>| {
            let error = authorization.check(presented.map(str::as_bytes));
            error.unwrap_err().code
        };
        assert_eq!(code(None), ErrorCode::Unauthenticated);
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "open sesam",
            "open sesame!",
            "Basic x",
        ] {
            assert_eq!(code(Some(wrong)), ErrorCode::WrongPassword, "{wrong:?}");
        }
    }

    #[test]
    fn without_a_password_everybody_passes() {
        let authorization = Authorization::new(Password::new(|| "".into()));
        assert_eq!(authorization.check(None), Ok(()));
        assert_eq!(authorization.check(Some(b"anything")), Ok(()));
    }

    #[test]
    fn equality_is_of_length_and_every_byte() {
        assert!(is_same(b"ab", b"ab"));
        for wrong in [&b""[..], b"a", b"abc", b"aB", b"Ab"] {
            assert!(!is_same(wrong, b"ab"), "{wrong:?}");
        }
    }
}
