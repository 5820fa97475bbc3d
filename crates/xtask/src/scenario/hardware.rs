//! A fleet that its labels do not describe: real kubelets whose device plugins, agents and pods meet stand-ins for NVML and
//! CUDA.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::Result;
use gqla_api::GQLADeployment;
use gqla_testkit::{cluster::Cluster, progress::Progress};
use kube::{Api, Client};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{NAMESPACE, drafting, fleet::PRODUCT, install, volume};
use crate::{
    binaries::Binaries,
    images,
    shell::{capture, repo_root},
};

/// The claim that pods mount.
const CLAIM: &str = "weights";
/// The model in it but for a prediction layer, small enough for a CPU that executes PTX.
pub const MODEL: &str = "tests/fixtures/llama_a/llama_gqla_a";

/// Four real nodes with GPUs, the operator and its agents.
pub struct HardwareWorld {
    /// The cluster; dropping it ends everything.
    pub cluster: Cluster,
    /// A client with every right.
    pub client: Client,
    gqla: PathBuf,
    /// What the claim is bound to.
    _model: TempDir,
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
        for image in images::build(binaries, &[MODEL], scratch.path())? {
            builder = builder.image(image);
        }
        let cluster = builder.start().await?;
        let client = cluster.client().await?;
        install::operator(&cluster, install::Agents::On).await?;
        let model = tempfile::tempdir()?;
        drafting::write(&repo_root()?.join(MODEL), model.path())?;
        volume::publish(&client, NAMESPACE, CLAIM, model.path()).await?;
        Ok(Self { cluster, client, gqla: binaries.gqla.clone(), _model: model })
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

    /// Where the operator's metrics can be read from this process.
    pub async fn operator_metrics(&self) -> Result<SocketAddr> {
        super::operator_metrics(&self.cluster, &self.client).await
    }

    /// A deployment of the model in the claim over `pools`. Steps have as many drafts as planned, since what pays on the stand-in
    /// follows what else the machine does.
    pub fn tiny(name: &str, pools: &Value) -> Value {
        let shape = json!({
            "numAttentionHeads": 8, "numKeyValueHeads": 2, "kvLoraRank": 36,
            "qkNopeHeadDim": 16, "qkRopeHeadDim": 16, "vHeadDim": 16,
            "hiddenSize": 128, "numHiddenLayers": 3, "numNextnPredictLayers": 1,
            "parameters": 560_000, "maxPositionEmbeddings": 4096,
        });
        let mut object = deployment(name, &shape, 2, pools);
        object["spec"]["goal"] = json!({"contextLength": 128, "concurrency": 2});
        object["spec"]["runtime"]["extraArgs"] = json!(["--speculative-depth=fixed"]);
        object
    }

    /// A deployment with DeepSeek's attention over `pools`. Its pods never serve: the model in the claim is another.
    pub fn deepseek(name: &str, pools: &Value) -> Value {
        let shape = json!({
            "numAttentionHeads": 128, "numKeyValueHeads": 8, "kvLoraRank": 512,
            "qkNopeHeadDim": 128, "qkRopeHeadDim": 64, "vHeadDim": 128,
            "hiddenSize": 2048, "numHiddenLayers": 16, "numNextnPredictLayers": 1,
            "parameters": 2_500_000_000_u64, "maxPositionEmbeddings": 32768,
        });
        let mut object = deployment(name, &shape, 4, pools);
        object["spec"]["decode"] = json!({"tensorParallel": 2});
        object
    }
}

/// On GPUs, with the claim for a model and a shape that needs no inspection.
fn deployment(name: &str, shape: &Value, replicas: u32, pools: &Value) -> Value {
    json!({
        "apiVersion": "gqla.dev/v1alpha1", "kind": "GQLADeployment", "metadata": {"name": name},
        "spec": {
            "model": {"source": {"persistentVolumeClaim": {"claimName": CLAIM}}, "shape": shape},
            "runtime": {"device": "CUDA"},
            "replicas": replicas,
            "placement": {"strategy": "Spread"},
            "pools": pools,
        },
    })
}
