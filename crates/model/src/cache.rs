//! What cached numbers are stored as.

use std::{fmt, str::FromStr};

/// What numbers of a cache are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFormat {
    /// As they were computed.
    F32,
    /// Rounded to 8 significant bits: half the memory, and half of what a decoding step reads of it.
    Bf16,
}

impl CacheFormat {
    /// What gqla-server stores on a CPU unless its `--kv-cache-dtype` says otherwise. Whoever counts a CPU's cache goes by it.
    pub const CPU_DEFAULT: Self = Self::F32;
    const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The value of `--kv-cache-dtype`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for CacheFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no cache format: expected f32 or bf16")]
pub struct UnknownCacheFormat(String);

impl FromStr for CacheFormat {
    type Err = UnknownCacheFormat;

    fn from_str(text: &str) -> Result<Self, UnknownCacheFormat> {
        let known = Self::ALL.into_iter().find(|format| format.name() == text);
        known.ok_or_else(|| UnknownCacheFormat(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_read_by_its_name() {
        for format in CacheFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let sentence = "int3".parse::<CacheFormat>().unwrap_err().to_string();
        assert_eq!(sentence, "`int3` is no cache format: expected f32 or bf16");
    }
}
