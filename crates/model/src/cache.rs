//! What cached numbers are stored as.

use std::{fmt, str::FromStr};

/// What numbers of a cache are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheFormat {
    /// As they were computed.
    F32,
    /// Rounded to 8 significant bits: half the memory, and half of what a decoding step reads of it.
    Bf16,
    /// 8-bit integers and one f32 scale for each part of a token, which is the part's largest magnitude over 127: about a
    /// quarter of the memory. A number is off by half a scale at most.
    Int8,
}

/// What one token leaves in one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedToken {
    /// Numbers.
    pub elements: u64,
    /// Parts the numbers fall into: a group's key, its value, the rotary key, the latent. Each has a scale of its own where
    /// the format has scales.
    pub parts: u64,
}

impl CachedToken {
    /// Bytes of the numbers and of their scales.
    pub const fn bytes(self, format: CacheFormat) -> u64 {
        let (number, scale) = match format {
            CacheFormat::F32 => (4, 0),
            CacheFormat::Bf16 => (2, 0),
            CacheFormat::Int8 => (1, 4),
        };
        self.elements.saturating_mul(number).saturating_add(self.parts.saturating_mul(scale))
    }
}

impl CacheFormat {
    /// What gqla-server stores on a CPU unless its `--kv-cache-dtype` says otherwise. Whoever counts a CPU's cache goes by it.
    pub const CPU_DEFAULT: Self = Self::F32;
    /// Every format, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// The value of `--kv-cache-dtype`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
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
#[error("`{0}` is no cache format: expected f32, bf16 or int8")]
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
    fn scales_are_counted_where_there_are_any() {
        let token = CachedToken { elements: 448, parts: 7 };
        assert_eq!(CacheFormat::ALL.map(|format| token.bytes(format)), [1792, 896, 448 + 28]);
        let most = CachedToken { elements: u64::MAX, parts: u64::MAX };
        assert_eq!(CacheFormat::ALL.map(|format| most.bytes(format)), [u64::MAX; 3]);
    }

    #[test]
    fn every_format_is_read_by_its_name() {
        for format in CacheFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        let sentence = "int3".parse::<CacheFormat>().unwrap_err().to_string();
        assert_eq!(sentence, "`int3` is no cache format: expected f32, bf16 or int8");
    }
}
