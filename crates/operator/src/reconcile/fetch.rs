//! Reads what a pass needs from the API server.

use gqla_decide::Identity;
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Pod, Service},
};
use kube::{Api, Client, api::ListParams};

use super::error::ReconcileError;

/// The objects made for a GQLADeployment in earlier passes.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// One per pool.
    pub deployments: Vec<Deployment>,
    /// One per pool and one over all.
    pub services: Vec<Service>,
    /// Inspect Jobs.
    pub jobs: Vec<Job>,
}

/// Lists everything that carries the owner label of `identity`.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn fetch(client: &Client, identity: &Identity) -> Result<Observed, ReconcileError> {
    let params = ListParams::default().labels(&identity.owned());
    let namespace = &identity.namespace;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let (deployments, services, jobs) =
        tokio::join!(deployments.list(&params), services.list(&params), jobs.list(&params));
    let failed = |what| move |source| ReconcileError::List { what, source };
    Ok(Observed {
        deployments: deployments.map_err(failed("Deployments"))?.items,
        services: services.map_err(failed("Services"))?.items,
        jobs: jobs.map_err(failed("Jobs"))?.items,
    })
}

/// Pods of the inspect Job named `job`.
///
/// # Errors
/// When the API server cannot be asked.
pub async fn inspect_pods(
    client: &Client,
    identity: &Identity,
    job: &str,
) -> Result<Vec<Pod>, ReconcileError> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &identity.namespace);
    let params = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    let list = pods.list(&params).await;
    Ok(list.map_err(|source| ReconcileError::List { what: "inspect pods", source })?.items)
}
