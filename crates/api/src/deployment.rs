//! `GQLADeployment`: one model served by one or more pools of GPUs.

#![allow(clippy::duplicated_attributes, reason = "columns of one CRD may well have equal types")]

use gqla_model::ModelShape;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    DecodeSpec, GQLADeploymentStatus, PlacementSpec, PodTemplateSpec, PoolSpec, RolloutSpec, RuntimeSpec,
    ShortDuration, rules,
};

/// What the user wants served, and where.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "gqla.dev",
    version = "v1alpha1",
    kind = "GQLADeployment",
    plural = "gqladeployments",
    singular = "gqladeployment",
    shortname = "gqla",
    category = "ai",
    namespaced,
    status = "GQLADeploymentStatus",
    derive = "PartialEq",
    doc = "A Group-Query Latent Attention model, served on every pool of GPUs along the decode path that is fastest there.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].status",
        description = "Whether every pool has its replicas ready"
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".spec.replicas",
        description = "Replicas asked for"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "Replicas ready"
    ),
    printcolumn(
        name = "Paths",
        type_ = "string",
        json_path = ".status.paths",
        description = "Pool, decode path, tensor parallelism and drafts"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Age"
    ),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".spec.model.servedName",
        description = "Name clients ask for",
        priority = 1
    ),
    printcolumn(
        name = "Planned",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Planned\")].reason",
        description = "How planning ended",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        description = "What happened, or what is being waited for",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = rules::add_deployment_rules)]
pub struct GQLADeploymentSpec {
    /// The model and where its files are.
    pub model: ModelSpec,
    /// The server that decodes it.
    #[serde(default)]
    pub runtime: RuntimeSpec,
    /// What plans are made for.
    #[serde(default)]
    pub goal: GoalSpec,
    /// Path, tensor parallelism and drafts of every pool that does not override them.
    #[serde(default)]
    pub decode: DecodeSpec,
    /// Groups of equal GPUs. Empty: replicas go to the GPU classes the cluster has, by placement.strategy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub pools: Vec<PoolSpec>,
    /// How replicas are shared over pools or GPU classes.
    #[serde(default)]
    pub placement: PlacementSpec,
    /// Replicas over all pools. Written by `kubectl scale` and autoscalers; the operator never changes it.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: i32,
    /// What pods carry beyond what the operator derives.
    #[serde(default)]
    pub pod_template: PodTemplateSpec,
    /// How changes reach running pods.
    #[serde(default)]
    pub rollout: RolloutSpec,
}

fn one_replica() -> i32 {
    1
}

/// The model and where its files are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Where the files are.
    pub source: ModelSource,
    /// Name under which clients ask for the model. The default is the GQLADeployment's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$"))]
    pub served_name: Option<String>,
    /// Dimensions of the model. Absent: a Job reads them from the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<ModelShape>,
}

/// Where a model's files are. Exactly one field is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelSource {
    /// A claim in the GQLADeployment's namespace, mounted read-only.
    pub persistent_volume_claim: PersistentVolumeClaimSource,
}

/// Files on a persistent volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaimSource {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: String,
    /// Directory of the model, or a .gguf file, relative to the volume's root. The default is the root.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512), regex(pattern = r"^[A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)*$"))]
    pub path: String,
}

/// What plans are made for. The planner refuses plans whose weights and cache do not fit a GPU's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GoalSpec {
    /// Throughput wants most tokens per second and GPU, Latency least time per token of one stream, Cost most tokens for
    /// the money.
    pub objective: Objective,
    /// Longest context of one request, in tokens: plans leave room for it, the server refuses longer ones. Absent,
    /// plans leave room for 4096 and the server accepts what the model allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub context_length: Option<u32>,
    /// Requests one replica decodes at once: plans leave room for them, the server queues further ones. Absent,
    /// plans assume 32 and the server decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub concurrency: Option<u32>,
    /// Prompt tokens of a typical request; reading them is then part of rates and costs. Absent, only decoding is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub prompt_tokens: Option<u32>,
    /// Tokens a typical request is answered with; a prompt's cost is spread over them. Absent, plans assume 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub output_tokens: Option<u32>,
    /// Longest time between two tokens of a stream, such as 50ms; plans that are slower are refused. With promptTokens
    /// it is judged at a request's average context, prompt and half the answer, else at contextLength.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time_per_output_token: Option<ShortDuration>,
    /// Longest time until a request that need not wait gets its first token, such as 2s; it needs promptTokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_time_to_first_token: Option<ShortDuration>,
}

/// See [`GoalSpec::objective`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Objective {
    /// Most tokens per second and GPU.
    #[default]
    Throughput,
    /// Least time per token of one stream.
    Latency,
    /// Most tokens for the money; classes are priced by their GPUClass.
    Cost,
}
