//! An [`ApiError`] as an HTTP response.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use gqla_protocol::{ApiError, ErrorKind};

/// What handlers fail with.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(ApiError::new(kind, message))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.0.body())).into_response();
        if let Some(seconds) = retry_after(self.0.kind) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Seconds after which trying again can help: another pod may answer at once, a queue moves, a model takes a while.
const fn retry_after(kind: ErrorKind) -> Option<u16> {
    match kind {
        ErrorKind::QueueFull | ErrorKind::Draining => Some(1),
        ErrorKind::Loading => Some(5),
        _ => None,
    }
}
