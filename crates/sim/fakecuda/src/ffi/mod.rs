//! The exported functions. Their names and arguments are CUDA's; its documentation is theirs.

#![allow(non_snake_case, reason = "the names are CUDA's")]

mod abi;
mod blaslt;
mod device;
mod memory;
mod module;
mod stream;
