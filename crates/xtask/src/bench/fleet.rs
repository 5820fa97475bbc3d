//! The operator beside a real API server with thousands of nodes: how much memory a node takes, and whether a storm of
//! label changes leaves any behind.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use gqla_api::inventory::{DriverState, GpuFacts, NodeInventory};
use gqla_testkit::{
    cluster::{Cluster, KwokNode},
    tools::Tools,
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    binaries, progress,
    scenario::{throughput::scrape, wait},
    shell::{repo_root, step},
    usage::Usage,
};

const AT_ONCE: usize = 16;
const LIMIT: Duration = Duration::from_secs(300);
/// Changes follow each other within a second; after this the operator has seen all of them.
const SETTLE: Duration = Duration::from_secs(5);

/// Measure the operator's memory and CPU time over a large fleet whose labels change.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Nodes, kept Ready by kwok, each with 30 labels and an agent's inventory of 8 GPUs
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// Label changes of one storm
    #[arg(long, default_value_t = 10_000)]
    flips: usize,
    /// Storms: memory that only the first one takes is warmth, what each takes is a leak
    #[arg(long, default_value_t = 2)]
    storms: usize,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    Tools::obtain(&progress::bars())?;
    let binaries = binaries::build()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let cluster = step("Start a control plane", || {
        Ok(runtime.block_on(
            Cluster::builder().progress(progress::bars()).kwok_nodes(1, KwokNode::new("first")).start(),
        )?)
    })?;
    runtime.block_on(measure(args, &cluster, &binaries.operator))?;
    runtime.block_on(cluster.stop());
    Ok(())
}

async fn measure(args: &Args, cluster: &Cluster, binary: &Path) -> Result<()> {
    let crds = repo_root()?.join("crds");
    let crds = crds.to_str().context("the checkout's path is not UTF-8")?;
    cluster.kubectl(["apply", "--server-side", "--filename", crds]).await?;
    let operator = Operator::start(binary, &cluster.kubeconfig())?;
    operator.sees(1).await?;
    let empty = operator.usage()?.resident_kib;
    let nodes: Api<Node> = Api::all(cluster.client().await?);

    let start = Instant::now();
    let created = stream::iter(0..args.nodes).map(|index| create(&nodes, index)).buffer_unordered(AT_ONCE);
    created.try_collect::<Vec<_>>().await?;
    operator.sees(args.nodes + 1).await?;
    println!("{} nodes created and seen in {:.0} s", args.nodes, start.elapsed().as_secs_f64());
    tokio::time::sleep(SETTLE).await;
    let full = operator.usage()?;
    let per_node = full.resident_kib.saturating_sub(empty) * 1024 / args.nodes as u64;
    println!(
        "operator resident, measured: {empty} KiB empty, {} KiB full, {per_node} bytes a node",
        full.resident_kib
    );

    let mut before = full;
    for storm in 1..=args.storms {
        let start = Instant::now();
        let flips = (0..args.flips).map(|flip| change(&nodes, flip % args.nodes, storm * args.flips + flip));
        stream::iter(flips).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        tokio::time::sleep(SETTLE).await;
        let after = operator.usage()?;
        println!(
            "storm {storm}: {} label changes in {:.0} s, measured: {} KiB after, {:.1} s of CPU time",
            args.flips,
            start.elapsed().as_secs_f64(),
            after.resident_kib,
            after.cpu_seconds - before.cpu_seconds
        );
        before = after;
    }
    Ok(())
}

async fn create(nodes: &Api<Node>, index: usize) -> Result<()> {
    let gpu = |gpu: u32| GpuFacts {
        index: gpu,
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        uuid: format!("GPU-{index:08}-{gpu:04}-4000-8000-000000000000"),
        pci_bus_id: format!("00000000:{gpu:02X}:00.0"),
        pci_device_id: 0x2330,
        multiprocessors: Some(132),
        memory_mib: 81_559,
        ..GpuFacts::default()
    };
    let inventory = NodeInventory {
        driver: DriverState::Ready,
        gpus: (0..8).map(gpu).collect(),
        ..NodeInventory::default()
    };
    let mut labels: serde_json::Map<_, _> = (0..27)
        .map(|label| (format!("example.com/label-{label:02}"), json!(format!("{index}-{label}"))))
        .collect();
    labels.insert("gqla.dev/gpu.device".to_owned(), json!(inventory.device_label()));
    labels.insert("gqla.dev/gpu.product".to_owned(), json!(inventory.product_label()));
    labels.insert("gqla.dev/gpu.multiprocessors".to_owned(), json!(inventory.multiprocessors_label()));
    labels.insert("example.com/flip".to_owned(), json!("0"));
    let node = serde_json::from_value(json!({
        "metadata": {
            "name": format!("node-{index:05}"),
            "labels": labels,
            "annotations": {"gqla.dev/gpu-inventory": inventory.render()?, "kwok.x-k8s.io/node": "fake"},
        },
        "status": {"allocatable": {"nvidia.com/gpu": "8"}, "capacity": {"nvidia.com/gpu": "8"}},
    }))?;
    nodes.create(&PostParams::default(), &node).await?;
    Ok(())
}

async fn change(nodes: &Api<Node>, index: usize, flip: usize) -> Result<()> {
    let patch = json!({"metadata": {"labels": {"example.com/flip": flip.to_string()}}});
    nodes.patch_metadata(&format!("node-{index:05}"), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// A running operator.
struct Operator {
    child: Child,
    metrics: SocketAddr,
}

impl Operator {
    fn start(binary: &Path, kubeconfig: &Path) -> Result<Self> {
        let metrics = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let child = Command::new(binary)
            .args(["run", "--admin-listen", &metrics.to_string()])
            .env("KUBECONFIG", kubeconfig)
            .env("RUST_LOG", "warn")
            // As the chart does.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start the operator")?;
        Ok(Self { child, metrics })
    }

    /// Waits until its metrics count that many nodes.
    async fn sees(&self, nodes: usize) -> Result<()> {
        let metrics = self.metrics;
        wait::until(&format!("the operator to see {nodes} nodes"), LIMIT, || async {
            let text = tokio::task::spawn_blocking(move || scrape(metrics)).await?.unwrap_or_default();
            let counts = text.lines().filter(|line| line.starts_with("gqla_fleet_nodes{"));
            let seen: f64 = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
            Ok(if seen as usize == nodes { Ok(()) } else { Err(format!("it sees {seen}")) })
        })
        .await
    }

    fn usage(&self) -> Result<Usage> {
        Usage::of(self.child.id())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
