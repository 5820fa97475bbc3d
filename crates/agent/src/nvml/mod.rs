//! Asking NVML: finding the library, reading the GPUs, and the thread that does both.

mod library;
mod read;
mod watch;

pub use library::Search;
pub(crate) use read::THROTTLE_NAMES;
pub use watch::{Answer, Message, watch};
