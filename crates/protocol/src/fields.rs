//! Reads a JSON object field by field, so that every complaint names the field's path, what was expected and what was
//! found, and so that a field nobody asked for is an error. `serde`'s derive gives neither the path nor the range.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::{ApiError, ErrorKind};

/// Caller-chosen text is cut to this many characters before it is quoted back.
const QUOTED: usize = 64;

/// A JSON object whose fields are taken out one by one. `null` counts as absent.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Path of this object, empty or ending in a dot.
    prefix: String,
    known: Vec<&'static str>,
}

impl Fields {
    /// Parses a request body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| {
            ApiError::new(ErrorKind::InvalidRequest, format!("the request body is not valid JSON: {error}"))
        })?;
        match value {
            Value::Object(map) => Ok(Self { map, prefix: String::new(), known: Vec::new() }),
            other => Err(ApiError::new(
                ErrorKind::InvalidRequest,
                format!("the request body is {}, expected a JSON object", kind_of(&other)),
            )),
        }
    }

    /// Reads a nested object that stands at `path`.
    pub(crate) fn nested(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, prefix: format!("{path}."), known: Vec::new() }),
            other => Err(mismatch(path, "an object", &other)),
        }
    }

    /// The full path of a field of this object.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The raw value, if there is one.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// The raw value of a field that must be there.
    pub(crate) fn required(&mut self, name: &'static str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::field(self.path(name), "this field is required"))
    }

    /// A string.
    pub(crate) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        self.take(name).map(|value| string(value, &self.path(name))).transpose()
    }

    /// `true` or `false`; absent is `false`.
    pub(crate) fn boolean(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(mismatch(&self.path(name), "true or false", &other)),
        }
    }

    /// A whole number in `range`.
    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        match value.as_i64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(mismatch(&self.path(name), &expected, &value)),
        }
    }

    /// A number in `range`.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let expected = format!("a number from {} to {}", range.start(), range.end());
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(mismatch(&self.path(name), &expected, &value)),
        }
    }

    /// A field of the OpenAI API that this server lacks: its neutral values are accepted, all others refused.
    pub(crate) fn unsupported(
        &mut self,
        name: &'static str,
        neutral: fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !neutral(&value) => {
                Err(ApiError::field(self.path(name), "this server does not support the field; leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses whatever nobody asked for.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => {
                let path = format!("{}{}", self.prefix, quoted(name));
                let known = self.known.join(", ");
                Err(ApiError::field(path, format!("unknown field, expected one of {known}")))
            }
        }
    }
}

/// Accepts a string.
pub(crate) fn string(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(mismatch(path, "a string", &other)),
    }
}

/// Accepts token ids.
pub(crate) fn token_ids(ids: Vec<Value>, path: &str) -> Result<Vec<u32>, ApiError> {
    let id = |(i, value): (usize, Value)| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| mismatch(&format!("{path}[{i}]"), "a token id", &value))
    };
    ids.into_iter().enumerate().map(id).collect()
}

/// Something else than expected stood at `path`.
pub(crate) fn mismatch(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Number(_) | Value::Bool(_) => quoted(&found.to_string()),
        other => kind_of(other).to_owned(),
    };
    ApiError::field(path, format!("expected {expected}, got {found}"))
}

/// Text that a caller chose, short enough to quote back.
pub(crate) fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}

const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
