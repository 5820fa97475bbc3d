//! Element types of GGUF tensors, and exact dequantisation to f32.

use half::f16;

use crate::Dtype;

/// Element types the engine reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ElementType {
    /// Elements stored as they are.
    Plain(Dtype),
    /// Blocks of 32: f16 scale d, f16 minimum m, 16 bytes of nibbles q; x = d q + m. The low nibble of byte i is
    /// element i, the high one element i + 16.
    Q4_1,
    /// Blocks of 32: f16 scale d, 32 signed bytes q; x = d q.
    Q8_0,
    /// A type the format defines and this reader does not dequantise; `block` is only needed for bounds.
    Other { name: &'static str, block: (u64, u64) },
}

const QK: usize = 32;
const Q4_1_BYTES: usize = 2 + 2 + QK / 2;
const Q8_0_BYTES: usize = 2 + QK;

impl ElementType {
    /// The type of a `ggml_type` code; `None` for codes ggml does not define.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        let other = |name, elements, bytes| Self::Other { name, block: (elements, bytes) };
        Some(match code {
            0 => Self::Plain(Dtype::F32),
            1 => Self::Plain(Dtype::F16),
            30 => Self::Plain(Dtype::BF16),
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            2 => other("Q4_0", 32, 18),
            6 => other("Q5_0", 32, 22),
            7 => other("Q5_1", 32, 24),
            9 => other("Q8_1", 32, 36),
            10 => other("Q2_K", 256, 84),
            11 => other("Q3_K", 256, 110),
            12 => other("Q4_K", 256, 144),
            13 => other("Q5_K", 256, 176),
            14 => other("Q6_K", 256, 210),
            15 => other("Q8_K", 256, 292),
            20 => other("IQ4_NL", 32, 18),
            23 => other("IQ4_XS", 256, 136),
            24 => other("I8", 1, 1),
            25 => other("I16", 1, 2),
            26 => other("I32", 1, 4),
            27 => other("I64", 1, 8),
            28 => other("F64", 1, 8),
            _ => return None,
        })
    }

    /// Elements and bytes of one block.
    pub(super) fn block(self) -> (u64, u64) {
        match self {
            Self::Plain(dtype) => (1, dtype.size() as u64),
            Self::Q4_1 => (QK as u64, Q4_1_BYTES as u64),
            Self::Q8_0 => (QK as u64, Q8_0_BYTES as u64),
            Self::Other { block, .. } => block,
        }
    }

    /// The element type a reader sees, or `None` for [`Self::Other`].
    pub(super) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Plain(dtype) => Some(dtype),
            Self::Q4_1 | Self::Q8_0 => Some(Dtype::F32),
            Self::Other { .. } => None,
        }
    }
}

/// Dequantises Q4_1 blocks to little-endian f32. Two f16 and a nibble leave rounding only to the final addition,
/// so the result is that of ggml's own `dequantize_row_q4_1`.
pub(super) fn dequantize_q4_1(blocks: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len() / Q4_1_BYTES * QK * 4);
    for block in blocks.chunks_exact(Q4_1_BYTES) {
        let (d, m) = (half(&block[0..2]), half(&block[2..4]));
        let nibbles = &block[4..];
        let quants = nibbles.iter().map(|byte| byte & 0xf).chain(nibbles.iter().map(|byte| byte >> 4));
        for q in quants {
            out.extend_from_slice(&(d * f32::from(q) + m).to_le_bytes());
        }
    }
    out
}

/// Dequantises Q8_0 blocks to little-endian f32, exactly.
pub(super) fn dequantize_q8_0(blocks: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len() / Q8_0_BYTES * QK * 4);
    for block in blocks.chunks_exact(Q8_0_BYTES) {
        let d = half(&block[0..2]);
        for q in &block[2..] {
            out.extend_from_slice(&(d * f32::from(*q as i8)).to_le_bytes());
        }
    }
    out
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}
