//! `GET /v1/models`.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use gqla_protocol::ModelList;

use crate::{failure::Failure, state::App};

/// The one model, 503 until it answers: scripts poll this route to learn when that is.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<impl IntoResponse, Failure> {
    let context_length = app.loaded()?.engine.info().context_length;
    Ok(Json(ModelList::of(&app.served_name, app.created, context_length)))
}
