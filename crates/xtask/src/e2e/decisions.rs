//! The sample with DeepSeek's attention: what is chosen depends on the shape, not on the GPU's name.

use std::time::Duration;

use anyhow::{Result, ensure};
use gqla_api::{GQLADeploymentStatus, PoolStatus};
use gqla_model::DecodePath;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::scenario::{DEEPSEEK, World, wait};

const LIMIT: Duration = Duration::from_secs(60);

pub async fn follow_the_shape(world: &World) -> Result<()> {
    world.apply_sample(DEEPSEEK).await?;
    let status = world.available(DEEPSEEK, LIMIT).await?;
    expect(&status, "H100", DecodePath::MqaAbsorb, 0)?;
    expect(&status, "H20", DecodePath::Gqa, 1)?;

    // GLM-4.7-Flash: 20 heads in 4 groups sit on the H20's ridge, where absorb reads fewer bytes.
    let glm = json!({"spec": {"model": {"shape": {
        "numAttentionHeads": 20, "numKeyValueHeads": 4, "kvLoraRank": 512,
        "qkNopeHeadDim": 192, "qkRopeHeadDim": 64, "vHeadDim": 256,
        "hiddenSize": 2048, "numHiddenLayers": 47, "parameters": 29_943_000_000_u64,
    }}}});
    world.deployments().patch(DEEPSEEK, &PatchParams::default(), &Patch::Merge(glm)).await?;
    let flipped = |status: &GQLADeploymentStatus| {
        wait::is_true(status, "Available")
            && pool(status, "H20").is_some_and(|pool| pool.path == DecodePath::MqaAbsorb)
    };
    let status =
        wait::status(&world.deployments(), DEEPSEEK, "to flip its H20 pool to absorb", LIMIT, flipped)
            .await?;
    ensure!(status.pools.iter().all(|pool| !pool.reason.is_empty()), "a pool gives no reason");
    Ok(())
}

fn pool<'a>(status: &'a GQLADeploymentStatus, class: &str) -> Option<&'a PoolStatus> {
    status.pools.iter().find(|pool| pool.gpu_class == class)
}

fn expect(status: &GQLADeploymentStatus, class: &str, path: DecodePath, drafts: u32) -> Result<()> {
    let Some(pool) = pool(status, class) else { anyhow::bail!("no pool is on {class}: {:?}", status.pools) };
    let found = (pool.path, pool.tensor_parallel, pool.multi_token_prediction);
    // Absorb is compute-bound or at least as fast without drafts on an H100; only the path and TP are promised there.
    let drafts = if path == DecodePath::MqaAbsorb { pool.multi_token_prediction } else { drafts };
    ensure!(found == (path, 1, drafts), "{class}: path, TP and drafts are {found:?}: {}", pool.reason);
    Ok(())
}
