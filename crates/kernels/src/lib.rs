//! CPU and CUDA kernels of both decode paths and the references they are held to.
//!
//! On the CPU everything is f32 arithmetic on f32 activations; weights stay in the checkpoint's bf16 or f32, or are rounded to
//! int8. A processor's own units for bf16 and int8 are used where a matrix may round its inputs. The map:
//! [`Pool`] runs parallel loops, [`Matrix`] multiplies, [`ops`] holds the row-wise operations, [`attention`] the two
//! paths over a paged cache, [`mod@reference`] their float64 definition; [`sample`] chooses tokens from logits; [`measure`]
//! times all of it on this machine.
//! [`device`] runs the CUDA kernels of the folder `cuda`.
//!
//! **A row's result depends on that row alone**: no kernel's order of additions changes with the batch, the chunk or
//! the number of threads, so a sequence computes the same bits whatever it shares a step with.
//!
//! `unsafe` is confined to vector instructions, to threads writing disjoint parts of one buffer and to CUDA; the public
//! functions are safe and check lengths.

pub mod attention;
pub mod device;
mod gemm;
mod math;
mod matrix;
pub mod measure;
mod memory;
mod mixture;
pub mod ops;
mod pool;
mod prefetch;
pub mod reference;
pub mod sample;
mod shared;
mod simd;
mod unit;

pub use matrix::{Matrix, MatrixError, WeightFormat, WeightRows};
pub use mixture::{choose_experts, multiply_runs};
pub use pool::Pool;
pub use simd::{InstructionSet, instruction_set};
pub use unit::{bf16_unit, int8_unit};
