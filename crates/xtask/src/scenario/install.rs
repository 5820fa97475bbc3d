//! The operator, installed the way its users do it.

use std::path::Path;

use anyhow::{Context, Result};
use gqla_testkit::cluster::Cluster;

use super::OPERATOR_NAMESPACE;
use crate::{images, shell::repo_root};

/// Release and chart name.
const RELEASE: &str = "gqla-operator";
/// What tells the operator's pods from its agents'.
pub const OPERATOR_LABEL: &str = "app.kubernetes.io/name=gqla-operator";

/// Whether nodes get agents. Without GPUs there is nothing for them to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agents {
    /// They do.
    On,
    /// They do not.
    Off,
}

/// Installs `charts/gqla-operator` of this checkout with the locally built images and waits until it is ready.
pub async fn operator(cluster: &Cluster, agents: Agents) -> Result<()> {
    from(cluster, &repo_root()?.join("charts").join(RELEASE), agents).await
}

/// `helm lint --strict` on this checkout's chart.
pub async fn lint(cluster: &Cluster) -> Result<()> {
    let chart = repo_root()?.join("charts").join(RELEASE);
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    cluster.helm(["lint", "--strict", chart]).await?;
    Ok(())
}

/// Installs or upgrades from `chart`.
pub async fn from(cluster: &Cluster, chart: &Path, agents: Agents) -> Result<()> {
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    let (repository, tag) = images::OPERATOR.rsplit_once(':').context("an image name has a tag")?;
    let (agent, agent_tag) = images::AGENT.rsplit_once(':').context("an image name has a tag")?;
    let set = [
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
        format!("serverImage={}", images::SERVER),
        "scrapeInterval=1s".to_owned(),
        format!("agent.enabled={}", agents == Agents::On),
        format!("agent.image.repository={agent}"),
        format!("agent.image.tag={agent_tag}"),
    ];
    let mut arguments = vec!["upgrade", "--install", RELEASE, chart, "--namespace", OPERATOR_NAMESPACE];
    arguments.extend(["--create-namespace", "--wait", "--timeout", "120s"]);
    for value in &set {
        arguments.extend(["--set", value]);
    }
    cluster.helm(arguments).await?;
    Ok(())
}
