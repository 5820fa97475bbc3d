//! Upgrade, deletion, uninstall and the end of the cluster.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, api::DeleteParams};

use super::objects;
use crate::{
    scenario::{DEEPSEEK, OPERATOR_NAMESPACE, TALKING, World, wait},
    shell::{capture, repo_root},
};

const LIMIT: Duration = Duration::from_secs(90);
const NEW_FIELD: &str = "fieldOfTheNextVersion";

/// A chart whose CRD has one more field, as the next release's would.
pub async fn upgrade_with_new_field(world: &World) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let chart = scratch.path().join("gqla-operator");
    capture(Command::new("cp").arg("-r").arg(repo_root()?.join("charts/gqla-operator")).arg(&chart))?;
    add_field(&chart.join("crds-files/gqla.dev_gqladeployments.yaml"))?;
    world.install_operator(&chart).await?;
    let patch = format!("{{\"spec\":{{\"goal\":{{\"{NEW_FIELD}\":7}}}}}}");
    let arguments = ["patch", "gqla", DEEPSEEK, "--type", "merge", "--patch", &patch];
    wait::until("the new field to be kept", LIMIT, || async {
        world.cluster.kubectl(arguments).await?;
        let path = format!("jsonpath={{.spec.goal.{NEW_FIELD}}}");
        let value = world.cluster.kubectl(["get", "gqla", DEEPSEEK, "--output", &path]).await?;
        Ok(if value == "7" { Ok(()) } else { Err(format!("it reads {value:?}")) })
    })
    .await
}

/// Adds an integer to `spec.goal`'s properties in a CRD file.
fn add_field(file: &Path) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut crd: CustomResourceDefinition = serde_saphyr::from_str(&text)?;
    let goal = crd
        .spec
        .versions
        .iter_mut()
        .filter_map(|version| version.schema.as_mut()?.open_api_v3_schema.as_mut())
        .find_map(|schema| schema.properties.as_mut()?.get_mut("spec")?.properties.as_mut()?.get_mut("goal"))
        .context("the CRD has no spec.goal")?;
    let field = serde_json::from_value(serde_json::json!({"type": "integer"}))?;
    goal.properties.get_or_insert_default().insert(NEW_FIELD.to_owned(), field);
    let (_, text) = gqla_api::render(&crd)?;
    Ok(fs::write(file, text)?)
}

pub async fn delete_leaves_nothing(world: &World) -> Result<()> {
    ensure!(!objects::of(world, DEEPSEEK).await?.is_empty(), "there was nothing to delete");
    world.deployments().delete(DEEPSEEK, &DeleteParams::default()).await?;
    wait::until("every labelled object to be gone", LIMIT, || async {
        let left = objects::of(world, DEEPSEEK).await?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}")) })
    })
    .await
}

pub async fn uninstall_keeps(world: &World) -> Result<()> {
    let before = objects::of(world, TALKING).await?;
    world.cluster.helm(["uninstall", "gqla-operator", "--namespace", OPERATOR_NAMESPACE, "--wait"]).await?;
    let crds: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    for name in ["gqladeployments.gqla.dev", "gpuclasses.gqla.dev"] {
        crds.get(name).await.with_context(|| format!("CRD {name} is gone"))?;
    }
    world.deployments().get(TALKING).await.context("the GQLADeployment is gone")?;
    let after = objects::of(world, TALKING).await?;
    ensure!(before == after, "uninstalling changed objects: {before:?} became {after:?}");
    Ok(())
}

/// Ends the cluster and looks for processes that mention its folder.
pub async fn teardown(world: World) -> Result<()> {
    let state = world.cluster.state_dir().to_owned();
    let mark = state.to_str().context("the state folder is not UTF-8")?.to_owned();
    world.cluster.stop().await;
    let left: Vec<String> = fs::read_dir("/proc")?
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|cmdline| String::from_utf8_lossy(&cmdline).replace('\0', " "))
        .filter(|cmdline| cmdline.contains(&mark))
        .collect();
    ensure!(left.is_empty(), "processes are left: {left:?}");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&mark), "mounts are left below {mark}");
    Ok(())
}
