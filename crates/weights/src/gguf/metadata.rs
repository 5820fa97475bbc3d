//! The typed key-value section of a GGUF file.

use std::collections::BTreeMap;

/// A metadata value. Integer and float widths do not matter to any reader.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
}

/// All metadata of a file.
#[derive(Debug, Default)]
pub(super) struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    /// Whether the key is new.
    pub(super) fn insert(&mut self, key: String, value: Value) -> bool {
        self.0.insert(key, value).is_none()
    }

    pub(super) fn u64(&self, key: &str) -> Option<u64> {
        match self.0.get(key)? {
            Value::Unsigned(value) => Some(*value),
            Value::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    pub(super) fn f64(&self, key: &str) -> Option<f64> {
        match self.0.get(key)? {
            Value::Float(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn string(&self, key: &str) -> Option<&str> {
        match self.0.get(key)? {
            Value::String(value) => Some(value),
            _ => None,
        }
    }

    fn array(&self, key: &str) -> Option<&[Value]> {
        match self.0.get(key)? {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }

    /// An array whose elements are all strings.
    pub(super) fn strings(&self, key: &str) -> Option<Vec<String>> {
        let string = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            _ => None,
        };
        self.array(key)?.iter().map(string).collect()
    }

    /// An array whose elements are all integers.
    pub(super) fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let integer = |value: &Value| match value {
            Value::Signed(value) => Some(*value),
            Value::Unsigned(value) => i64::try_from(*value).ok(),
            _ => None,
        };
        self.array(key)?.iter().map(integer).collect()
    }
}
