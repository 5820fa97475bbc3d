//! The test cluster, the recording API server and image building, for tests and xtask.

pub mod cluster;
pub mod image;
pub mod preflight;
pub mod progress;
pub mod recording;
pub mod tools;
