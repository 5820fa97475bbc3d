//! What the agent is told on its command line or, where a pod's own fields are meant, in its environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use gqla_telemetry::LogFormat;

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
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub period: Duration,
    /// Seconds after which a driver that does not answer counts as hanging.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub nvml_timeout: Duration,
    /// Address of probes and metrics.
    #[arg(long, default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
    /// How log lines look: text or json.
    #[arg(long, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

fn seconds(text: &str) -> Result<Duration, String> {
    // Suffixes are accepted because Helm values are often written that way.
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() && (0.1..=3600.0).contains(&value) => {
            Ok(Duration::from_secs_f64(value))
        }
        _ => Err(format!("`{text}` is not a number of seconds from 0.1 to 3600")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("5"), Ok(Duration::from_secs(5)));
        assert_eq!(seconds("0.5s"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "nan", "inf", "1h", "4000"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
