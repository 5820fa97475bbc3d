//! What the demo shows and the end-to-end test asserts: a mixed fleet, the operator by Helm, a model that answers.

pub mod chat;
mod drafting;
mod fleet;
pub mod hardware;
mod install;
pub mod throughput;
mod volume;
pub mod wait;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use gqla_api::{GQLADeployment, GQLADeploymentStatus};
use gqla_testkit::{cluster::Cluster, progress::Progress};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use crate::{binaries::Binaries, demo_model::DemoModel, images, shell::repo_root};

/// The namespace of the samples.
pub const NAMESPACE: &str = "default";
/// The namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "gqla-system";
/// The sample that answers: a real model on three real nodes.
pub const TALKING: &str = "smollm2";
/// The sample with DeepSeek's attention, and its claim, on nodes that only exist as API objects.
pub const DEEPSEEK: &str = "deepseek-attention";
/// The claim of the sample that answers.
const TALKING_CLAIM: &str = "smollm2-gqla";

/// A running fleet with the operator installed.
pub struct World {
    /// The cluster; dropping it ends everything.
    pub cluster: Cluster,
    /// A client with every right.
    pub client: Client,
}

impl World {
    /// Starts three real nodes (H100, H20, CPU) and kwok nodes with GPUs, installs the operator by Helm and publishes
    /// the model as a read-only claim.
    pub async fn start(binaries: &Binaries, model: &DemoModel, progress: Progress) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let archives = images::build(binaries, &[], scratch.path())?;
        let cluster = fleet::start(&archives, progress).await?;
        let client = cluster.client().await?;
        install::operator(&cluster, install::Agents::Off).await?;
        volume::publish(&client, NAMESPACE, TALKING_CLAIM, &model.converted).await?;
        // Nothing reads this one: its pods are on nodes that only exist as API objects. It has to be bound all the same.
        volume::publish(&client, NAMESPACE, DEEPSEEK, &model.converted).await?;
        Ok(Self { cluster, client })
    }

    /// GQLADeployments of the samples' namespace.
    pub fn deployments(&self) -> Api<GQLADeployment> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Applies `deploy/samples/NAME.yaml` as a user would.
    pub async fn apply_sample(&self, name: &str) -> Result<()> {
        let file = repo_root()?.join("deploy/samples").join(format!("{name}.yaml"));
        self.apply(&file).await
    }

    /// Applies a manifest as a user would.
    pub async fn apply(&self, file: &Path) -> Result<()> {
        let file = file.to_str().context("the manifest's path is not UTF-8")?;
        self.cluster.kubectl(["apply", "--namespace", NAMESPACE, "--filename", file]).await?;
        Ok(())
    }

    /// Waits until a GQLADeployment is Available with its newest spec.
    pub async fn available(&self, name: &str, limit: Duration) -> Result<GQLADeploymentStatus> {
        let good = |status: &GQLADeploymentStatus| wait::is_true(status, "Available");
        wait::status(&self.deployments(), name, "to be Available", limit, good).await
    }

    /// `ADDRESS:PORT` of a GQLADeployment's Service, inside the cluster.
    pub async fn service_address(&self, name: &str) -> Result<String> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let spec = services.get(name).await?.spec.unwrap_or_default();
        Ok(format!("{}:80", spec.cluster_ip.context("the Service has no address")?))
    }

    /// Where the operator's metrics can be read from this process.
    pub async fn operator_metrics(&self) -> Result<SocketAddr> {
        operator_metrics(&self.cluster, &self.client).await
    }

    /// Holds the chart to Helm's strictest rules.
    pub async fn lint_chart(&self) -> Result<()> {
        install::lint(&self.cluster).await
    }

    /// Installs or upgrades the operator from a chart folder.
    pub async fn install_operator(&self, chart: &Path) -> Result<()> {
        install::from(&self.cluster, chart, install::Agents::Off).await
    }
}

async fn operator_metrics(cluster: &Cluster, client: &Client) -> Result<SocketAddr> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    let pods = pods.list(&ListParams::default().labels(install::OPERATOR_LABEL)).await?;
    let pod = pods.items.first().context("there is no operator pod")?;
    pod_metrics(cluster, pod)
}

/// Where a pod's metrics can be read from this process, the operator's as well as a server's.
pub fn pod_metrics(cluster: &Cluster, pod: &Pod) -> Result<SocketAddr> {
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    let address = address.with_context(|| format!("the pod {} has no address", pod.name_any()))?;
    Ok(cluster.forward(&format!("{address}:9090"))?)
}
