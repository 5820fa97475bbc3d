//! Objects that tests start from.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be made fails the test")]

use std::sync::Arc;

use gqla_api::GQLADeployment;
use gqla_fleet::{FleetNode, NodeSlice, classes, slice_facts};
use k8s_openapi::api::{core::v1::Node, resource::v1::ResourceSlice};
use serde_json::{Value, from_value, json};

use crate::{
    fleet::FleetSnapshot,
    validate::{ValidatedDeployment, validate},
};

/// DeepSeek's attention on a model of a size that fits.
pub fn deepseek_shape() -> Value {
    json!({
        "numAttentionHeads": 128, "numKeyValueHeads": 8, "kvLoraRank": 512, "qkNopeHeadDim": 128, "qkRopeHeadDim": 64,
        "vHeadDim": 128, "hiddenSize": 2048, "numHiddenLayers": 16, "parameters": 2_500_000_000_u64,
        "numNextnPredictLayers": 1, "maxPositionEmbeddings": 32768,
    })
}

/// GLM-4.7-Flash's shape.
pub fn glm_shape() -> Value {
    json!({
        "numAttentionHeads": 20, "numKeyValueHeads": 4, "kvLoraRank": 512, "qkNopeHeadDim": 192, "qkRopeHeadDim": 64,
        "vHeadDim": 256, "hiddenSize": 2048, "numHiddenLayers": 47, "parameters": 30_000_000_000_u64,
        "numNextnPredictLayers": 1, "maxPositionEmbeddings": 32768,
    })
}

/// A GQLADeployment with `spec` merged over a minimal one.
pub fn deployment(spec: Value) -> GQLADeployment {
    let mut merged = json!({
        "model": { "source": { "persistentVolumeClaim": { "claimName": "m" } }, "shape": deepseek_shape() },
        "placement": { "strategy": "Spread" },
        "replicas": 2,
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        merged[key] = value.clone();
    }
    from_value(json!({
        "apiVersion": "gqla.dev/v1alpha1", "kind": "GQLADeployment",
        "metadata": { "name": "d", "namespace": "n", "uid": "u", "generation": 3 },
        "spec": merged,
    }))
    .unwrap()
}

/// A valid one.
pub fn validated(spec: Value) -> ValidatedDeployment {
    validate(&deployment(spec), "server:1").unwrap()
}

/// A node with a GPU product and a number of GPUs, or a CPU node.
pub fn node(name: &str, product: Option<&str>, gpus: u32) -> Node {
    let labels = product.map_or(json!({}), |product| json!({ "nvidia.com/gpu.product": product }));
    from_value(json!({
        "metadata": { "name": name, "labels": labels },
        "status": { "allocatable": { "nvidia.com/gpu": gpus.to_string() } },
    }))
    .unwrap()
}

/// A fleet of these nodes.
pub fn fleet(nodes: Vec<Node>) -> FleetSnapshot {
    fleet_with_slices(nodes, &[])
}

/// A fleet of these nodes, of which the DRA driver tells as well.
pub fn fleet_with_slices(nodes: Vec<Node>, slices: &[ResourceSlice]) -> FleetSnapshot {
    let nodes = nodes.into_iter().map(|node| Arc::new(FleetNode::new(node))).collect();
    let slices: Vec<_> = slices.iter().filter_map(NodeSlice::of).collect();
    FleetSnapshot::new(nodes, &classes([]), &slice_facts(slices.iter()), None)
}

/// One H100, one H20 and one CPU node.
pub fn mixed() -> FleetSnapshot {
    fleet(vec![
        node("h100", Some("NVIDIA-H100-80GB-HBM3"), 8),
        node("h20", Some("NVIDIA-H20"), 8),
        node("cpu", None, 0),
    ])
}
