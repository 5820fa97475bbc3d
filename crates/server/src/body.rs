//! Reads a request body within bounds of size and time.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header::CONTENT_LENGTH},
};
use gqla_protocol::{ApiError, ErrorKind};
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// Time a client has to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The whole body, at most `limit` bytes of it.
pub(crate) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        ApiError::new(ErrorKind::BodyTooLarge, format!("the request body exceeds {limit} bytes, the limit"))
    };
    let announced =
        headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::new(ErrorKind::InvalidRequest, "the request body ended early")),
        Err(_) => {
            let seconds = BODY_TIMEOUT.as_secs();
            Err(ApiError::new(
                ErrorKind::BodyTimeout,
                format!("the request body took over {seconds} s, the limit"),
            ))
        }
    }
}
