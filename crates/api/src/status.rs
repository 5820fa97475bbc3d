//! What the operator observed and decided, in figures a user can check.

use gqla_model::{DecodePath, ModelShape};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Device, schema};

/// What the operator observed and decided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct GQLADeploymentStatus {
    /// Generation of the spec this status answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that exist, over all pools.
    pub replicas: i32,
    /// Pods that are ready, over all pools.
    pub ready_replicas: i32,
    /// Label selector of the pods, for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// One word per pool: name=path, with tensor parallelism and drafts where they are not 1 and 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paths: Option<String>,
    /// What happened last or is being waited for, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What is known of the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelStatus>,
    /// Planned, Progressing, Available, HardwareRecognized and MTPActive.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The decision per pool.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub pools: Vec<PoolStatus>,
}

/// What an inspect Job read from the model's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelStatus {
    /// Hash of the source that was read; another source is read again.
    pub source_hash: String,
    /// Dimensions found in the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<ModelShape>,
    /// Bytes of all weights in the files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_bytes: Option<u64>,
    /// Why the files could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The plan of one pool, why it was chosen, and how it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Name of the pool.
    pub name: String,
    /// GPU class planned for.
    pub gpu_class: String,
    /// What decodes: CPU or CUDA.
    pub device: Device,
    /// Decode path.
    pub path: DecodePath,
    /// GPUs per replica.
    pub tensor_parallel: u32,
    /// Drafts per step; 0 is off.
    pub multi_token_prediction: u32,
    /// Replicas planned.
    pub replicas: i32,
    /// Replicas ready.
    pub ready: i32,
    /// Modelled tokens per second of one replica at full batch: what plans are compared by, until
    /// measuredTokensPerSecond says what they deliver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_tokens_per_second: Option<f64>,
    /// Measured tokens per second of the whole pool; absent when any ready pod cannot be reached, because a partial
    /// sum would look like a slow pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_tokens_per_second: Option<f64>,
    /// Cache bytes one token takes in one layer on one GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_token: Option<u64>,
    /// FLOPs per cache byte read while decoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arithmetic_intensity: Option<f64>,
    /// FLOPs per byte above which the GPU computes rather than waits for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ridge: Option<f64>,
    /// Lead over the runner-up, in percent; below 15 is close.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Why this plan, in one sentence.
    pub reason: String,
    /// The best plan that lost, on the other path where that can run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<RunnerUp>,
    /// What a reader of the figures must know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A plan that lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerUp {
    /// Decode path.
    pub path: DecodePath,
    /// GPUs per replica.
    pub tensor_parallel: u32,
    /// Drafts per step; 0 is off.
    pub multi_token_prediction: u32,
    /// Modelled as the pool's own predictedTokensPerSecond.
    pub predicted_tokens_per_second: f64,
}
