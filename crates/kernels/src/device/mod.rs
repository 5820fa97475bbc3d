//! The CUDA kernels on a GPU: device, memory, kernel images and launches, through cudarc.
//!
//! Nothing is linked: cudarc opens libcuda and NVRTC when they are first needed, so one binary serves on nodes with and
//! without a GPU, and what is missing is a [`DeviceError`]. The map: [`Device`] is one GPU with one stream, [`Buffer`] its
//! memory; [`Program`]s are the kernels' texts, which `image` loads as cubin, PTX or by NVRTC; [`plan_decode`] says as
//! pure data which kernel decodes a shape and what it takes; [`Gemm`], [`ExpertKernels`], [`RowKernels`], [`SampleKernel`] and
//! [`Decode`] launch, and [`Attention`] launches a layer's attention with them; a [`Bench`] runs a [`Trial`] of each against float64.
//!
//! All work goes to one stream, in order. **A row's result depends on that row alone**, as on the CPU: which kernel
//! decodes follows from the shape, never from the batch, and products add in one order however many rows there are. Only who asks
//! for cuBLASLt ([`PromptGemm`]) or for prompts in groups ([`PromptAttention`]) gives that up, for prompts.
//!
//! `unsafe` is confined to launches, whose buffers are checked against what the kernel will touch, and to calls of NVRTC
//! and cuBLASLt. Tests execute the PTX on a stand-in for libcuda; all but those that choose tokens and those of experts have run on
//! an H200. cuBLASLt has been called on no GPU: its stand-in is the one for libcuda.

mod attention;
mod cublaslt;
mod decode;
mod error;
mod experts;
mod gemm;
mod grid;
mod grouped;
mod image;
mod measure;
mod memory;
mod nvrtc;
mod program;
mod prompts;
mod rows;
mod sample;
mod tables;
mod trial;
mod work;

pub use attention::{Attention, AttentionScratch, Part, Projected, Turns, UpProjection};
pub use decode::{Decode, DecodeCache, DecodeInputs};
pub use error::DeviceError;
pub use experts::{Choices, ExpertKernels, ExpertRows, Router, RouterShape};
pub use gemm::{Destination, Gemm, RowMap, Rows, Weights};
pub use gqla_model::launch::{DecodePlan, DecodeShape, Limits, NoKernel, plan_decode};
pub use grid::Multiprocessors;
pub use grouped::{GroupedPrompt, GroupedRoom};
pub use image::{ARCHITECTURES, ImageSource, Images, Loaded, Resources};
pub use measure::{AttentionTimer, Prepared, copy_rate, product_seconds};
pub use memory::{Buffer, Device, Number};
pub use program::Program;
pub use prompts::{Attending, PromptAttention, PromptGemm};
pub use rows::{Append, Heads, Norm, NormInput, RowKernels};
pub use sample::SampleKernel;
pub use tables::{PageRun, Tables};
pub use trial::{
    Bench, DecodeTrial, ExpertTrial, Extent, Launched, Outcome, ProductTrial, RowTrial, SampleTrial, Sum,
    Trial,
};
pub use work::{Splits, Tiling};
