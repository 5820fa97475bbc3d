//! The CustomResourceDefinitions as objects and as the YAML that is committed and shipped in the chart.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::{GPUClass, GQLADeployment};

/// Every CustomResourceDefinition of this API, in the order to install them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![GPUClass::crd(), GQLADeployment::crd()]
}

/// A definition that cannot be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("the definition of {kind} cannot be written as YAML: {reason}")]
pub struct RenderError {
    kind: String,
    reason: String,
}

/// The committed file for a definition: its name below `crds/` and its text.
///
/// # Errors
/// When the definition does not serialise, which no definition of [`crds`] does.
pub fn render(crd: &CustomResourceDefinition) -> Result<(String, String), RenderError> {
    let failed = |reason: String| RenderError { kind: crd.spec.names.kind.clone(), reason };
    let value = serde_json::to_value(crd).map_err(|error| failed(error.to_string()))?;
    let yaml = serde_saphyr::to_string(&value).map_err(|error| failed(error.to_string()))?;
    let file = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
    Ok((file, format!("# Generated from crates/api by `cargo xtask gen`; edits are lost.\n{yaml}")))
}

#[cfg(test)]
mod tests;
