//! Hand-written schemas for the Kubernetes types the spec embeds.
//!
//! k8s-openapi can derive them, but drags kilobytes of prose about quantities into every map and declares no
//! maxima, which CEL's cost estimate needs.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A value that a label may have.
pub(crate) const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

/// A key that a label may have.
pub(crate) const LABEL_KEY: &str =
    "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";

/// A PCI device id as agents write it into a label.
pub(crate) const PCI_DEVICE_ID: &str = "^[0-9a-f]{4}$";

/// Major and minor version of a GPU's instructions.
pub(crate) const COMPUTE_CAPABILITY: &str = r"^[1-9][0-9]?\.[0-9]$";

/// `Auto` or 1 to 1024. Patterns judge only strings and limits only numbers.
pub(crate) fn tensor_parallel(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "pattern": "^Auto$",
        "maxLength": 8,
        "minimum": 1,
        "maximum": 1024,
    })
}

/// `Auto`, `Off` or 0 to 8.
pub(crate) fn multi_token_prediction(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "pattern": "^(Auto|Off)$",
        "maxLength": 8,
        "minimum": 0,
        "maximum": 8,
    })
}

/// A count or a percentage.
pub(crate) fn int_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "maxLength": 4,
        "pattern": "^[0-9]{1,2}%$|^100%$",
        "minimum": 0,
        "maximum": i32::MAX,
    })
}

/// Labels a node must carry, at least one.
pub(crate) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
    })
}

/// Labels that leave the operator's prefix alone.
pub(crate) fn pod_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": { "type": "string", "maxLength": 63, "pattern": LABEL_VALUE },
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
                "value": {
                    "type": "string",
                    "maxLength": 63,
                    "pattern": LABEL_VALUE,
                    "description": "Taint value.",
                },
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
