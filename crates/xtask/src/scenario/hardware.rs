//! A fleet that its labels do not describe: real kubelets whose device plugins and agents meet a stand-in for NVML.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
use gqla_api::GQLADeployment;
use gqla_testkit::{cluster::Cluster, progress::Progress};
use kube::{Api, Client};
use serde_json::Value;
use tempfile::TempDir;

use super::{NAMESPACE, fleet::PRODUCT, install, volume};
use crate::{binaries::Binaries, images, shell::capture};

/// The claim that pods mount. Nothing in it is read: the server has no CUDA backend to read it for.
const CLAIM: &str = "weights";

/// Four real nodes with GPUs, the operator and its agents.
pub struct HardwareWorld {
    /// The cluster; dropping it ends everything.
    pub cluster: Cluster,
    /// A client with every right.
    pub client: Client,
    gqla: PathBuf,
    /// The claim's folder.
    _weights: TempDir,
}

impl HardwareWorld {
    /// An honest H100 node, an honest H20 node, one with GPUs of both kinds that is labelled as an H100 node, and one
    /// with H20s that is labelled as an H200 node.
    pub async fn start(binaries: &Binaries, progress: Progress) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let mut builder = Cluster::builder()
            .progress(progress)
            .gpu_stand_ins(binaries.stand_ins.clone())
            .node("h100-a")
            .label(PRODUCT, "NVIDIA-H100-80GB-HBM3")
            .gpus("H100", 8)
            .node("h20-a")
            .label(PRODUCT, "NVIDIA-H20")
            .gpus("H20", 8)
            .node("mixed-a")
            .label(PRODUCT, "NVIDIA-H100-80GB-HBM3")
            .gpus("H100", 4)
            .gpus("H20", 4)
            .node("liar-a")
            .label(PRODUCT, "NVIDIA-H200")
            .gpus("H20", 8);
        for image in images::build(binaries, scratch.path())? {
            builder = builder.image(image);
        }
        let cluster = builder.start().await?;
        let client = cluster.client().await?;
        install::operator(&cluster, install::Agents::On).await?;
        let weights = tempfile::tempdir()?;
        volume::publish(&client, NAMESPACE, CLAIM, weights.path()).await?;
        Ok(Self { cluster, client, gqla: binaries.gqla.clone(), _weights: weights })
    }

    /// GQLADeployments of the samples' namespace.
    pub fn deployments(&self) -> Api<GQLADeployment> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// What `gqla nodes` prints of `node`.
    pub fn node(&self, node: &str) -> Result<Value> {
        let kubeconfig = self.cluster.kubeconfig();
        let printed =
            capture(Command::new(&self.gqla).args(["nodes", "-o", "json", "--kubeconfig"]).arg(kubeconfig))?;
        let view: Value = serde_json::from_str(&printed)?;
        let mut nodes = view["nodes"].as_array().into_iter().flatten();
        Ok(nodes.find(|row| row["node"] == node).cloned().unwrap_or_default())
    }

    /// A deployment with DeepSeek's attention over `pools`.
    pub fn deepseek(name: &str, pools: &Value) -> Value {
        serde_json::json!({
            "apiVersion": "gqla.dev/v1alpha1", "kind": "GQLADeployment", "metadata": {"name": name},
            "spec": {
                "model": {
                    "source": {"persistentVolumeClaim": {"claimName": CLAIM}},
                    "shape": {
                        "numAttentionHeads": 128, "numKeyValueHeads": 8, "kvLoraRank": 512,
                        "qkNopeHeadDim": 128, "qkRopeHeadDim": 64, "vHeadDim": 128,
                        "hiddenSize": 2048, "numHiddenLayers": 16, "numNextnPredictLayers": 1,
                        "parameters": 2_500_000_000_u64, "maxPositionEmbeddings": 32768,
                    },
                },
                "runtime": {"device": "CUDA"},
                "decode": {"tensorParallel": 2},
                "replicas": 4,
                "placement": {"strategy": "Spread"},
                "pools": pools,
            },
        })
    }
}
