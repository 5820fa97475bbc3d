//! What the operator left in the cluster, by its labels.

use std::collections::BTreeMap;

use anyhow::Result;
use gqla_api::labels;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    batch::v1::Job,
    core::v1::{Pod, Service},
};
use kube::{Api, Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use crate::scenario::{NAMESPACE, World};

/// UIDs of everything that carries the label of one GQLADeployment, by `Kind/name`.
pub async fn of(world: &World, deployment: &str) -> Result<BTreeMap<String, String>> {
    all(world, &format!("{}={deployment}", labels::DEPLOYMENT)).await
}

async fn all(world: &World, selector: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    list::<Deployment>(world, selector, &mut found).await?;
    list::<ReplicaSet>(world, selector, &mut found).await?;
    list::<Service>(world, selector, &mut found).await?;
    list::<Job>(world, selector, &mut found).await?;
    list::<Pod>(world, selector, &mut found).await?;
    Ok(found)
}

/// Everything that carries the UID of one GQLADeployment, gone or not: pods of inspect Jobs as well.
pub async fn owned_by(world: &World, uid: &str) -> Result<BTreeMap<String, String>> {
    all(world, &format!("{}={uid}", labels::OWNER_UID)).await
}

/// As [`of`], without pods and ReplicaSets, which come and go during a rollout.
pub async fn lasting(world: &World, deployment: &str) -> Result<BTreeMap<String, String>> {
    let mut found = of(world, deployment).await?;
    found.retain(|name, _| name.starts_with("Deployment/") || name.starts_with("Service/"));
    Ok(found)
}

async fn list<K>(world: &World, selector: &str, found: &mut BTreeMap<String, String>) -> Result<()>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(world.client.clone(), NAMESPACE);
    for object in api.list(&ListParams::default().labels(selector)).await? {
        found.insert(format!("{}/{}", K::kind(&()), object.name_any()), object.uid().unwrap_or_default());
    }
    Ok(())
}
