//! What every long-running binary of ours owes its operators, in one place so that all of them behave alike:
//! structured logs, `/livez /readyz /startupz /metrics` on a port of their own, and an orderly end on SIGTERM.

mod admin;
mod health;
mod http;
mod logging;
mod seconds;
mod shutdown;

pub use admin::{AdminError, AdminServer};
pub use health::{Health, Probe};
pub use http::{HttpLimits, serve};
pub use logging::{LogFormat, LoggingError, UnknownLogFormat, init_logging};
pub use prometheus;
pub use seconds::parse_seconds;
pub use shutdown::shutdown_signal;
pub use tokio_util::sync::CancellationToken;
