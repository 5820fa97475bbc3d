//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use gqla_protocol::{ApiError, ChatRequest, Dialect, Message};

use super::respond::{self, Answer};
use crate::{
    failure::Failure,
    generate::Job,
    state::{App, Model, unix_seconds},
};

pub(super) async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, Failure> {
    let (model, token, body) = respond::receive(&app, request).await?;
    let request = ChatRequest::parse(&body)?;
    app.check_name(&request.model)?;
    let ChatRequest { messages, sampling, logprobs, streaming, .. } = request;
    let reader = Arc::clone(&model);
    let format = sampling.format.clone();
    let read = move || Ok((encode(&reader, &messages)?, reader.grammar(&format)?));
    let (prompt, grammar) = app.tokenize(read).await?;
    let job = Job { prompts: vec![prompt], sampling, logprobs, grammar, default_max_tokens: None };
    Ok(respond::respond(&app, &model, token, Answer { job, dialect: Dialect::Chat, streaming }).await?)
}

fn encode(model: &Model, messages: &[Message]) -> Result<Vec<u32>, ApiError> {
    let template = model
        .template
        .as_ref()
        .ok_or_else(|| ApiError::field("messages", "this model has no chat template; use /v1/completions"))?;
    for (i, message) in messages.iter().enumerate() {
        model.check_plain(&message.content, &format!("messages[{i}].content"))?;
        if let Some(name) = &message.name {
            model.check_plain(name, &format!("messages[{i}].name"))?;
        }
    }
    let now = i64::try_from(unix_seconds()).unwrap_or(i64::MAX);
    model.encode(&template.render(messages, now)?, "messages")
}
