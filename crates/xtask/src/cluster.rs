//! `cargo xtask cluster`: an empty test cluster to look around in, until Ctrl-C.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use gqla_testkit::cluster::{Cluster, KwokNode};

/// What the cluster should be.
#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    /// A real node with its labels; may be given several times. Without any there is a control plane only
    #[arg(long = "node", value_name = "NAME[:KEY=VALUE,…]")]
    nodes: Vec<NodeArg>,
    /// Nodes that are only API objects, kept Ready by kwok, with eight GPUs each
    #[arg(long, value_name = "N", default_value_t = 0)]
    kwok_nodes: usize,
    /// An OCI image archive to load on every real node; may be given several times
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Keep the cluster's files and logs in this folder
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
}

/// `h100-a:nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3,zone=a`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NodeArg {
    name: String,
    labels: Vec<(String, String)>,
}

impl FromStr for NodeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, labels) = text.split_once(':').unwrap_or((text, ""));
        let pair = |text: &str| {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| format!("label {text:?} of node {name:?} is not KEY=VALUE"))?;
            Ok((key.to_owned(), value.to_owned()))
        };
        let labels =
            labels.split(',').filter(|label| !label.is_empty()).map(pair).collect::<Result<_, String>>()?;
        Ok(Self { name: name.to_owned(), labels })
    }
}

/// Starts the cluster, says how to use it, and ends it at Ctrl-C.
pub async fn run(args: ClusterArgs) -> Result<()> {
    let mut builder = Cluster::builder().progress(crate::progress::bars());
    for node in args.nodes {
        builder = builder.node(node.name);
        for (key, value) in node.labels {
            builder = builder.label(key, value);
        }
    }
    if args.kwok_nodes > 0 {
        builder = builder.kwok_nodes(args.kwok_nodes, KwokNode::new("kwok").capacity("nvidia.com/gpu", "8"));
    }
    for image in args.images {
        builder = builder.image(image);
    }
    if let Some(folder) = args.state_dir {
        builder = builder.state_dir(folder);
    }
    let cluster = builder.start().await?;
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("{} kubectl get nodes", cluster.tools().kube.display());
    println!("Logs: {}", cluster.logs_dir().display());
    println!("Ctrl-C ends the cluster.");
    tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
    cluster.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_node_and_its_labels() {
        let node: NodeArg = "h100-a:nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3,zone=a".parse().unwrap();
        assert_eq!(node.name, "h100-a");
        assert_eq!(node.labels[1], ("zone".to_owned(), "a".to_owned()));
        assert_eq!("cpu-a".parse(), Ok(NodeArg { name: "cpu-a".to_owned(), labels: vec![] }));
        assert!("a:b".parse::<NodeArg>().unwrap_err().contains("KEY=VALUE"));
    }
}
