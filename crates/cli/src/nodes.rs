//! `gqla nodes`: what every node's GPUs really are, who says so, and what is wrong.

mod agents;
mod cluster;
mod file;
mod view;

use std::{collections::BTreeSet, path::PathBuf};

use gqla_api::GPUClass;
use k8s_openapi::{
    api::{
        core::v1::{Node, Pod},
        resource::v1::ResourceSlice,
    },
    jiff::Timestamp,
};

use self::view::{Output, View};
pub use self::{agents::agents, file::sort};

/// Show what GPUs every node has, which class it counts as, who says so, and what is wrong
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read `kubectl get nodes -o json` (or yaml) from a file (- for standard input) instead of asking a cluster; it may
    /// also hold GPUClasses, Pods and ResourceSlices
    #[arg(short = 'f', long = "filename", value_name = "FILE", conflicts_with_all = ["kubeconfig", "context"])]
    file: Option<PathBuf>,
    /// Kubeconfig of the cluster to ask [default: $KUBECONFIG, else ~/.kube/config, else the pod's own account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Show nodes with these labels only, as kubectl's --selector; all are judged
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Take DRA ResourceSlices into account
    #[arg(long)]
    resource_slices: bool,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// What a fleet is judged by.
#[derive(Debug, Default)]
pub struct Sources {
    pub nodes: Vec<Node>,
    pub classes: Vec<GPUClass>,
    pub slices: Vec<ResourceSlice>,
    /// Pods that hold GPUs, and agents; `None` where pods are not known.
    pub pods: Option<Vec<Pod>>,
    /// Names of the nodes to show; `None` for all.
    shown: Option<BTreeSet<String>>,
}

/// Prints one line or one object per node.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let sources = match &args.file {
        Some(file) => file::read(file, args)?,
        None => cluster::fetch(args)?,
    };
    let view = View::of(&sources, Timestamp::now());
    Output::or_default(args.output).print(&view)?;
    Ok(())
}
