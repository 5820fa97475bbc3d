//! Makes the cluster hold what was built, and nothing else of ours.

use std::fmt::Debug;

use gqla_api::labels::{MANAGER, OWNER_UID, POOL};
use gqla_decide::Identity;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, batch::v1::Job},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{build::Desired, error::ReconcileError, fetch::Observed};

/// What the API server returned for what was applied.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Deployments with the status they have now.
    pub deployments: Vec<Deployment>,
}

/// Applies `desired`, then deletes what `observed` has beyond it, except objects of pools that `keep` names.
///
/// # Errors
/// At the first object that cannot be written; the next pass goes on from there, because every step can be repeated.
pub async fn apply(
    client: &Client,
    identity: &Identity,
    desired: &Desired,
    observed: &Observed,
    keep: impl Fn(&str) -> bool,
) -> Result<Applied, ReconcileError> {
    let namespace = &identity.namespace;
    let jobs: Vec<Job> = desired.job.iter().cloned().collect();
    ensure_free(client, identity, "Deployment", &desired.deployments, &observed.deployments).await?;
    ensure_free(client, identity, "Service", &desired.services, &observed.services).await?;
    ensure_free(client, identity, "Job", &jobs, &observed.jobs).await?;
    let mut applied = Applied::default();
    for deployment in &desired.deployments {
        applied.deployments.push(server_side_apply(client, namespace, "Deployment", deployment).await?);
    }
    for service in &desired.services {
        server_side_apply(client, namespace, "Service", service).await?;
    }
    if let Some(job) = &desired.job {
        create_once(client, namespace, job, &observed.jobs).await?;
    }
    delete_others(client, namespace, "Deployment", &observed.deployments, &desired.deployments, &keep)
        .await?;
    delete_others(client, namespace, "Service", &observed.services, &desired.services, &keep).await?;
    delete_others(client, namespace, "Job", &observed.jobs, &jobs, |_| false).await?;
    Ok(applied)
}

/// Makes sure that no object to be written belongs to something else, which a forced apply would take over. What was
/// listed by our label is ours; what was not may exist without it.
async fn ensure_free<K>(
    client: &Client,
    identity: &Identity,
    kind: &'static str,
    desired: &[K],
    observed: &[K],
) -> Result<(), ReconcileError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), &identity.namespace);
    for object in desired {
        let name = object.name_any();
        if observed.iter().any(|other| other.name_any() == name) {
            continue;
        }
        match api.get_opt(&name).await {
            Ok(None) => {}
            Ok(Some(existing)) if is_ours(&existing, identity) => {}
            Ok(Some(_)) => return Err(ReconcileError::NameTaken { kind, name }),
            Err(source) => return Err(ReconcileError::Read { kind, name, source }),
        }
    }
    Ok(())
}

/// By its label or, where someone removed that, by its controller.
fn is_ours<K: Resource>(object: &K, identity: &Identity) -> bool {
    object.labels().get(OWNER_UID) == Some(&identity.uid)
        || object
            .owner_references()
            .iter()
            .any(|owner| owner.controller == Some(true) && owner.uid == identity.uid)
}

/// Scales `deployments` to zero and returns them as they are then.
///
/// # Errors
/// When one of them cannot be written.
pub async fn scale_to_zero(
    client: &Client,
    namespace: &str,
    deployments: Vec<Deployment>,
) -> Result<Vec<Deployment>, ReconcileError> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let mut scaled = Vec::with_capacity(deployments.len());
    for deployment in deployments {
        if deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(0) {
            scaled.push(deployment);
            continue;
        }
        let name = deployment.name_any();
        let patch = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
        match api.patch(&name, &params, &patch).await {
            Ok(deployment) => scaled.push(deployment),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(source) => return Err(ReconcileError::Apply { kind: "Deployment", name, source }),
        }
    }
    Ok(scaled)
}

async fn server_side_apply<K>(
    client: &Client,
    namespace: &str,
    kind: &'static str,
    object: &K,
) -> Result<K, ReconcileError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(object)).await.map_err(|source| ReconcileError::Apply {
        kind,
        name,
        source,
    })
}

/// A Job's template cannot change, so one that exists is left alone; another source or image has another name.
async fn create_once(
    client: &Client,
    namespace: &str,
    job: &Job,
    existing: &[Job],
) -> Result<(), ReconcileError> {
    let name = job.name_any();
    if existing.iter().any(|other| other.name_any() == name) {
        return Ok(());
    }
    let api: Api<Job> = Api::namespaced(client.clone(), namespace);
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&params, job).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(source) => Err(ReconcileError::Apply { kind: "Job", name, source }),
    }
}

async fn delete_others<K>(
    client: &Client,
    namespace: &str,
    kind: &'static str,
    observed: &[K],
    desired: &[K],
    keep: impl Fn(&str) -> bool,
) -> Result<(), ReconcileError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    for object in observed {
        let name = object.name_any();
        let wanted = desired.iter().any(|other| other.name_any() == name);
        let kept = object.labels().get(POOL).is_some_and(|pool| keep(pool));
        if wanted || kept || object.meta().deletion_timestamp.is_some() {
            continue;
        }
        // The UID keeps a namesake that someone else made meanwhile safe.
        let params = DeleteParams::background()
            .preconditions(Preconditions { uid: object.uid(), resource_version: None });
        match api.delete(&name, &params).await {
            Ok(_) => tracing::info!(kind, name, namespace, "deleted, no longer wanted"),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(source) => return Err(ReconcileError::Delete { kind, name, source }),
        }
    }
    Ok(())
}
