//! Executes PTX on the CPU, so that CUDA kernels run where there is no GPU: the very text that NVRTC emits, inline
//! assembly included.
//!
//! [`parse`] makes a [`Module`] of a text, [`launch`] runs one of its kernels on a [`GlobalMemory`] and returns a
//! [`Report`]: what was counted (instructions, matrix multiplications, bytes by buffer, sectors, passes through shared
//! memory's banks) and every fault, with PTX line, block and thread. A GPU forgives many of them: reads of memory
//! nobody wrote, races, data of a `cp.async` that has not arrived. Here they are told.
//!
//! What it does not show: time, registers and spills (ptxas decides them), the order of additions in a tensor core,
//! the last bits of `ex2` and its like, and anything between blocks, which run one after another. Lanes of a warp run
//! in step and meet again at the lowest instruction; that is one of the orders a GPU may choose.

mod alu;
mod arch;
mod exec;
mod global;
mod matrix;
mod parse;
mod program;
mod report;
mod shared;
mod types;

pub use arch::{Architecture, MAX_BLOCK, MAX_GRID, REGISTERS_PER_BLOCK, SHARED_PER_BLOCK, THREADS_PER_BLOCK};
pub use exec::{Launch, LaunchError, Schedule, check, launch};
pub use global::{GlobalMemory, MemoryError};
pub use parse::{ParseError, parse};
pub use program::{Kernel, Module, Param};
pub use report::{Counters, Fault, FaultKind, Faults, Report, Requests, Traffic, Wavefronts};
