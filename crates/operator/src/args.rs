//! What the operator is told on its command line or, where a pod's own fields are meant, in its environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use gqla_telemetry::{LogFormat, parse_seconds};

/// Watches GQLADeployments and nodes, plans per GPU pool, rolls out and reports.
#[derive(Debug, clap::Parser)]
#[command(name = "gqla-operator", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the operator.
    Run(Box<Settings>),
    /// Print the CustomResourceDefinitions as YAML.
    Crds,
}

/// Settings of a running operator.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Image of pods whose GQLADeployment names none.
    #[arg(long, env = "GQLA_SERVER_IMAGE", default_value = "gqla-server:dev")]
    pub server_image: String,
    /// Watch only this namespace. The default is all of them.
    #[arg(long, env = "GQLA_WATCH_NAMESPACE")]
    pub namespace: Option<String>,
    /// Also read ResourceSlices of the DRA driver gpu.nvidia.com, which the ServiceAccount must be allowed to list.
    #[arg(long)]
    pub resource_slices: bool,
    /// Measurements that replace built-in figures in plans, as JSON.
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// GQLADeployments reconciled at once.
    #[arg(long, default_value_t = 8)]
    pub concurrency: u16,
    /// Seconds between two readings of the pods' token counters.
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    pub scrape_interval: Duration,
    /// Seconds one reconciliation may take before it is given up and tried again.
    #[arg(long, default_value = "60", value_parser = parse_seconds)]
    pub reconcile_timeout: Duration,
    /// Address of probes and metrics.
    #[arg(long, default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,
    /// Namespace of the Lease, which is the operator's own.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Name of the Lease.
    #[arg(long, default_value = "gqla-operator")]
    pub lease_name: String,
    /// Who this process is in the Lease and in Events. Two processes must not share it.
    #[arg(long, env = "POD_NAME", default_value_t = default_identity())]
    pub identity: String,
    /// How log lines look: text or json.
    #[arg(long, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

fn default_identity() -> String {
    format!("gqla-operator-{}", std::process::id())
}
