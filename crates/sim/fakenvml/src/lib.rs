//! A libnvidia-ml stand-in: the functions of NVML that `nvml-wrapper` calls, answered from a file.
//!
//! Built as `libgqla_fakenvml.so` and copied to where a program looks for `libnvidia-ml.so.1`, it makes a machine without
//! a GPU answer as an H20 or H100 node would, and fail as one would. The file is [`State`]; the library looks
//! for it at [`state::STATE_ENV`], then beside itself, then at [`state::STATE_PATH`], and rereads it when it changes.
//! It says on standard error that it is no real driver. The figures are in [`Profile`]s, each with its source.
//!
//! C hands over pointers, so this crate has `unsafe`: all of it is in the private modules `ffi::abi` and `store`.

mod ffi;
mod install;
mod profiles;
pub mod state;
mod store;

pub use install::{InstallError, LIBRARY_NAME, built_library, install};
pub use profiles::{MigProfile, Profile, profile, profiles};
pub use state::{Failure, Gpu, State, Throttle};
pub use store::state_path;
