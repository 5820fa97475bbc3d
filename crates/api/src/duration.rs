//! Durations as Kubernetes spells them, as far as a bound on a token's time needs them.

use std::{fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A duration above 0 and at most an hour, such as `50ms` or `1.5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ShortDuration {
    micros: u64,
}

impl ShortDuration {
    const LONGEST_US: u64 = 3_600_000_000;

    /// The duration in milliseconds.
    pub fn milliseconds(self) -> f64 {
        self.micros as f64 / 1e3
    }
}

/// Not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no duration: expected a number above 0 with the unit ms or s, at most an hour, such as 50ms"
)]
pub struct NoDuration(String);

impl FromStr for ShortDuration {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        let refuse = || NoDuration(text.to_owned());
        let (number, scale) = match text.strip_suffix("ms") {
            Some(number) => (number, 1e3),
            None => (text.strip_suffix('s').ok_or_else(refuse)?, 1e6),
        };
        let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let micros = number.parse::<f64>().ok().filter(|_| plain).map(|value| (value * scale).round());
        match micros {
            Some(micros) if (1.0..=Self::LONGEST_US as f64).contains(&micros) => {
                Ok(Self { micros: micros as u64 })
            }
            _ => Err(refuse()),
        }
    }
}

impl TryFrom<String> for ShortDuration {
    type Error = NoDuration;

    fn try_from(text: String) -> Result<Self, NoDuration> {
        text.parse()
    }
}

impl From<ShortDuration> for String {
    fn from(duration: ShortDuration) -> Self {
        duration.to_string()
    }
}

impl fmt::Display for ShortDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.milliseconds())
    }
}

impl JsonSchema for ShortDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ShortDuration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 16, "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s)$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_back() {
        let table = [("50ms", 50.0, "50ms"), ("1.5s", 1500.0, "1500ms"), ("0.25ms", 0.25, "0.25ms")];
        for (text, milliseconds, written) in table {
            let duration: ShortDuration = serde_json::from_value(text.into()).unwrap();
            assert_eq!((duration.milliseconds(), duration.to_string().as_str()), (milliseconds, written));
            assert_eq!(written.parse(), Ok(duration));
        }
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in
            ["", "50", "ms", "0ms", "-5ms", "1e3ms", "2h", "3601s", "infs", "..s", "9".repeat(400).as_str()]
        {
            let sentence = text.parse::<ShortDuration>().unwrap_err().to_string();
            assert!(sentence.ends_with("such as 50ms"), "{sentence}");
        }
    }
}
