//! A libcuda stand-in: the driver functions that `cudarc` calls, with kernels executed by `gqla-ptxsim` on the CPU.
//!
//! Built as `libgqla_fakecuda.so` and linked to where a program looks for `libcuda.so.1`, it lets a program with CUDA
//! code run unmodified where there is no GPU: contexts, modules from PTX, streams, events, copies, launches, and CUDA's
//! own error codes when something is wrong. Its devices are those that [`Config::DEVICES_ENV`] names, else those of the
//! GPUs in the state of the stand-in for NVML that a container was given ([`Config::VISIBLE_ENV`]). Without either it has
//! none, so that it does nothing where it was put by mistake; with one, it says on standard error that it is no driver.
//!
//! **What may happen later does.** Work in a stream waits until somebody waits for it, and then only what CUDA's rules
//! demand has happened before: [`Order`] decides between doing nothing else first, everything else first, or a shuffle.
//! Copies from and to page-locked memory touch it when they run; those of pageable memory are finished when the call
//! returns, as CUDA documents. A program that forgot to wait gets wrong numbers, or memory nobody wrote.
//!
//! **What a kernel does wrong is an error** of its context that stays: addresses and alignment as on a GPU, and with
//! `CUDA_ERROR_LAUNCH_FAILED` what a GPU would forgive: races in shared memory, reads of what nobody wrote, copies that
//! have not arrived. The reason goes to standard error, and counters to [`Config::REPORT_ENV`];
//! what was copied from which memory goes to [`Config::COPIES_ENV`].
//!
//! **It reads no machine code.** A cubin loads only where [`Config::CUBINS_ENV`] shows the same bytes beside the PTX of the
//! same kernels, which is executed in its place, and only on an architecture that the cubin's header names. So a program's
//! way to a cubin is tested, and nothing of what an assembler made of the kernels.
//!
//! **It is cuBLASLt too**, where it is also linked to as `libcublasLt.so.12`: the loader opens one file once, so both see one
//! device memory and one order of work. Of cuBLASLt it has products of bf16, `Wᵀ x` with sums in f32.
//!
//! C hands over pointers, so this crate has `unsafe`: all of it is in the private modules `ffi` and `host`.

mod blaslt;
mod code;
mod config;
mod cubin;
mod ffi;
mod host;
mod install;
mod machine;
mod module;
mod queue;
pub mod testing;

pub use config::{Config, ConfigError, Order};
pub use install::{InstallError, LIBRARY_NAME, built_library, install, install_cublaslt};
