//! Services: one for clients over all pools, one per pool for whoever wants a certain path.

use std::collections::BTreeMap;

use gqla_api::labels::{COMPONENT_SERVER, DEPLOYMENT, POOL};
use gqla_decide::{
    PoolPlan, ValidatedDeployment,
    names::{object_name, pool_object_name},
};
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::metadata;

/// The Service named like the GQLADeployment.
pub(super) fn of_all(validated: &ValidatedDeployment) -> Service {
    let identity = &validated.identity;
    service(validated, object_name(&[&identity.name]), None)
}

/// The Service of one pool.
pub(super) fn of_pool(validated: &ValidatedDeployment, pool: &PoolPlan) -> Service {
    service(validated, pool_object_name(&validated.identity.name, &pool.name), Some(&pool.name))
}

fn service(validated: &ValidatedDeployment, name: String, pool: Option<&str>) -> Service {
    let identity = &validated.identity;
    let mut metadata = metadata(identity, name, COMPONENT_SERVER);
    let mut selector = BTreeMap::from([(DEPLOYMENT.to_owned(), identity.label())]);
    if let Some(pool) = pool {
        selector.insert(POOL.to_owned(), pool.to_owned());
        metadata.labels.get_or_insert_default().insert(POOL.to_owned(), pool.to_owned());
    }
    Service {
        metadata,
        spec: Some(ServiceSpec {
            selector: Some(selector),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                app_protocol: Some("http".to_owned()),
                port: 80,
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String("http".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
