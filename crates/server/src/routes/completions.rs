//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use gqla_protocol::{ApiError, CompletionRequest, Dialect, Prompt};

use super::respond::{self, Answer};
use crate::{
    failure::Failure,
    generate::Job,
    state::{App, Model},
};

/// OpenAI's default for this route.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub(super) async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let (model, token, body) = respond::receive(&app, request).await?;
    let request = CompletionRequest::parse(&body)?;
    app.check_name(&request.model)?;
    let CompletionRequest { prompts, sampling, logprobs, streaming, .. } = request;
    let reader = Arc::clone(&model);
    let format = sampling.format.clone();
    let read = move || {
        let prompts = prompts
            .into_iter()
            .map(|prompt| encode(&reader, prompt))
            .collect::<Result<Vec<_>, ApiError>>()?;
        Ok((prompts, reader.grammar(&format)?))
    };
    let (prompts, grammar) = app.tokenize(read).await?;
    let job = Job { prompts, sampling, logprobs, grammar, default_max_tokens: Some(DEFAULT_MAX_TOKENS) };
    Ok(respond::respond(&app, &model, token, Answer { job, dialect: Dialect::Completion, streaming }).await?)
}

fn encode(model: &Model, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Tokens(ids) => Ok(ids),
        Prompt::Text(text) => model.encode(&text, "prompt"),
    }
}
