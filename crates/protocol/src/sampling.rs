//! The fields both completion routes share: how to draw, how many, when to stop, whether to stream.

use serde_json::Value;

use crate::{
    ApiError,
    fields::{Fields, mismatch, string},
};

/// Stop strings per request, OpenAI's limit.
pub const MAX_STOP_STRINGS: usize = 4;
/// Bytes per stop string.
pub const MAX_STOP_BYTES: usize = 256;
/// Answers per prompt, `n`.
pub const MAX_CHOICES_PER_PROMPT: i64 = 16;
/// Alternatives reported beside each token, as in vLLM.
pub const MAX_LOGPROBS: i64 = 20;

const MAX_USER_BYTES: usize = 512;

/// How to draw an answer, all values in range.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens to generate at most; `None` leaves it to the route.
    pub max_tokens: Option<u32>,
    /// 0 to 2; 0 is greedy. Default 1.
    pub temperature: f32,
    /// Above 0, at most 1. Default 1.
    pub top_p: f32,
    /// 0 keeps every token (so does -1 on the wire).
    pub top_k: u32,
    /// Sample `i` of a prompt draws with `seed + i`, so a seeded answer does not depend on its batch mates.
    pub seed: Option<u64>,
    /// The answer ends before the first of these; it is not returned.
    pub stop: Vec<String>,
    /// Answers per prompt.
    pub n: u32,
    /// Go on after the end-of-sequence token; for measurements.
    pub ignore_eos: bool,
}

/// Whether and how the answer is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// One JSON body.
    Off,
    /// Server-sent events.
    On {
        /// One more chunk with the token counts before `[DONE]`.
        include_usage: bool,
    },
}

impl Sampling {
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        Ok(Self {
            max_tokens: max_tokens(fields)?,
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
            top_p: top_p(fields)?,
            top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map_or(0, |k| k.max(0) as u32),
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| seed as u64),
            stop: stop(fields)?,
            n: fields.integer("n", 1..=MAX_CHOICES_PER_PROMPT)?.unwrap_or(1) as u32,
            ignore_eos: fields.boolean("ignore_eos")?,
        })
    }
}

impl Streaming {
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?;
        let include_usage = match fields.take("stream_options") {
            None => false,
            Some(_) if !stream => {
                return Err(ApiError::field("stream_options", "only allowed when stream is true"));
            }
            Some(options) => {
                let mut options = Fields::nested(options, "stream_options")?;
                let include_usage = options.boolean("include_usage")?;
                options.finish()?;
                include_usage
            }
        };
        Ok(if stream { Self::On { include_usage } } else { Self::Off })
    }
}

/// Fields of the OpenAI API that are accepted only where they change nothing.
pub(crate) fn take_neutral(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.string("user")?.is_some_and(|user| user.len() > MAX_USER_BYTES) {
        return Err(ApiError::field("user", format!("expected at most {MAX_USER_BYTES} bytes")));
    }
    fields.unsupported("frequency_penalty", is_zero)?;
    fields.unsupported("presence_penalty", is_zero)?;
    fields.unsupported("logit_bias", is_empty)
}

pub(crate) fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

pub(crate) fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.is_empty()) || value.as_array().is_some_and(Vec::is_empty)
}

fn max_tokens(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let range = 1..=i64::from(u32::MAX);
    let old = fields.integer("max_tokens", range.clone())?;
    let new = fields.integer("max_completion_tokens", range)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::field(
            "max_completion_tokens",
            format!("{new} contradicts max_tokens={old}; give one of them"),
        )),
        (old, new) => Ok(new.or(old).map(|tokens| tokens as u32)),
    }
}

fn top_p(fields: &mut Fields) -> Result<f32, ApiError> {
    match fields.number("top_p", 0.0..=1.0)? {
        None => Ok(1.0),
        Some(0.0) => Err(ApiError::field("top_p", "expected a number above 0, at most 1, got 0")),
        // A tiny f64 must not become 0 as f32.
        Some(p) => Ok((p as f32).max(f32::MIN_POSITIVE)),
    }
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let strings = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) if many.len() > MAX_STOP_STRINGS => {
            let problem = format!("expected at most {MAX_STOP_STRINGS} strings, got {}", many.len());
            return Err(ApiError::field("stop", problem));
        }
        Some(Value::Array(many)) => many
            .into_iter()
            .enumerate()
            .map(|(i, value)| string(value, &format!("stop[{i}]")))
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(mismatch("stop", "a string or an array of strings", &other)),
    };
    match strings.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        None => Ok(strings),
        Some(bad) => {
            let problem =
                format!("expected strings of 1 to {MAX_STOP_BYTES} bytes, got one of {}", bad.len());
            Err(ApiError::field("stop", problem))
        }
    }
}
