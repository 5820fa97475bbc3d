//! What flags let one choose from.

use gqla_engine::{
    cpu::{CacheFormat, Products, Weights},
    cuda,
};

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    /// The processor's vector units.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// What cached numbers are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KvCacheDtype {
    /// As they were computed.
    F32,
    /// Rounded to 8 significant bits.
    Bf16,
    /// 8-bit integers with a scale for every token's keys and values of a group.
    Int8,
}

impl From<KvCacheDtype> for CacheFormat {
    fn from(dtype: KvCacheDtype) -> Self {
        match dtype {
            KvCacheDtype::F32 => Self::F32,
            KvCacheDtype::Bf16 => Self::Bf16,
            KvCacheDtype::Int8 => Self::Int8,
        }
    }
}

/// What weights are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightDtype {
    /// As the checkpoint stores them.
    Auto,
    /// Rounded to int8, one scale per output.
    Int8,
}

impl From<WeightDtype> for Weights {
    fn from(dtype: WeightDtype) -> Self {
        match dtype {
            WeightDtype::Auto => Self::Stored,
            WeightDtype::Int8 => Self::Int8,
        }
    }
}

/// What bf16 weights are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ComputeDtype {
    /// Activations as they are.
    F32,
    /// Activations rounded to bf16, where the processor multiplies bf16.
    Bf16,
}

impl From<ComputeDtype> for Products {
    fn from(dtype: ComputeDtype) -> Self {
        match dtype {
            ComputeDtype::F32 => Self::F32,
            ComputeDtype::Bf16 => Self::Bf16,
        }
    }
}

/// How prompts attend along the absorb path on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PromptAttention {
    /// As what is decoded.
    Latents,
    /// As along the GQA path.
    Groups,
}

impl From<PromptAttention> for cuda::PromptAttention {
    fn from(attention: PromptAttention) -> Self {
        match attention {
            PromptAttention::Latents => Self::Latents,
            PromptAttention::Groups => Self::Groups,
        }
    }
}

/// What multiplies prompts on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PromptGemm {
    /// This server's kernels.
    Own,
    /// NVIDIA's library.
    Cublaslt,
}

impl From<PromptGemm> for cuda::PromptGemm {
    fn from(gemm: PromptGemm) -> Self {
        match gemm {
            PromptGemm::Own => Self::Own,
            PromptGemm::Cublaslt => Self::CublasLt,
        }
    }
}
