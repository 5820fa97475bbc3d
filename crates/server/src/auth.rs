//! One bearer token for every route under `/v1`. The key is never logged and compared in constant time.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::{IntoResponse, Response},
};
use gqla_protocol::ErrorKind;
use subtle::ConstantTimeEq;

use crate::failure::Failure;

/// The key clients must present. `Debug` does not show it.
#[derive(Clone)]
pub struct ApiKey(Arc<[u8]>);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Why there is no usable key.
#[derive(Debug, thiserror::Error)]
pub enum ApiKeyError {
    /// Unreadable.
    #[error("cannot read the API key from `{}`; check --api-key-file and the Secret's mount", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Empty; serving with it would let everyone in who sends an empty token.
    #[error("the API key file `{}` is empty, expected one line with the key", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
}

impl ApiKey {
    /// Reads the key; white space around it is not part of it.
    pub fn read(file: &Path) -> Result<Self, ApiKeyError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ApiKeyError::Read { file: file.to_owned(), source })?;
        match text.trim() {
            "" => Err(ApiKeyError::Empty { file: file.to_owned() }),
            key => Ok(Self(key.as_bytes().into())),
        }
    }

    /// Takes time that depends on lengths only.
    fn matches(&self, token: &str) -> bool {
        self.0.ct_eq(token.as_bytes()).into()
    }
}

/// Lets a request through when no key is configured or the right one is presented.
pub(crate) async fn require(State(key): State<Option<ApiKey>>, request: Request, next: Next) -> Response {
    let Some(key) = key else { return next.run(request).await };
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(token) = header.and_then(bearer) else {
        let message = "no API key: send it in the header `Authorization: Bearer KEY`";
        return Failure::new(ErrorKind::Unauthorized, message).into_response();
    };
    if !key.matches(token) {
        return Failure::new(ErrorKind::Unauthorized, "the API key is not the one this server was given")
            .into_response();
    }
    next.run(request).await
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bearer_scheme_counts() {
        for (header, token) in
            [("Bearer k", Some("k")), ("bearer  k ", Some("k")), ("Basic k", None), ("k", None)]
        {
            assert_eq!(bearer(header), token, "{header}");
        }
    }

    #[test]
    fn keys_are_trimmed_never_empty_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, " s3cret\n").unwrap();
        let key = ApiKey::read(&file).unwrap();
        assert!(key.matches("s3cret") && !key.matches("s3creT") && !key.matches(""));
        assert!(!format!("{key:?}").contains("s3cret"));
        std::fs::write(&file, "\n").unwrap();
        assert!(matches!(ApiKey::read(&file), Err(ApiKeyError::Empty { .. })));
        assert!(matches!(ApiKey::read(&dir.path().join("none")), Err(ApiKeyError::Read { .. })));
    }
}
