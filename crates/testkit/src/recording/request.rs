//! Requests, taken apart.

use std::collections::BTreeMap;

use serde_json::Value;

/// One request and how it was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// HTTP method.
    pub method: String,
    /// Path of the URL.
    pub path: String,
    /// Query parameters.
    pub query: BTreeMap<String, String>,
    /// Body, or null.
    pub body: Value,
    /// Status of the answer.
    pub code: u16,
}

impl Recorded {
    /// Whether it changes anything.
    pub fn is_write(&self) -> bool {
        self.method != "GET"
    }
}

/// What a request is about.
pub(super) struct Target {
    /// Path without `/status`.
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) status: bool,
}

impl Target {
    pub(super) fn new(uri: &http::Uri) -> Self {
        let path = uri.path();
        let object = path.strip_suffix("/status");
        let query = uri.query().unwrap_or_default();
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        Self {
            status: object.is_some(),
            path: object.unwrap_or(path).to_owned(),
            query: pairs.map(|(key, value)| (key.to_owned(), decode(value))).collect(),
        }
    }

    /// Whether the path names one object and not a collection: names follow plurals in pairs, after the API's version.
    pub(super) fn names_object(&self) -> bool {
        let mut segments = self.path.trim_matches('/').split('/');
        let version = if segments.next() == Some("apis") { 2 } else { 1 };
        segments.skip(version).count().is_multiple_of(2)
    }

    /// Whether an object carries the labels asked for. Only equality is understood.
    pub(super) fn selects(&self, object: &Value) -> bool {
        let selector = self.query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let terms = selector.split(',').filter_map(|term| term.split_once('='));
        terms.into_iter().all(|(key, value)| object["metadata"]["labels"][key].as_str() == Some(value))
    }
}

/// Percent-decoding of query values.
fn decode(value: &str) -> String {
    let bytes = value.as_bytes();
    let (mut decoded, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let hex = value.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(code)) => {
                decoded.push(code);
                at += 3;
            }
            (b'+', _) => {
                decoded.push(b' ');
                at += 1;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
