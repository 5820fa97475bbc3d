//! OpenAI wire types, their validation and the chat template, without I/O, clock or randomness.
//!
//! Requests are parsed into validated types ([`CompletionRequest`], [`ChatRequest`]) or refused with an [`ApiError`]
//! that names the field: a misspelt or unsupported option that is silently ignored costs its user far more than a 400.
//! Answers leave through one [`Reply`], which writes the same content as a single body or as server-sent events.

mod chat;
mod completion;
mod error;
mod fields;
mod format;
mod logprobs;
mod models;
mod reply;
mod sampling;
mod stop;
mod template;

pub use chat::{ChatRequest, MAX_MESSAGES, Message, Role};
pub use completion::{CompletionRequest, MAX_PROMPTS, Prompt};
pub use error::{ApiError, ErrorKind};
pub use format::{MAX_SCHEMA_BYTES, ResponseFormat, SCHEMA_FIELD};
pub use logprobs::{ScoredToken, TokenText};
pub use models::ModelList;
pub use reply::{Choice, DONE, Dialect, FinishReason, PING, Reply, Usage};
pub use sampling::{
    MAX_BIASES, MAX_CHOICES_PER_PROMPT, MAX_LOGPROBS, MAX_STOP_BYTES, MAX_STOP_STRINGS, MAX_STOP_TOKENS,
    Sampling, Streaming,
};
pub use stop::StopBuffer;
pub use template::{ChatTemplate, TemplateError};
