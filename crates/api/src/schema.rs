//! Hand-written schemas for the Kubernetes types the spec embeds.
//!
//! k8s-openapi can derive them, but drags kilobytes of prose about quantities into every map and declares no
//! maxima, which CEL's cost estimate needs.

use schemars::{Schema, SchemaGenerator, json_schema, transform::RecursiveTransform, transform::Transform};
use serde_json::Value;

/// Int-or-string that is `Auto` or at least 1.
pub(crate) fn tensor_parallel(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 8,
        "x-kubernetes-validations": [{
            "rule": "type(self) == int ? int(self) >= 1 && int(self) <= 1024 : type(self) == string && self == 'Auto'",
            "message": "tensorParallel must be Auto or a number from 1 to 1024",
        }],
    })
}

/// Int-or-string that is `Auto`, `Off` or at most 8.
pub(crate) fn multi_token_prediction(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 8,
        "x-kubernetes-validations": [{
            "rule": "type(self) == int ? int(self) >= 0 && int(self) <= 8 : type(self) == string && self in ['Auto', 'Off']",
            "message": "multiTokenPrediction must be Auto, Off or a number from 0 to 8",
        }],
    })
}

/// A count or a percentage.
pub(crate) fn int_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 4,
        "pattern": "^[0-9]{1,2}%$|^100%$",
    })
}

/// Labels a node must carry, at least one.
pub(crate) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63 },
    })
}

/// Labels that leave the operator's prefix alone.
pub(crate) fn pod_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": { "type": "string", "maxLength": 63 },
        "x-kubernetes-validations": [{
            "rule": "self.all(key, !key.startsWith('gqla.dev/'))",
            "messageExpression": "'podTemplate.labels: ' + self.filter(key, key.startsWith('gqla.dev/'))[0] + ' is set by the operator'",
        }],
    })
}

/// Annotations.
pub(crate) fn pod_annotations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 4096 },
    })
}

/// `core/v1` Tolerations.
pub(crate) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "object",
            "properties": {
                "key": { "type": "string", "maxLength": 317, "description": "Taint key; empty matches all." },
                "operator": { "type": "string", "enum": ["Exists", "Equal"], "description": "Default Equal." },
                "value": { "type": "string", "maxLength": 63, "description": "Taint value." },
                "effect": {
                    "type": "string",
                    "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
                    "description": "Taint effect; absent matches all.",
                },
                "tolerationSeconds": {
                    "type": "integer",
                    "format": "int64",
                    "description": "How long a NoExecute taint is tolerated.",
                },
            },
        },
    })
}

/// References to objects of the same namespace.
pub(crate) fn local_references(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": { "name": { "type": "string", "maxLength": 253, "description": "Name of the Secret." } },
        },
    })
}

/// `core/v1` resource requests and limits.
pub(crate) fn resources(_: &mut SchemaGenerator) -> Schema {
    let quantities = |what: &str| {
        json_schema!({
            "type": "object",
            "maxProperties": 16,
            "description": what,
            "additionalProperties": {
                "x-kubernetes-int-or-string": true,
                "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            },
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": quantities("What a node must have free."),
            "limits": quantities("What the server may use at most."),
        },
    })
}

/// `meta/v1` conditions, keyed by type.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": { "type": "string", "maxLength": 316, "description": "What is judged." },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"], "description": "The judgement." },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "description": "Generation of the spec that was judged.",
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When status last changed.",
                },
                "reason": { "type": "string", "maxLength": 1024, "description": "One word for programs." },
                "message": { "type": "string", "maxLength": 32768, "description": "One sentence for people." },
            },
        },
    })
}

/// Replaces Rust's unsigned formats, which the API server does not know and warns about, by `int64`.
pub(crate) fn sign_formats(schema: &mut Schema) {
    RecursiveTransform(|schema: &mut Schema| {
        let unsigned =
            schema.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint"));
        if unsigned {
            schema.insert("format".to_owned(), "int64".into());
        }
    })
    .transform(schema);
}
