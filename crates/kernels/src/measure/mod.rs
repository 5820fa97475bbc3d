//! What this machine reaches: bytes read and FLOPs computed per second, and the time of attention along both paths.
//!
//! Everything is timed through the kernels that decoding runs, on as many threads. Each figure is the median of many
//! short samples, because other processes share the machine; the quartiles say how much they disturbed. Time and
//! memory are bounded by the caller.

mod attention;
mod figure;
mod rates;

pub use attention::{AttentionCase, AttentionTimer, CACHE_FORMAT, CaseError, PassTimes, Prepared};
pub use figure::Figure;
pub use rates::{ReadRate, dot_rate, multiply_rate, read_rate};
