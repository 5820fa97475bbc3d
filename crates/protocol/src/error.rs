//! The one error body every OpenAI client understands.

use serde::Serialize;
use serde_json::json;

/// What went wrong, in the terms a client library switches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400: a field is missing, unknown, malformed or out of range.
    InvalidRequest,
    /// 400: prompt and answer can't fit the context.
    ContextLengthExceeded,
    /// 401: no key, or not the right one.
    Unauthorized,
    /// 404: another model is served here.
    ModelNotFound,
    /// 404: no such route.
    RouteNotFound,
    /// 405: the route exists, the method does not.
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    BodyTimeout,
    /// 413: the body is larger than the server reads.
    BodyTooLarge,
    /// 429: the queue is full.
    QueueFull,
    /// 500: the engine failed.
    Internal,
    /// 503: the model is still loading.
    Loading,
    /// 503: the server is about to stop.
    Draining,
}

impl ErrorKind {
    /// HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::ContextLengthExceeded => 400,
            Self::Unauthorized => 401,
            Self::ModelNotFound | Self::RouteNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::BodyTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::QueueFull => 429,
            Self::Internal => 500,
            Self::Loading | Self::Draining => 503,
        }
    }

    /// `error.type` on the wire.
    pub const fn wire_type(self) -> &'static str {
        match self {
            Self::Unauthorized => "authentication_error",
            Self::QueueFull => "rate_limit_error",
            Self::Internal => "server_error",
            Self::Loading | Self::Draining => "service_unavailable_error",
            _ => "invalid_request_error",
        }
    }

    /// `error.code` on the wire.
    pub const fn code(self) -> Option<&'static str> {
        match self {
            Self::InvalidRequest => None,
            Self::ContextLengthExceeded => Some("context_length_exceeded"),
            Self::Unauthorized => Some("invalid_api_key"),
            Self::ModelNotFound => Some("model_not_found"),
            Self::RouteNotFound => Some("route_not_found"),
            Self::MethodNotAllowed => Some("method_not_allowed"),
            Self::BodyTimeout => Some("body_timeout"),
            Self::BodyTooLarge => Some("body_too_large"),
            Self::QueueFull => Some("queue_full"),
            Self::Internal => Some("internal_error"),
            Self::Loading => Some("loading"),
            Self::Draining => Some("draining"),
        }
    }
}

/// A refusal or failure as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Its class; decides status, type and code.
    pub kind: ErrorKind,
    /// A sentence the caller can act on.
    pub message: String,
    /// The request field at fault, as a path such as `messages[2].content`.
    pub param: Option<String>,
}

impl ApiError {
    /// An error that concerns no particular field.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None }
    }

    /// A field of the request is wrong. The message starts with the field's path.
    pub fn field(path: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let path = path.into();
        Self { kind: ErrorKind::InvalidRequest, message: format!("{path}: {problem}"), param: Some(path) }
    }

    /// The JSON body: `{"error": {message, type, param, code}}`.
    pub fn body(&self) -> impl Serialize + use<> {
        json!({"error": {
            "message": self.message,
            "type": self.kind.wire_type(),
            "param": self.param,
            "code": self.kind.code(),
        }})
    }

    /// The body as one server-sent event, for failures after the answer has begun.
    pub fn event(&self) -> String {
        crate::reply::event(&self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_has_the_four_members() {
        let body = serde_json::to_value(ApiError::field("top_p", "expected a number").body()).unwrap();
        assert_eq!(
            body,
            json!({"error": {"message": "top_p: expected a number", "type": "invalid_request_error",
                             "param": "top_p", "code": null}})
        );
        let body = serde_json::to_value(ApiError::new(ErrorKind::QueueFull, "later").body()).unwrap();
        assert_eq!(body["error"]["code"], "queue_full");
        assert_eq!(body["error"]["param"], serde_json::Value::Null);
    }
}
