//! Typed access to the fields of a JSON object, with errors that name the field.

use std::{fmt::Display, path::Path};

use serde_json::{Map, Value};

use super::ConfigError;

/// No dimension is larger; below it, the sum of two times a third still fits 64 bits.
const MAX_DIMENSION: u64 = 1 << 30;

/// An object of a configuration file. `null` counts as absent, as transformers writes it for unset fields.
pub(super) struct Fields<'a> {
    file: &'a Path,
    object: Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn parse(json: &str, file: &'a Path) -> Result<Self, ConfigError> {
        let object = serde_json::from_str(json)
            .map_err(|source| ConfigError::Json { file: file.to_owned(), source })?;
        Ok(Self { file, object })
    }

    pub(super) fn file(&self) -> &Path {
        self.file
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    fn required<T>(&self, field: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| ConfigError::Missing { file: self.file.to_owned(), field: field.to_owned() })
    }

    fn read<T>(
        &self,
        field: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(field, value, expected))
    }

    pub(super) fn wrong(
        &self,
        field: &str,
        actual: impl Display,
        expected: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Wrong {
            file: self.file.to_owned(),
            field: field.to_owned(),
            actual: actual.to_string(),
            expected: expected.into(),
        }
    }

    pub(super) fn unsupported(&self, field: &str, actual: &str, reason: &str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.to_owned(),
            field: field.to_owned(),
            actual: actual.to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Self>, ConfigError> {
        let object = self.read(field, "an object", |value| value.as_object().cloned())?;
        Ok(object.map(|object| Self { file: self.file, object }))
    }

    pub(super) fn optional_usize(&self, field: &str) -> Result<Option<usize>, ConfigError> {
        self.read(field, "a whole number from 1 to 2^30", |value| {
            value.as_u64().filter(|n| (1..=MAX_DIMENSION).contains(n)).map(|n| n as usize)
        })
    }

    /// A list of whole numbers from 1 to 2^30, if the field is a list.
    pub(super) fn list(&self, field: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        if !self.get(field).is_some_and(Value::is_array) {
            return Ok(None);
        }
        let number =
            |value: &Value| value.as_u64().filter(|n| (1..=MAX_DIMENSION).contains(n)).map(|n| n as u32);
        self.read(field, "a list of whole numbers from 1 to 2^30", |value| {
            value.as_array()?.iter().map(number).collect()
        })
    }

    pub(super) fn usize(&self, field: &str) -> Result<usize, ConfigError> {
        self.required(field, self.optional_usize(field)?)
    }

    pub(super) fn u32(&self, field: &str) -> Result<u32, ConfigError> {
        // `optional_usize` admits no more than MAX_DIMENSION.
        Ok(self.usize(field)? as u32)
    }

    pub(super) fn count_or_zero(&self, field: &str) -> Result<usize, ConfigError> {
        let count = self.read(field, "a whole number below 2^32", |value| {
            value.as_u64().and_then(|n| u32::try_from(n).ok())
        })?;
        Ok(count.unwrap_or(0) as usize)
    }

    pub(super) fn optional_f64(&self, field: &str) -> Result<Option<f64>, ConfigError> {
        self.read(field, "a number", Value::as_f64)
    }

    pub(super) fn f64(&self, field: &str) -> Result<f64, ConfigError> {
        self.required(field, self.optional_f64(field)?)
    }

    pub(super) fn bool_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        Ok(self.read(field, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(super) fn optional_string(&self, field: &str) -> Result<Option<String>, ConfigError> {
        self.read(field, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn string(&self, field: &str) -> Result<String, ConfigError> {
        self.required(field, self.optional_string(field)?)
    }

    /// How many leading entries of a list of strings are `word`.
    pub(super) fn leading(&self, field: &str, word: &str) -> Result<Option<u32>, ConfigError> {
        let entries = self.strings(field)?;
        Ok(entries.map(|entries| entries.iter().take_while(|entry| *entry == word).count() as u32))
    }

    pub(super) fn strings(&self, field: &str) -> Result<Option<Vec<String>>, ConfigError> {
        self.read(field, "a list of strings", |value| {
            value.as_array()?.iter().map(|entry| entry.as_str().map(str::to_owned)).collect()
        })
    }

    /// One id or a list of ids.
    pub(super) fn token_ids(&self, field: &str) -> Result<Vec<u32>, ConfigError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.read(field, "a token id or a list of token ids", |value| match value {
            Value::Array(values) => values.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}
