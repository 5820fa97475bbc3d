//! `POST /v1/chat/completions`, text only.

use serde::Serialize;
use serde_json::Value;

use crate::{
    ApiError, Sampling, Streaming,
    fields::{Fields, mismatch, string},
    sampling::{MAX_LOGPROBS, is_empty, take_neutral},
};

/// Messages per request.
pub const MAX_MESSAGES: usize = 4096;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions. OpenAI's newer name `developer` means the same to templates and is read as this.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation, in the form templates read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What they say; the text parts of a list joined in order.
    pub content: String,
    /// The speaker's name, for templates that use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A validated chat request.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The model asked for.
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    /// How to draw.
    pub sampling: Sampling,
    /// Log-probabilities: of the drawn token and of this many of the most likely ones.
    pub logprobs: Option<u32>,
    /// Whether to stream.
    pub streaming: Streaming,
}

impl ChatRequest {
    /// Reads and checks a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = string(fields.required("model")?, "model")?;
        let messages = messages(fields.required("messages")?)?;
        let sampling = Sampling::take(&mut fields)?;
        let logprobs = logprobs(&mut fields)?;
        let streaming = Streaming::take(&mut fields)?;
        take_neutral(&mut fields)?;
        fields.unsupported("tools", is_empty)?;
        fields.unsupported("tool_choice", |value| value == "none" || value == "auto")?;
        fields.unsupported("parallel_tool_calls", Value::is_boolean)?;
        fields.unsupported("store", |value| value == false)?;
        fields.finish()?;
        Ok(Self { model, messages, sampling, logprobs, streaming })
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs")?;
    match fields.integer("top_logprobs", 0..=MAX_LOGPROBS)? {
        Some(_) if !wanted => Err(ApiError::field("top_logprobs", "only allowed when logprobs is true")),
        top => Ok(wanted.then(|| top.unwrap_or(0) as u32)),
    }
}

fn messages(value: Value) -> Result<Vec<Message>, ApiError> {
    match value {
        Value::Array(items) if items.is_empty() => {
            Err(ApiError::field("messages", "expected at least one message, got an empty array"))
        }
        Value::Array(items) if items.len() > MAX_MESSAGES => Err(ApiError::field(
            "messages",
            format!("expected at most {MAX_MESSAGES} messages, got {}", items.len()),
        )),
        Value::Array(items) => {
            items.into_iter().enumerate().map(|(i, item)| message(item, &format!("messages[{i}]"))).collect()
        }
        other => Err(mismatch("messages", "an array", &other)),
    }
}

fn message(value: Value, path: &str) -> Result<Message, ApiError> {
    let mut fields = Fields::nested(value, path)?;
    let role = role(fields.required("role")?, &fields.path("role"))?;
    let content_path = fields.path("content");
    let content = content(fields.required("content")?, &content_path)?;
    let name = fields.string("name")?;
    fields.unsupported("tool_calls", is_empty)?;
    // Clients send back the message they received, with the fields it did not use set to null.
    for echoed in ["refusal", "annotations", "audio", "function_call"] {
        fields.unsupported(echoed, is_empty)?;
    }
    fields.finish()?;
    Ok(Message { role, content, name })
}

fn role(value: Value, path: &str) -> Result<Role, ApiError> {
    match value.as_str() {
        Some("system" | "developer") => Ok(Role::System),
        Some("user") => Ok(Role::User),
        Some("assistant") => Ok(Role::Assistant),
        _ => Err(ApiError::field(path, "expected `system`, `developer`, `user` or `assistant`")),
    }
}

fn content(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Array(parts) => {
            parts.into_iter().enumerate().map(|(i, part)| text_part(part, &format!("{path}[{i}]"))).collect()
        }
        other => Err(mismatch(path, "a string or an array of text parts", &other)),
    }
}

fn text_part(value: Value, path: &str) -> Result<String, ApiError> {
    let mut part = Fields::nested(value, path)?;
    let kind_path = part.path("type");
    if part.required("type")? != "text" {
        return Err(ApiError::field(kind_path, "expected `text`; this model reads nothing else"));
    }
    let text_path = part.path("text");
    let text = string(part.required("text")?, &text_path)?;
    part.finish()?;
    Ok(text)
}
