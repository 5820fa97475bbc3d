//! The exported functions. Their names and arguments are NVML's; its documentation is theirs.

#![allow(non_snake_case, reason = "the names are NVML's")]

mod abi;
mod device;
mod event;
mod mig;
mod nvlink;
mod system;
