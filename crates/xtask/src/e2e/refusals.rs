//! A model that cannot be read is the problem of one object only.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gqla_api::{GQLADeployment, GQLADeploymentStatus};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::objects;
use crate::scenario::{DEEPSEEK, World, wait};

const LIMIT: Duration = Duration::from_secs(90);
const MISSING: &str = "no-such-folder";

pub async fn unreadable_model(world: &World) -> Result<()> {
    let api = world.deployments();
    let mut broken: GQLADeployment = api.get(crate::scenario::TALKING).await?;
    broken.metadata = kube::api::ObjectMeta { name: Some("broken".to_owned()), ..Default::default() };
    broken.status = None;
    broken.spec.model.source.persistent_volume_claim.path = MISSING.to_owned();
    api.create(&PostParams::default(), &broken).await?;

    let named = |status: &GQLADeploymentStatus| {
        status.conditions.iter().any(|c| {
            c.type_ == "Planned"
                && c.status == "False"
                && c.reason == "ModelUnreadable"
                && c.message.contains(MISSING)
        })
    };
    wait::status(&api, "broken", "to say which file it cannot read", LIMIT, named).await?;

    let touch = json!({"spec": {"replicas": 3}});
    let before = api.get(DEEPSEEK).await?.metadata.generation.context("an object has a generation")?;
    api.patch(DEEPSEEK, &PatchParams::default(), &Patch::Merge(touch)).await?;
    let goes_on = |status: &GQLADeploymentStatus| status.replicas == 3 && wait::is_true(status, "Available");
    let status = wait::status(&api, DEEPSEEK, "to go on beside a broken one", LIMIT, goes_on).await?;
    ensure!(status.observed_generation > Some(before), "the other object was not reconciled");

    let uid = api.get(&broken.name_any()).await?.uid().context("an object has a UID")?;
    let job = objects::owned_by(world, &uid).await?;
    ensure!(
        job.keys().any(|name| name.starts_with("Job/")),
        "no inspect Job carries the owner's UID: {job:?}"
    );
    api.delete(&broken.name_any(), &DeleteParams::default()).await?;
    wait::until("the inspect Job and its pods to be gone", LIMIT, || async {
        let left = objects::owned_by(world, &uid).await?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}")) })
    })
    .await
}
