//! Reading a calibration.

use gqla_planner::{Calibration, CalibrationError};

/// Most bytes a calibration may have: as many as a ConfigMap holds.
pub const LARGEST_CALIBRATION: u64 = 1 << 20;

/// Why a text is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationFileError {
    /// It is too long.
    #[error("it has more than {LARGEST_CALIBRATION} bytes, which no calibration needs; is it another file?")]
    TooLong,
    /// It is not the JSON of a calibration.
    #[error("expected a JSON object with `kernels` and `devices`: {0}")]
    Malformed(serde_json::Error),
    /// It holds figures no device can reach.
    #[error(transparent)]
    Impossible(#[from] CalibrationError),
}

/// Reads and checks a calibration.
///
/// # Errors
/// When the text is too long, is not the JSON of a calibration or holds figures no device can reach.
pub fn parse_calibration(text: &str) -> Result<Calibration, CalibrationFileError> {
    if text.len() as u64 > LARGEST_CALIBRATION {
        return Err(CalibrationFileError::TooLong);
    }
    let calibration: Calibration = serde_json::from_str(text).map_err(CalibrationFileError::Malformed)?;
    calibration.validate()?;
    Ok(calibration)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_calibration_is_told() {
        let device = |rate: &str| {
            format!(
                r#"{{"devices": [{{"gpu": "CPU", "flops_per_second": {rate}, "bytes_per_second": 1e9, "provenance": {{
                "tool": "t", "device": "d", "build": "b", "measured_at": "2026-01-02T03:04:05Z", "samples": 1}}}}]}}"#
            )
        };
        assert_eq!(parse_calibration(&device("1e12")).unwrap().devices.len(), 1);
        assert_eq!(parse_calibration("{}").unwrap(), Calibration::default());
        let long = " ".repeat(LARGEST_CALIBRATION as usize + 1);
        let cases = [
            ("", "expected a JSON object with `kernels` and `devices`: EOF"),
            (r#"{"kernel": []}"#, "unknown field `kernel`"),
            (&device("0"), "calibration of CPU: flops_per_second is 0, expected a finite number above 0"),
            (&long, "more than 1048576 bytes"),
        ];
        for (text, words) in cases {
            let sentence = parse_calibration(text).unwrap_err().to_string();
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = parse_calibration(&text);
        }
    }
}
