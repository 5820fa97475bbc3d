//! The operator, installed the way its users do it.

use std::path::Path;

use anyhow::{Context, Result};
use gqla_testkit::cluster::Cluster;

use super::OPERATOR_NAMESPACE;
use crate::{images, shell::repo_root};

/// Release and chart name.
const RELEASE: &str = "gqla-operator";

/// Installs `charts/gqla-operator` of this checkout with the locally built images and waits until it is ready.
pub async fn operator(cluster: &Cluster) -> Result<()> {
    from(cluster, &repo_root()?.join("charts").join(RELEASE)).await
}

/// `helm lint --strict` on this checkout's chart.
pub async fn lint(cluster: &Cluster) -> Result<()> {
    let chart = repo_root()?.join("charts").join(RELEASE);
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    cluster.helm(["lint", "--strict", chart]).await?;
    Ok(())
}

/// Installs or upgrades from `chart`.
pub async fn from(cluster: &Cluster, chart: &Path) -> Result<()> {
    let chart = chart.to_str().context("the chart's path is not UTF-8")?;
    let (repository, tag) = images::OPERATOR.rsplit_once(':').context("an image name has a tag")?;
    let set = [
        format!("image.repository={repository}"),
        format!("image.tag={tag}"),
        format!("serverImage={}", images::SERVER),
        "scrapeInterval=1s".to_owned(),
    ];
    let mut arguments = vec!["upgrade", "--install", RELEASE, chart, "--namespace", OPERATOR_NAMESPACE];
    arguments.extend(["--create-namespace", "--wait", "--timeout", "120s"]);
    for value in &set {
        arguments.extend(["--set", value]);
    }
    cluster.helm(arguments).await?;
    Ok(())
}
