//! The element types the engine computes with.

use std::fmt;

use half::{bf16, f16};

/// Element type of a stored tensor. Block-quantised GGUF tensors appear as [`Dtype::F32`]: they are dequantised
/// exactly when read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl Dtype {
    /// Every type, in the order messages list them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name in a safetensors header.
    pub const fn safetensors_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
        }
    }

    /// The name in `config.json` (`dtype`, formerly `torch_dtype`).
    pub const fn config_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::BF16 => "bfloat16",
        }
    }

    /// Widens little-endian elements to f32, exactly. A trailing partial element is ignored.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let half_words = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self {
            Self::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Self::F16 => half_words().map(|bits| f16::from_bits(bits).to_f32()).collect(),
            Self::BF16 => half_words().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        }
    }

    /// Appends `values` to `out` in little-endian order, rounding to nearest even.
    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        out.reserve(values.len() * self.size());
        match self {
            Self::F32 => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
            Self::F16 => values.iter().for_each(|v| out.extend_from_slice(&f16::from_f32(*v).to_le_bytes())),
            Self::BF16 => {
                values.iter().for_each(|v| out.extend_from_slice(&bf16::from_f32(*v).to_le_bytes()));
            }
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.safetensors_name())
    }
}
