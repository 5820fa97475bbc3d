//! The fields of a serving pod that reading its metrics needs.

use gqla_api::labels::{DEPLOYMENT, GPU_CLASS, POOL};
use k8s_openapi::api::core::v1::Pod;

/// A ready serving pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServingPod {
    /// UID: a namesake is another pod with other counters.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Label of the GQLADeployment.
    pub deployment: String,
    /// Pool.
    pub pool: String,
    /// GPU class it was planned for.
    pub gpu_class: String,
    /// Address.
    pub ip: String,
}

impl ServingPod {
    /// Key and pruned pod; no pod when it is not ready, because its counters are then not to be expected.
    pub fn prune(pod: Pod) -> (String, Option<Self>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let labels = pod.metadata.labels.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let ready = pod.metadata.deletion_timestamp.is_none()
            && status
                .conditions
                .iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let serving = || {
            Some(Self {
                uid: uid.clone(),
                namespace: pod.metadata.namespace.clone()?,
                deployment: labels.get(DEPLOYMENT)?.clone(),
                pool: labels.get(POOL)?.clone(),
                gpu_class: labels.get(GPU_CLASS)?.clone(),
                ip: status.pod_ip.clone()?,
            })
        };
        let serving = if ready { serving() } else { None };
        (uid, serving)
    }
}
