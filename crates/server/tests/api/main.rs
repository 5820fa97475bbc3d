//! The routes over a scripted engine: what a client sees, byte for byte where bytes matter.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test helper that fails should fail the test")]

mod client;
mod engine;
mod tokenizer;

mod bounds;
mod drain;
mod metrics;
mod refusals;
mod streaming;
mod whole;
