//! The inference pod: OpenAI API over an [`gqla_engine::Engine`], probes, metrics and drain.
//!
//! A request passes [`admission`] (loading, draining, queue), is parsed and tokenised, becomes one or more sequences
//! ([`generate`]), and its tokens come back as text ([`stream`]) in one body or as server-sent events. Everything a
//! client can make grow is bounded: header and body time, body bytes, connections, queue, prompts, choices, context.

pub mod admission;
pub mod args;
mod auth;
mod body;
pub mod constraint;
pub mod decode_path;
pub mod drain;
mod failure;
pub mod generate;
mod health;
pub mod inspect;
mod load;
pub mod metrics;
mod ridge;
pub mod routes;
mod serve;
pub mod speculation;
pub mod state;
pub mod stream;

pub use auth::{ApiKey, ApiKeyError};
pub use health::{AppHealth, Liveness};
pub use serve::serve;
