//! Nodes that are only API objects, kept Ready by kwok, for scale and for machines nobody has here. Their
//! pods are Running as soon as they are bound.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

/// The annotation, `key=value`, by which kwok knows its nodes.
pub(crate) const ANNOTATION: &str = "kwok.x-k8s.io/node=fake";

/// What nodes that kwok plays look like: 32 CPUs, 256 GiB and 110 pods unless told otherwise. All have the
/// taint `kwok.x-k8s.io/node=fake:NoSchedule`, which a pod must tolerate, so that no pod that is meant to run
/// lands on one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KwokNode {
    prefix: String,
    labels: BTreeMap<String, String>,
    capacity: BTreeMap<String, String>,
}

impl KwokNode {
    /// Nodes named `PREFIX-0`, `PREFIX-1` and so on.
    pub fn new(prefix: impl Into<String>) -> Self {
        let capacity = [("cpu", "32"), ("memory", "256Gi"), ("pods", "110")]
            .map(|(name, amount)| (name.to_owned(), amount.to_owned()));
        Self { prefix: prefix.into(), labels: BTreeMap::new(), capacity: capacity.into() }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Sets the amount of a resource, such as 8 of `nvidia.com/gpu`.
    #[must_use]
    pub fn capacity(mut self, resource: impl Into<String>, amount: impl Into<String>) -> Self {
        self.capacity.insert(resource.into(), amount.into());
        self
    }

    pub(crate) fn name(&self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// The object to create for node `index`.
    pub(crate) fn object(&self, index: usize) -> Result<Node, serde_json::Error> {
        let (key, value) = ANNOTATION.split_once('=').unwrap_or((ANNOTATION, ""));
        let name = self.name(index);
        let mut labels = self.labels.clone();
        labels.extend(
            [("kubernetes.io/hostname", name.as_str()), ("kubernetes.io/os", "linux"), ("type", "kwok")]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": {key: value}},
            "spec": {"taints": [{"key": key, "value": value, "effect": "NoSchedule"}]},
            "status": {"capacity": self.capacity, "allocatable": self.capacity},
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_labels_the_taint_and_what_it_can_hold() {
        let node = KwokNode::new("h20")
            .label("nvidia.com/gpu.product", "NVIDIA-H20")
            .capacity("nvidia.com/gpu", "8")
            .object(3)
            .unwrap();
        assert_eq!(node.metadata.name.as_deref(), Some("h20-3"));
        let labels = node.metadata.labels.unwrap();
        assert_eq!(labels["nvidia.com/gpu.product"], "NVIDIA-H20");
        assert_eq!(labels["kubernetes.io/hostname"], "h20-3");
        assert_eq!(node.metadata.annotations.unwrap()["kwok.x-k8s.io/node"], "fake");
        let taint = &node.spec.unwrap().taints.unwrap()[0];
        assert_eq!(
            (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
            ("kwok.x-k8s.io/node", Some("fake"), "NoSchedule")
        );
        assert_eq!(node.status.unwrap().allocatable.unwrap()["nvidia.com/gpu"].0, "8");
    }
}
