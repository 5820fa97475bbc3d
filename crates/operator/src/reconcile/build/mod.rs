//! From a plan to the objects that carry it out. Pure, and cannot fail: whatever could, did so before.

mod deployment;
mod inspect_job;
mod pod;
mod service;

use std::collections::BTreeMap;

use gqla_api::labels::{COMPONENT, DEPLOYMENT, MANAGED_BY, MANAGER, OWNER_UID};
use gqla_decide::{Identity, Plan, ValidatedDeployment};
use k8s_openapi::{
    api::{apps::v1::Deployment, batch::v1::Job, core::v1::Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// The objects a GQLADeployment should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// One per pool.
    pub deployments: Vec<Deployment>,
    /// One per pool, and one over all of them.
    pub services: Vec<Service>,
    /// Reads the model's shape from its files.
    pub job: Option<Job>,
}

/// The objects of `plan`.
pub fn build(validated: &ValidatedDeployment, plan: &Plan) -> Desired {
    let per_pool = plan.pools.iter().map(|pool| service::of_pool(validated, pool));
    Desired {
        deployments: plan.pools.iter().map(|pool| deployment::of_pool(validated, pool)).collect(),
        services: std::iter::once(service::of_all(validated)).chain(per_pool).collect(),
        job: None,
    }
}

/// The objects that find out the model's shape.
pub fn inspect(validated: &ValidatedDeployment) -> Desired {
    Desired {
        services: vec![service::of_all(validated)],
        job: Some(inspect_job::of(validated)),
        ..Desired::default()
    }
}

fn metadata(identity: &Identity, name: String, component: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(identity.namespace.clone()),
        labels: Some(BTreeMap::from([
            (MANAGED_BY.to_owned(), MANAGER.to_owned()),
            (DEPLOYMENT.to_owned(), identity.label()),
            (OWNER_UID.to_owned(), identity.uid.clone()),
            (COMPONENT.to_owned(), component.to_owned()),
        ])),
        owner_references: Some(vec![identity.owner.clone()]),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
