//! What a client gets back: the same answer as one body or as a stream of chunks, in either route's dialect.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{ApiError, ErrorKind, ScoredToken, logprobs};

/// The event that ends every stream that did not fail.
pub const DONE: &str = "data: [DONE]\n\n";

/// A comment that no client sees but that keeps proxies from closing an idle stream.
pub const PING: &str = ": ping\n\n";

/// Which route is answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/v1/completions`
    Completion,
    /// `/v1/chat/completions`
    Chat,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model, or a stop string, ended it.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The server is stopping.
    Abort,
}

impl FinishReason {
    /// The spelling on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// Token counts, the basis of billing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens generated for all choices. The end-of-sequence token is not counted.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}

impl Usage {
    /// Counts and their sum.
    pub const fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }
}

/// One finished answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// `prompt · n + sample`.
    pub index: usize,
    /// Its text, cut at the stop string.
    pub text: String,
    /// When asked for.
    pub logprobs: Option<Vec<ScoredToken>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Writes answers to one request. `id`, `created` and `model` are the same in every chunk.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The route's form.
    pub dialect: Dialect,
    /// Unique, e.g. `chatcmpl-…`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The served name.
    pub model: String,
    /// The client asked for a usage chunk; all other chunks then carry `"usage": null`.
    pub include_usage: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

impl Reply {
    /// The whole answer as one body.
    pub fn whole(&self, choices: &[Choice], usage: Usage) -> Result<String, ApiError> {
        let object = match self.dialect {
            Dialect::Completion => "text_completion",
            Dialect::Chat => "chat.completion",
        };
        let choices = choices.iter().map(|choice| self.whole_choice(choice)).collect();
        serde_json::to_string(&self.envelope(object, choices, Some(Some(usage)))).map_err(|error| {
            ApiError::new(ErrorKind::Internal, format!("the answer cannot be written: {error}"))
        })
    }

    /// The event that opens choice `index`: chat names the role, completions have none.
    pub fn opening(&self, index: usize) -> Option<String> {
        match self.dialect {
            Dialect::Completion => None,
            Dialect::Chat => {
                let delta = json!({"role": "assistant", "content": ""});
                Some(
                    self.chunk(
                        json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null}),
                    ),
                )
            }
        }
    }

    /// The event that adds `text` to choice `index`.
    pub fn delta(&self, index: usize, text: &str, logprobs: Option<&[ScoredToken]>) -> String {
        let logprobs = self.logprobs(logprobs);
        self.chunk(match self.dialect {
            Dialect::Completion => {
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": null})
            }
            Dialect::Chat => {
                json!({"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null})
            }
        })
    }

    /// The last event of choice `index`.
    pub fn closing(&self, index: usize, reason: FinishReason) -> String {
        self.chunk(match self.dialect {
            Dialect::Completion => {
                json!({"index": index, "text": "", "logprobs": null, "finish_reason": reason})
            }
            Dialect::Chat => {
                json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason})
            }
        })
    }

    /// The token counts, as a chunk without choices; `None` unless the client asked for it.
    pub fn usage(&self, usage: Usage) -> Option<String> {
        self.include_usage.then(|| event(&self.envelope(self.chunk_object(), Vec::new(), Some(Some(usage)))))
    }

    fn whole_choice(&self, choice: &Choice) -> Value {
        let Choice { index, text, finish_reason, .. } = choice;
        let logprobs = self.logprobs(choice.logprobs.as_deref());
        match self.dialect {
            Dialect::Completion => {
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason})
            }
            Dialect::Chat => {
                let message = json!({"role": "assistant", "content": text});
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason})
            }
        }
    }

    fn logprobs(&self, tokens: Option<&[ScoredToken]>) -> Option<Value> {
        tokens.map(match self.dialect {
            Dialect::Completion => logprobs::completion,
            Dialect::Chat => logprobs::chat,
        })
    }

    fn chunk(&self, choice: Value) -> String {
        event(&self.envelope(self.chunk_object(), vec![choice], self.include_usage.then_some(None)))
    }

    const fn chunk_object(&self) -> &'static str {
        match self.dialect {
            Dialect::Completion => "text_completion",
            Dialect::Chat => "chat.completion.chunk",
        }
    }

    fn envelope(&self, object: &'static str, choices: Vec<Value>, usage: Option<Option<Usage>>) -> Body<'_> {
        Body { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// One server-sent event with a JSON payload.
pub(crate) fn event(payload: &impl Serialize) -> String {
    match serde_json::to_string(payload) {
        Ok(json) => format!("data: {json}\n\n"),
        Err(error) => {
            format!("data: {}\n\n", json!({"error": {"message": error.to_string(), "type": "server_error"}}))
        }
    }
}

#[cfg(test)]
mod tests;
