//! `GET /v1/models`.

use serde::Serialize;

/// The list of models, which here has one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelList {
    object: &'static str,
    data: [Model; 1],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    max_model_len: usize,
}

impl ModelList {
    /// One model with its context in tokens, served since `created` (Unix seconds). `max_model_len` is vLLM's name.
    pub fn of(id: impl Into<String>, created: u64, context_length: usize) -> Self {
        let model = Model {
            id: id.into(),
            object: "model",
            created,
            owned_by: "gqla",
            max_model_len: context_length,
        };
        Self { object: "list", data: [model] }
    }
}
