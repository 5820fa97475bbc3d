//! The fields both completion routes share: how to draw, how many, when to stop, whether to stream.

use serde_json::Value;

use crate::{
    ApiError, ResponseFormat,
    fields::{Fields, mismatch, quoted, string, token_ids},
};

/// Stop strings per request, OpenAI's limit.
pub const MAX_STOP_STRINGS: usize = 4;
/// Bytes per stop string.
pub const MAX_STOP_BYTES: usize = 256;
/// Answers per prompt, `n`.
pub const MAX_CHOICES_PER_PROMPT: i64 = 16;
/// Stop tokens per request.
pub const MAX_STOP_TOKENS: usize = 64;
/// Tokens per `logit_bias`, OpenAI's limit.
pub const MAX_BIASES: usize = 300;
/// Alternatives reported beside each token, as in vLLM.
pub const MAX_LOGPROBS: i64 = 20;

const MAX_PRIORITY: i64 = 100;
const MAX_SALT_BYTES: usize = 256;
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
    /// 0 to 1: how likely a token must be beside the likeliest one. Default 0.
    pub min_p: f32,
    /// -2 to 2, taken from tokens that were drawn. Default 0.
    pub presence_penalty: f32,
    /// -2 to 2, taken once for every time a token was drawn. Default 0.
    pub frequency_penalty: f32,
    /// Above 0, at most 2; divides tokens of prompt and answer. Default 1.
    pub repetition_penalty: f32,
    /// Added to single tokens, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens before which neither the end-of-sequence token nor `stop_token_ids` end the answer. Default 0.
    pub min_tokens: u32,
    /// Sample `i` of a prompt draws with `seed + i`, so a seeded answer does not depend on its batch mates.
    pub seed: Option<u64>,
    /// The answer ends before the first of these; it is not returned.
    pub stop: Vec<String>,
    /// The answer ends before the first of these; it is not returned.
    pub stop_token_ids: Vec<u32>,
    /// Answers per prompt.
    pub n: u32,
    /// What form every answer must have.
    pub format: ResponseFormat,
    /// Requests of a smaller number go first, within bounds; -100 to 100. Default 0.
    pub priority: i32,
    /// What the cache keeps of a prompt's beginning is shared only among requests with the same salt.
    pub cache_salt: String,
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
        let max_tokens = max_tokens(fields)?;
        Ok(Self {
            min_tokens: min_tokens(fields, max_tokens)?,
            max_tokens,
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
            top_p: top_p(fields)?,
            top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map_or(0, |k| k.max(0) as u32),
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
            presence_penalty: penalty(fields, "presence_penalty")?,
            frequency_penalty: penalty(fields, "frequency_penalty")?,
            repetition_penalty: repetition_penalty(fields)?,
            logit_bias: logit_bias(fields)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(|seed| seed as u64),
            stop: stop(fields)?,
            stop_token_ids: stop_token_ids(fields)?,
            n: fields.integer("n", 1..=MAX_CHOICES_PER_PROMPT)?.unwrap_or(1) as u32,
            format: ResponseFormat::take(fields)?,
            priority: fields.integer("priority", -MAX_PRIORITY..=MAX_PRIORITY)?.unwrap_or(0) as i32,
            cache_salt: cache_salt(fields)?,
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
    Ok(())
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

fn min_tokens(fields: &mut Fields, max_tokens: Option<u32>) -> Result<u32, ApiError> {
    let most = max_tokens.map_or(i64::from(u32::MAX), i64::from);
    Ok(fields.integer("min_tokens", 0..=most)?.unwrap_or(0) as u32)
}

fn cache_salt(fields: &mut Fields) -> Result<String, ApiError> {
    let salt = fields.string("cache_salt")?.unwrap_or_default();
    if salt.len() > MAX_SALT_BYTES {
        return Err(ApiError::field("cache_salt", format!("expected at most {MAX_SALT_BYTES} bytes")));
    }
    Ok(salt)
}

fn penalty(fields: &mut Fields, name: &'static str) -> Result<f32, ApiError> {
    Ok(fields.number(name, -2.0..=2.0)?.unwrap_or(0.0) as f32)
}

fn repetition_penalty(fields: &mut Fields) -> Result<f32, ApiError> {
    match fields.number("repetition_penalty", 0.0..=2.0)?.unwrap_or(1.0) {
        0.0 => Err(ApiError::field("repetition_penalty", "expected a number above 0, at most 2, got 0")),
        penalty => Ok((penalty as f32).max(f32::MIN_POSITIVE)),
    }
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MAX_BIASES => map,
        Some(Value::Object(map)) => {
            let problem = format!("expected at most {MAX_BIASES} tokens, got {}", map.len());
            return Err(ApiError::field("logit_bias", problem));
        }
        Some(other) => return Err(mismatch("logit_bias", "an object of token ids and numbers", &other)),
    };
    map.iter().map(|(id, bias)| one_bias(id, bias)).collect()
}

fn one_bias(id: &str, bias: &Value) -> Result<(u32, f32), ApiError> {
    let path = || format!("logit_bias.{}", quoted(id));
    let token = id.parse().map_err(|_| ApiError::field(path(), "expected a token id as the name"))?;
    match bias.as_f64() {
        Some(number) if (-100.0..=100.0).contains(&number) => Ok((token, number as f32)),
        _ => Err(mismatch(&path(), "a number from -100 to 100", bias)),
    }
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    match fields.take("stop_token_ids") {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) if ids.len() <= MAX_STOP_TOKENS => token_ids(ids, "stop_token_ids"),
        Some(Value::Array(ids)) => {
            let problem = format!("expected at most {MAX_STOP_TOKENS} token ids, got {}", ids.len());
            Err(ApiError::field("stop_token_ids", problem))
        }
        Some(other) => Err(mismatch("stop_token_ids", "an array of token ids", &other)),
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
