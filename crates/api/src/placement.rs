//! Where replicas run and how changes reach them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DecodeOverrides, rules, schema};

/// Replicas on one kind of GPU. Exactly one of gpuClass and nodeSelector says which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = rules::add_pool_rules)]
pub struct PoolSpec {
    /// Name of the pool, unique in the GQLADeployment.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// GPU class by name, such as H100 or H20, of the built-in catalogue or a GPUClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub gpu_class: Option<String>,
    /// Labels of the nodes to use. They must all be of one GPU class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::node_selector")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Replicas this pool gets before the rest is shared out, while spec.replicas lasts.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10_000))]
    pub min_replicas: i32,
    /// Replicas this pool never exceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_replicas: Option<i32>,
    /// Exceptions from spec.decode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<DecodeOverrides>,
}

/// How replicas are shared over pools, or over GPU classes when there are no pools.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PlacementSpec {
    /// Throughput fills the fastest class first, Cost the one with most tokens per cost (see GPUClass), Spread
    /// shares evenly over all usable ones.
    pub strategy: PlacementStrategy,
    /// GPU classes that may be used; empty means all. Only without pools, which name their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub allowed_classes: Vec<String>,
}

/// See [`PlacementSpec::strategy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementStrategy {
    /// Most predicted tokens per cost first. Classes without a cost come last.
    Cost,
    /// Most predicted tokens per second and replica first.
    #[default]
    Throughput,
    /// Evenly over all usable classes.
    Spread,
}

/// How changes reach running pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    /// Replicas of a pool that may be down during a rollout, as a number or percentage. The default is 1 where a
    /// replica holds GPUs, because a surge would wait for GPUs that the old replica has, and 0 on CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::int_or_percent")]
    pub max_unavailable: Option<IntOrString>,
    /// Seconds without progress after which Progressing turns False. The default is 1800.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub progress_deadline_seconds: Option<i32>,
}
