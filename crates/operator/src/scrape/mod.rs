//! Tokens per second and decode path, read from the serving pods' own counters.
//!
//! `pods` keeps a pruned list of ready pods, `read` gets one pod's counters within bounds of time and size,
//! `rates` turns two readings into a rate (pure), and [`Throughput`] repeats that and holds the result.

mod pods;
mod rates;
mod read;
mod throughput;

pub use pods::ServingPod;
pub use rates::{PodRates, Reading, Series, per_series, rate};
pub use read::parse;
pub use throughput::Throughput;
