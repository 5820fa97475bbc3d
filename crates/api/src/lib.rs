//! The Kubernetes API of the GQLA operator: [`GQLADeployment`] and [`GPUClass`], the labels and condition reasons
//! other programs rely on, and the CEL rules that make the API server refuse impossible arithmetic at admission.
//!
//! Rules live in the schema so that no webhook has to run for a user to be told, by name and number, why a
//! tensor-parallel degree cannot work. This crate holds no client, clock or environment.

mod condition;
mod crds;
mod decode;
mod deployment;
mod duration;
mod gpu_class;
pub mod inventory;
pub mod labels;
mod placement;
mod pod;
mod rules;
mod schema;
mod status;

pub use condition::{ConditionReason, ConditionType};
pub use crds::{RenderError, crds, render};
pub use decode::{DecodeOverrides, DecodeSpec, MultiTokenPrediction, PathChoice, TensorParallel};
pub use deployment::{
    GQLADeployment, GQLADeploymentSpec, GoalSpec, ModelSource, ModelSpec, Objective,
    PersistentVolumeClaimSource,
};
pub use duration::{NoDuration, ShortDuration};
pub use gpu_class::{GPUClass, GPUClassSpec, NodeLabel};
pub use placement::{PlacementSpec, PlacementStrategy, PoolSpec, RolloutSpec};
pub use pod::{Device, EnvironmentVariable, PodTemplateSpec, RuntimeKind, RuntimeSpec};
pub use status::{GQLADeploymentStatus, ModelStatus, PoolStatus, RunnerUp};
