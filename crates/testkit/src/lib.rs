//! The test cluster, the recording API server and image building, for tests and xtask.
