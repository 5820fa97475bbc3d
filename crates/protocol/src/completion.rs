//! `POST /v1/completions`.

use serde_json::Value;

use crate::{
    ApiError, Sampling, Streaming,
    fields::{Fields, mismatch, string, token_ids},
    sampling::{MAX_LOGPROBS, take_neutral},
};

/// Prompts per request.
pub const MAX_PROMPTS: usize = 64;

/// What a completion continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text for the tokenizer.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// A validated completion request.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// The model asked for.
    pub model: String,
    /// At least one; choices are numbered `prompt · n + sample`.
    pub prompts: Vec<Prompt>,
    /// How to draw.
    pub sampling: Sampling,
    /// Log-probabilities: of the drawn token and of this many of the most likely ones.
    pub logprobs: Option<u32>,
    /// Whether to stream.
    pub streaming: Streaming,
}

impl CompletionRequest {
    /// Reads and checks a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = string(fields.required("model")?, "model")?;
        let prompts = prompts(fields.required("prompt")?)?;
        let sampling = Sampling::take(&mut fields)?;
        let logprobs = fields.integer("logprobs", 0..=MAX_LOGPROBS)?.map(|n| n as u32);
        let streaming = Streaming::take(&mut fields)?;
        take_neutral(&mut fields)?;
        fields.unsupported("echo", |value| value == false)?;
        fields.unsupported("suffix", |value| value == "")?;
        let n = sampling.n;
        match fields.integer("best_of", 1..=i64::MAX)? {
            Some(best) if best != i64::from(n) => {
                return Err(ApiError::field(
                    "best_of",
                    format!("expected n={n}, got {best}; ranking is not supported"),
                ));
            }
            _ => {}
        }
        fields.finish()?;
        Ok(Self { model, prompts, sampling, logprobs, streaming })
    }
}

fn prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(mismatch("prompt", PROMPT_FORMS, &other)),
    };
    match items.first() {
        None => Err(ApiError::field("prompt", "expected at least one prompt or token, got an empty array")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Tokens(token_ids(items, "prompt")?)]),
        Some(_) if items.len() > MAX_PROMPTS => Err(ApiError::field(
            "prompt",
            format!("expected at most {MAX_PROMPTS} prompts, got {}", items.len()),
        )),
        Some(_) => {
            items.into_iter().enumerate().map(|(i, item)| one(item, &format!("prompt[{i}]"))).collect()
        }
    }
}

const PROMPT_FORMS: &str = "a string, an array of strings, an array of token ids or an array of such arrays";

fn one(value: Value, path: &str) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if ids.is_empty() => {
            Err(ApiError::field(path, "expected at least one token id, got an empty array"))
        }
        Value::Array(ids) => token_ids(ids, path).map(Prompt::Tokens),
        other => Err(mismatch(path, "a string or an array of token ids", &other)),
    }
}
