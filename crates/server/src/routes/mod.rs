//! The OpenAI routes.

mod chat;
mod completions;
mod models;
mod respond;

use std::sync::Arc;

use axum::{
    Router,
    http::{Method, Uri},
    middleware::from_fn_with_state,
    routing::{get, post},
};
use gqla_protocol::ErrorKind;

use crate::{
    auth::{ApiKey, require},
    failure::Failure,
    state::App,
};

/// All routes; those under `/v1` need `key` when there is one.
pub fn router(app: Arc<App>, key: Option<ApiKey>) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/completions", post(completions::create))
        .route("/v1/chat/completions", post(chat::create))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(from_fn_with_state(key.clone(), require))
        .fallback(no_route)
        .with_state(app)
}

async fn no_route(uri: Uri) -> Failure {
    let path: String = uri.path().chars().take(128).collect();
    Failure::new(
        ErrorKind::RouteNotFound,
        format!("no route `{path}`; there are /v1/models, /v1/completions and /v1/chat/completions"),
    )
}

async fn wrong_method(method: Method, uri: Uri) -> Failure {
    Failure::new(ErrorKind::MethodNotAllowed, format!("{} does not take {method}", uri.path()))
}
