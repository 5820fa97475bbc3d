//! From a raw GQLADeployment to one that can be planned and built. Pure.
//!
//! The API server's rules refuse most of this at admission already. It is checked again because objects outlive the
//! rules they were admitted under, and because a shape read from a model's files passed no rule at all.

use gqla_api::{
    ConditionReason, Device, GQLADeployment, GQLADeploymentSpec, ModelStatus,
    labels::{DEPLOYMENT, OWNER_UID},
};
use gqla_model::{ModelShape, ShapeError};
use k8s_openapi::{api::core::v1::Toleration, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::Resource as _;

use crate::names::{hash, label_value};

/// Build of the server in the default image: the operator and gqla-server are released together, under one version.
pub const SERVER_BUILD: &str = env!("CARGO_PKG_VERSION");

/// Who the objects belong to.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// Name of the GQLADeployment.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// The controller reference every object gets.
    pub owner: OwnerReference,
}

impl Identity {
    /// Value of the label [`DEPLOYMENT`].
    pub fn label(&self) -> String {
        label_value(&self.name)
    }

    /// Selects the pods of all pools.
    pub fn selector(&self) -> String {
        format!("{DEPLOYMENT}={}", self.label())
    }

    /// Selects every object made for this GQLADeployment.
    pub fn owned(&self) -> String {
        format!("{OWNER_UID}={}", self.uid)
    }
}

/// What is known of the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Dimensions to plan with.
    Known(ModelShape),
    /// The files have to be read first.
    Unknown,
}

/// A GQLADeployment whose fields make sense together.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedDeployment {
    /// Who it is.
    pub identity: Identity,
    /// What is asked for.
    pub spec: GQLADeploymentSpec,
    /// Image of the server.
    pub image: String,
    /// Build of the server in it, where that is known: entries of a calibration may be for one build alone.
    pub build: Option<&'static str>,
    /// Name under which clients ask for the model.
    pub served_name: String,
    /// Hash of where the model's files are.
    pub source_hash: String,
    /// The model's dimensions, if known.
    pub shape: Shape,
    /// The user's tolerations and the one for GPU nodes.
    pub tolerations: Vec<Toleration>,
}

/// Why a GQLADeployment makes no sense.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ValidationError {
    /// The API server always sets these.
    #[error("metadata.{0} is missing: the object does not come from an API server")]
    NoMetadata(&'static str),
    /// The shape given is impossible.
    #[error("spec.model.{0}")]
    Shape(#[source] ShapeError),
    /// The shape read from the files is impossible.
    #[error("the model's files are inconsistent: {0}")]
    InspectedShape(#[source] ShapeError),
    /// The shape given is not the shape of the files.
    #[error(
        "spec.model.shape.{field} is {given}, but the model's files say {found}; correct it or leave spec.model.shape out"
    )]
    ShapeMismatch {
        /// First field that differs.
        field: String,
        /// What the spec says.
        given: String,
        /// What the files say.
        found: String,
    },
    /// A pool says nothing, or two things, about its nodes.
    #[error("spec.pools[{pool}] must set exactly one of gpuClass and nodeSelector")]
    PoolTarget {
        /// Name of the pool.
        pool: String,
    },
}

impl ValidationError {
    /// One word for programs.
    pub const fn reason(&self) -> ConditionReason {
        match self {
            Self::Shape(_) => ConditionReason::InvalidShape,
            Self::InspectedShape(_) => ConditionReason::ModelUnreadable,
            Self::ShapeMismatch { .. } => ConditionReason::ShapeMismatch,
            Self::NoMetadata(_) | Self::PoolTarget { .. } => ConditionReason::InvalidSpec,
        }
    }
}

/// Checks `object` and completes it with defaults.
///
/// # Errors
/// When fields are missing or contradict each other or what an inspect Job found in the files.
pub fn validate(
    object: &GQLADeployment,
    default_image: &str,
) -> Result<ValidatedDeployment, ValidationError> {
    let identity = identity(object)?;
    let spec = object.spec.clone();
    if let Some(pool) =
        spec.pools.iter().find(|pool| pool.gpu_class.is_some() == pool.node_selector.is_some())
    {
        return Err(ValidationError::PoolTarget { pool: pool.name.clone() });
    }
    let source_hash = source_hash(&spec);
    let inspected = object
        .status
        .as_ref()
        .and_then(|status| status.model.as_ref())
        .filter(|model| model.source_hash == source_hash);
    let shape = shape(spec.model.shape.as_ref(), inspected)?;
    Ok(ValidatedDeployment {
        build: spec.runtime.image.is_none().then_some(SERVER_BUILD),
        image: spec.runtime.image.clone().unwrap_or_else(|| default_image.to_owned()),
        served_name: spec.model.served_name.clone().unwrap_or_else(|| identity.name.clone()),
        source_hash,
        shape,
        tolerations: tolerations(&spec),
        identity,
        spec,
    })
}

/// The object's identity.
///
/// # Errors
/// When metadata lacks what an API server always sets.
pub fn identity(object: &GQLADeployment) -> Result<Identity, ValidationError> {
    let meta = &object.metadata;
    let required = |value: &Option<String>, field| value.clone().ok_or(ValidationError::NoMetadata(field));
    Ok(Identity {
        name: required(&meta.name, "name")?,
        namespace: required(&meta.namespace, "namespace")?,
        uid: required(&meta.uid, "uid")?,
        generation: meta.generation.unwrap_or_default(),
        owner: object.controller_owner_ref(&()).ok_or(ValidationError::NoMetadata("uid"))?,
    })
}

/// Names the files an inspect Job reads; another source is another model.
pub fn source_hash(spec: &GQLADeploymentSpec) -> String {
    let claim = &spec.model.source.persistent_volume_claim;
    hash(&["persistentVolumeClaim", &claim.claim_name, &claim.path], 8)
}

fn shape(given: Option<&ModelShape>, inspected: Option<&ModelStatus>) -> Result<Shape, ValidationError> {
    let found = inspected.and_then(|model| model.shape.as_ref());
    match (given, found) {
        (Some(given), found) => {
            given.validate().map_err(ValidationError::Shape)?;
            match found.and_then(|found| difference(given, found)) {
                Some(mismatch) => Err(mismatch),
                None => Ok(Shape::Known(given.clone())),
            }
        }
        (None, Some(found)) => {
            found.validate().map_err(ValidationError::InspectedShape)?;
            Ok(Shape::Known(found.clone()))
        }
        (None, None) => Ok(Shape::Unknown),
    }
}

fn difference(given: &ModelShape, found: &ModelShape) -> Option<ValidationError> {
    let (given, found) = (serde_json::to_value(given).ok()?, serde_json::to_value(found).ok()?);
    let (field, value) =
        given.as_object()?.iter().find(|(field, value)| found.get(*field) != Some(*value))?;
    Some(ValidationError::ShapeMismatch {
        field: field.clone(),
        given: value.to_string(),
        found: found.get(field).map(ToString::to_string).unwrap_or_default(),
    })
}

fn tolerations(spec: &GQLADeploymentSpec) -> Vec<Toleration> {
    let gpu = Toleration {
        key: Some(gqla_api::labels::NVIDIA_GPU.to_owned()),
        operator: Some("Exists".to_owned()),
        effect: Some("NoSchedule".to_owned()),
        ..Toleration::default()
    };
    let mut tolerations = spec.pod_template.tolerations.clone();
    if !tolerations.contains(&gpu) {
        tolerations.push(gpu);
    }
    tolerations
}

/// What decodes on a class: [`Device::Auto`] resolved.
pub fn device_on(class: &str, device: Device) -> Device {
    match device {
        Device::Auto if class == gqla_planner::CPU_CLASS => Device::Cpu,
        Device::Auto => Device::Cuda,
        fixed => fixed,
    }
}

#[cfg(test)]
mod tests;
