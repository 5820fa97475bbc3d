//! The Deployment of one pool.
//!
//! Selectors are immutable, so they hold the GQLADeployment and the pool only; path, tensor parallelism, drafts and
//! cache layout are labels of the template and may change with the plan.

use std::collections::BTreeMap;

use gqla_api::{
    Device,
    labels::{
        COMPONENT, COMPONENT_SERVER, DEPLOYMENT, GPU_CLASS, KV_LAYOUT, MANAGED_BY, MANAGER,
        MULTI_TOKEN_PREDICTION, OWNER_UID, PATH, POOL, TENSOR_PARALLEL,
    },
};
use gqla_decide::{
    PoolPlan, ValidatedDeployment,
    names::{hash, label_value, pool_object_name},
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{metadata, pod};

/// Volumes on the node's disk that may be lost when an autoscaler removes the node.
const EVICTABLE: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

/// Seconds without progress, when rollout.progressDeadlineSeconds is not set: as long as the startup probe lets a pod
/// read its weights.
const PROGRESS_DEADLINE: i32 = 1800;

/// The Deployment of `pool`.
pub(super) fn of_pool(validated: &ValidatedDeployment, pool: &PoolPlan) -> Deployment {
    let identity = &validated.identity;
    let mut metadata = metadata(identity, pool_object_name(&identity.name, &pool.name), COMPONENT_SERVER);
    metadata.labels.get_or_insert_default().insert(POOL.to_owned(), pool.name.clone());
    let selector =
        BTreeMap::from([(DEPLOYMENT.to_owned(), identity.label()), (POOL.to_owned(), pool.name.clone())]);
    Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: i32::try_from(pool.replicas).ok(),
            selector: LabelSelector { match_labels: Some(selector), ..LabelSelector::default() },
            strategy: Some(strategy(validated, pool)),
            progress_deadline_seconds: Some(
                validated.spec.rollout.progress_deadline_seconds.unwrap_or(PROGRESS_DEADLINE),
            ),
            revision_history_limit: Some(2),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(template_labels(validated, pool)),
                    annotations: Some(template_annotations(validated)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod::serving(validated, pool)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// A surge on GPUs waits for GPUs that the old pod holds, forever; so GPUs are given up first. A CPU pod surges. If
/// the user allows none to be missing, one has to surge.
fn strategy(validated: &ValidatedDeployment, pool: &PoolPlan) -> DeploymentStrategy {
    let derived = if pool.device == Device::Cpu { 0 } else { 1 };
    let max_unavailable = validated.spec.rollout.max_unavailable.clone().unwrap_or(IntOrString::Int(derived));
    let none_missing = match &max_unavailable {
        IntOrString::Int(count) => *count == 0,
        IntOrString::String(percent) => percent.trim_end_matches('%').parse() == Ok(0),
    };
    let surge = i32::from(none_missing || pool.device == Device::Cpu);
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(max_unavailable),
        }),
    }
}

fn template_labels(validated: &ValidatedDeployment, pool: &PoolPlan) -> BTreeMap<String, String> {
    let (identity, chosen) = (&validated.identity, &pool.decision.chosen);
    let own = [
        ("app.kubernetes.io/name", "gqla-server".to_owned()),
        (MANAGED_BY, MANAGER.to_owned()),
        (COMPONENT, COMPONENT_SERVER.to_owned()),
        (DEPLOYMENT, identity.label()),
        (OWNER_UID, identity.uid.clone()),
        (POOL, pool.name.clone()),
        (GPU_CLASS, label_value(&pool.class)),
        (PATH, chosen.path.metric_label().to_owned()),
        (TENSOR_PARALLEL, chosen.tensor_parallel.to_string()),
        (MULTI_TOKEN_PREDICTION, chosen.multi_token_prediction.to_string()),
        (KV_LAYOUT, kv_layout(validated, pool)),
    ];
    let mut labels = validated.spec.pod_template.labels.clone();
    labels.extend(own.map(|(key, value)| (key.to_owned(), value)));
    labels
}

/// Pods whose values differ keep their caches in different layouts.
fn kv_layout(validated: &ValidatedDeployment, pool: &PoolPlan) -> String {
    let chosen = &pool.decision.chosen;
    let (degree, drafts) = (chosen.tensor_parallel.to_string(), chosen.multi_token_prediction.to_string());
    hash(&[&validated.source_hash, &validated.image, chosen.path.flag(), &degree, &drafts], 10)
}

fn template_annotations(validated: &ValidatedDeployment) -> BTreeMap<String, String> {
    let mut annotations = validated.spec.pod_template.annotations.clone();
    annotations.insert(EVICTABLE.to_owned(), pod::SCRATCH.to_owned());
    annotations
}
