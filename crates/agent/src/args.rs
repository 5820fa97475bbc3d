//! What the agent is told on its command line or, where a pod's own fields are meant, in its environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use gqla_telemetry::{LogFormat, parse_seconds};

/// Reads the GPUs of its node through NVML and publishes them on the Node and as metrics.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "gqla-agent", version)]
pub struct Args {
    /// Name of the Node it runs on.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where the driver is installed when the loader does not find libnvidia-ml.so.1.
    #[arg(long, default_value = "/run/nvidia/driver")]
    pub driver_root: PathBuf,
    /// Seconds between two readings. Errors that NVML reports as events are published at once.
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    pub period: Duration,
    /// Seconds after which a driver that does not answer counts as hanging.
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    pub nvml_timeout: Duration,
    /// Address of probes and metrics.
    #[arg(long, default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
    /// How log lines look: text or json.
    #[arg(long, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}
