//! `gqla-deviceplugin`: advertises the GPUs of a stand-in NVML to the kubelet of a test cluster's node.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use gqla_deviceplugin::driver::Driver;
use gqla_deviceplugin::{nvml, session};
use gqla_telemetry::{LogFormat, init_logging, shutdown_signal};

/// Advertises the GPUs that a driver's NVML shows to a kubelet. For test clusters only: it hands out a driver's
/// libraries and no device files.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The driver's root folder, with usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1 in it; it may appear later.
    #[arg(long, default_value = "/run/nvidia/driver")]
    driver_root: PathBuf,
    /// The resource that pods ask for.
    #[arg(long, default_value = "nvidia.com/gpu")]
    resource: String,
    /// The kubelet's folder of plugin sockets.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    plugin_dir: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    init_logging(LogFormat::Text, "info")?;
    let driver = Driver::new(&args.driver_root);
    let devices = nvml::watch(driver.clone())?;
    let registration = session::Registration { folder: args.plugin_dir, resource: args.resource, driver };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        session::run(&registration, devices, &shutdown_signal()?).await;
        Ok(())
    })
}
