//! The CustomResourceDefinitions as objects and as the YAML that is committed and shipped in the chart.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::{GPUClass, GQLADeployment};

/// Every CustomResourceDefinition of this API, in the order to install them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [GPUClass::crd(), GQLADeployment::crd()].map(tidied).into()
}

fn tidied(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let schemas = crd.spec.versions.iter_mut().filter_map(|version| version.schema.as_mut());
    for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_mut()) {
        tidy(schema);
    }
    crd
}

/// Removes what the derived schema says and Kubernetes takes amiss: unsigned formats, which the API server warns
/// about, and `nullable`, which would let an explicit null past `has()` in the rules (without it nulls are dropped).
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = Some("int64".to_owned());
    }
    schema.properties.iter_mut().flatten().for_each(|(_, property)| tidy(property));
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
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
    let mut value = serde_json::to_value(crd).map_err(|error| failed(error.to_string()))?;
    // One text whatever else is built along: libraries can make JSON objects keep their order.
    value.sort_all_objects();
    let yaml = serde_saphyr::to_string(&value).map_err(|error| failed(error.to_string()))?;
    let file = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
    Ok((file, format!("# Generated from crates/api by `cargo xtask gen`; edits are lost.\n{yaml}")))
}

#[cfg(test)]
mod tests;
