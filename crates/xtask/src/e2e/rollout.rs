//! Changed decisions roll pools; nothing is orphaned and nothing is made twice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gqla_api::{GQLADeploymentStatus, labels};
use gqla_model::DecodePath;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::objects;
use crate::scenario::{DEEPSEEK, NAMESPACE, OPERATOR_NAMESPACE, TALKING, World, wait};

const LIMIT: Duration = Duration::from_secs(150);

pub async fn flip_and_remove(world: &World) -> Result<()> {
    let pools = json!([{"name": "fast", "gpuClass": "H100"}, {"name": "wide", "gpuClass": "H20"}]);
    patch(world, DEEPSEEK, json!({"spec": {"pools": pools, "replicas": 2}})).await?;
    let both = |status: &GQLADeploymentStatus| status.pools.len() == 2 && wait::is_true(status, "Available");
    wait::status(&world.deployments(), DEEPSEEK, "to serve from two named pools", LIMIT, both).await?;
    let before = objects::lasting(world, DEEPSEEK).await?;

    patch(world, DEEPSEEK, json!({"spec": {"decode": {"path": "GQA"}}})).await?;
    let all_gqa = |status: &GQLADeploymentStatus| {
        wait::is_true(status, "Available") && status.pools.iter().all(|pool| pool.path == DecodePath::Gqa)
    };
    wait::status(&world.deployments(), DEEPSEEK, "to decode on GQA everywhere", LIMIT, all_gqa).await?;
    let after = objects::lasting(world, DEEPSEEK).await?;
    ensure!(before == after, "a path flip made or removed objects: {before:?} became {after:?}");
    let api: Api<Deployment> = Api::namespaced(world.client.clone(), NAMESPACE);
    for deployment in
        api.list(&ListParams::default().labels(&format!("{}={DEEPSEEK}", labels::DEPLOYMENT))).await?
    {
        let template = deployment.spec.and_then(|spec| spec.template.metadata).and_then(|meta| meta.labels);
        let path = template.and_then(|labels| labels.get(labels::PATH).cloned());
        ensure!(path.as_deref() == Some("gqa"), "a pod template says path {path:?}");
    }

    patch(world, DEEPSEEK, json!({"spec": {"pools": [{"name": "wide", "gpuClass": "H20"}], "replicas": 1}}))
        .await?;
    wait::until("the removed pool's objects to be gone", LIMIT, || async {
        let left = objects::of(world, DEEPSEEK).await?;
        let fast: Vec<_> = left.keys().filter(|name| name.contains("fast")).cloned().collect();
        let wide = left.keys().any(|name| name.starts_with("Deployment/") && name.contains("wide"));
        Ok(if fast.is_empty() && wide {
            Ok(())
        } else {
            Err(format!("left: {fast:?}, wide pool there: {wide}"))
        })
    })
    .await
}

pub async fn operator_restart(world: &World) -> Result<()> {
    let before = objects::lasting(world, TALKING).await?;
    patch(world, TALKING, json!({"spec": {"podTemplate": {"annotations": {"example.com/restart": "1"}}}}))
        .await?;
    let operators: Api<Pod> = Api::namespaced(world.client.clone(), OPERATOR_NAMESPACE);
    let pods = operators.list(&ListParams::default()).await?;
    ensure!(!pods.items.is_empty(), "no operator pod runs");
    for pod in pods {
        let name = pod.metadata.name.context("a pod has a name")?;
        operators.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    }
    let rolled =
        |status: &GQLADeploymentStatus| status.ready_replicas == 3 && wait::is_true(status, "Available");
    wait::status(&world.deployments(), TALKING, "to finish its rollout under a new operator", LIMIT, rolled)
        .await?;
    let after = objects::lasting(world, TALKING).await?;
    ensure!(before == after, "a restarted operator changed objects: {before:?} became {after:?}");
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), NAMESPACE);
    let selector =
        format!("{}={TALKING},{}={}", labels::DEPLOYMENT, labels::COMPONENT, labels::COMPONENT_SERVER);
    wait::until("every pod to carry the new annotation", LIMIT, || async {
        let pods = pods.list(&ListParams::default().labels(&selector)).await?;
        let old = pods.iter().filter(|pod| !annotated(pod)).count();
        Ok(if old == 0 { Ok(()) } else { Err(format!("{old} pods are of the old template")) })
    })
    .await
}

fn annotated(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("example.com/restart"))
}

async fn patch(world: &World, name: &str, change: Value) -> Result<()> {
    world.deployments().patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}
