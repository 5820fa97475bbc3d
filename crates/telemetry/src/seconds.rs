//! Durations on command lines.

use std::time::Duration;

/// Parses a number of seconds from 0.1 to 86400, with or without the suffix `s`, which Helm values are often written with.
///
/// # Errors
/// A sentence that says what was expected.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() && (0.1..=86_400.0).contains(&value) => {
            Ok(Duration::from_secs_f64(value))
        }
        _ => Err(format!("`{text}` is not a number of seconds from 0.1 to 86400")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(parse_seconds("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_seconds("0.5s"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "nan", "inf", "1h", "90000"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
