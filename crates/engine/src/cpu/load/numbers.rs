//! A tensor's numbers in a format the kernels take.

use gqla_kernels::WeightRows;
use gqla_weights::{Dtype, Tensor};

/// bf16 stays as it is. f16 has three bits of precision more than bf16 and fits no other format of the kernels, so it is
/// widened to f32, exactly: such a checkpoint takes twice its size in memory and answers as it was trained to.
pub(super) enum Numbers<'a> {
    F32(Vec<f32>),
    Bf16(&'a [u8]),
}

impl<'a> Numbers<'a> {
    pub fn of(tensor: &'a Tensor<'_>) -> Self {
        match tensor.dtype {
            Dtype::BF16 => Self::Bf16(tensor.bytes()),
            Dtype::F16 | Dtype::F32 => Self::F32(tensor.to_f32()),
        }
    }

    pub fn rows(&self) -> WeightRows<'_> {
        match self {
            Self::F32(values) => WeightRows::F32(values),
            Self::Bf16(bytes) => WeightRows::Bf16(bytes),
        }
    }
}
