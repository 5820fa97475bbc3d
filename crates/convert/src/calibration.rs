//! The text whose activations decide what conversion keeps.

use sha2::{Digest, Sha256};

/// Token ids cut into samples of equal length; each sample starts at position 0 and sees nothing of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    ids: Vec<u32>,
    length: usize,
}

impl Calibration {
    /// Takes the first `samples * length` ids for a model of `vocab_size` tokens.
    pub fn new(
        mut ids: Vec<u32>,
        samples: usize,
        length: usize,
        vocab_size: usize,
    ) -> Result<Self, CalibrationError> {
        let needed = samples.checked_mul(length).filter(|needed| *needed > 0);
        let needed = needed.ok_or(CalibrationError::Empty { samples, length })?;
        if ids.len() < needed {
            return Err(CalibrationError::TooShort { tokens: ids.len(), samples, length });
        }
        ids.truncate(needed);
        match ids.iter().position(|id| *id as usize >= vocab_size) {
            Some(index) => Err(CalibrationError::Vocabulary { id: ids[index], index, vocab_size }),
            None => Ok(Self { ids, length }),
        }
    }

    /// All ids, sample after sample.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Tokens per sample.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.ids.len() / self.length
    }

    /// SHA-256 of the ids as little-endian u32, in hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Reads little-endian u16 ids, the content of a `.u16` file.
pub fn ids_from_u16(bytes: &[u8]) -> Result<Vec<u32>, CalibrationError> {
    if !bytes.len().is_multiple_of(2) {
        return Err(CalibrationError::OddBytes { bytes: bytes.len() });
    }
    Ok(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect())
}

/// Why ids cannot be used for calibration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields carry the names their message uses")]
pub enum CalibrationError {
    /// Nothing was asked for.
    #[error(
        "--calibration-samples {samples} times --calibration-length {length} is no usable number of tokens: both must be at least 1"
    )]
    Empty { samples: usize, length: usize },
    /// The text is shorter than the samples.
    #[error(
        "the calibration text has {tokens} tokens, but --calibration-samples {samples} times --calibration-length \
         {length} needs {}: give a longer text or fewer samples",
        samples * length
    )]
    TooShort { tokens: usize, samples: usize, length: usize },
    /// The ids belong to another tokenizer.
    #[error(
        "calibration id {id} at index {index} is outside the model's vocabulary of {vocab_size}: \
         the ids were made with another tokenizer"
    )]
    Vocabulary { id: u32, index: usize, vocab_size: usize },
    /// The file is cut short.
    #[error(
        "the calibration id file has {bytes} bytes, expected an even number: it holds little-endian u16 ids"
    )]
    OddBytes { bytes: usize },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_dropped() {
        let calibration = Calibration::new((0..10).collect(), 2, 4, 10).unwrap();
        assert_eq!(
            (calibration.ids(), calibration.samples(), calibration.length()),
            (&[0, 1, 2, 3, 4, 5, 6, 7][..], 2, 4)
        );
    }

    #[test]
    fn each_unusable_input_is_a_sentence() {
        let cases = [
            (
                Calibration::new(vec![1; 7], 2, 4, 10),
                "the calibration text has 7 tokens, but --calibration-samples 2 times --calibration-length 4 needs 8: give a longer text or fewer samples",
            ),
            (
                Calibration::new(vec![1, 2, 10, 3], 1, 4, 10),
                "calibration id 10 at index 2 is outside the model's vocabulary of 10: the ids were made with another tokenizer",
            ),
            (
                Calibration::new(vec![1], 1, 0, 10),
                "--calibration-samples 1 times --calibration-length 0 is no usable number of tokens: both must be at least 1",
            ),
        ];
        for (result, sentence) in cases {
            assert_eq!(result.unwrap_err().to_string(), sentence);
        }
        assert_eq!(ids_from_u16(&[1, 0, 0, 1]).unwrap(), [1, 256]);
        assert_eq!(ids_from_u16(&[1]), Err(CalibrationError::OddBytes { bytes: 1 }));
    }
}
