//! The fields of a Node that a plan depends on.

use std::{collections::BTreeMap, fmt};

use gqla_api::{
    inventory::NodeInventory,
    labels::{GPU_DEVICE, GPU_INVENTORY, GPU_MULTIPROCESSORS, GPU_PRODUCT, NVIDIA_GPU},
};
use k8s_openapi::{
    api::core::v1::{Node, Toleration},
    apimachinery::pkg::api::resource::Quantity,
};

/// When GPU feature discovery last ran: new each time it restarts, and no statement about the node.
const TIMESTAMP: &str = "nvidia.com/gfd.timestamp";

/// A taint that keeps pods off a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key of the taint.
    pub key: String,
    /// Value of the taint.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: String,
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equals = if self.value.is_empty() { "" } else { "=" };
        write!(f, "{}{equals}{}:{}", self.key, self.value, self.effect)
    }
}

/// What keeps pods off a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle<'a> {
    /// The node is cordoned.
    Unschedulable,
    /// A taint that is not tolerated.
    Taint(&'a Taint),
}

/// The fields of a Node that a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetNode {
    /// Name of the node.
    pub name: String,
    /// All labels but timestamps: identification and node selectors look at any of them.
    pub labels: BTreeMap<String, String>,
    /// Taints that keep pods off, without the node lifecycle's own.
    pub taints: Vec<Taint>,
    /// Whether the node accepts pods.
    pub schedulable: bool,
    /// Allocatable `nvidia.com/gpu`.
    pub gpus: u32,
    /// `nvidia.com/gpu` in the node's capacity. While a kubelet or a device plugin restarts nothing is allocatable, and this
    /// is what the plugin told before.
    pub advertised: u32,
    /// What the node's agent published, read once; a sentence when it cannot be believed. No other annotation is kept.
    pub inventory: Option<Result<Box<NodeInventory>, String>>,
}

impl FleetNode {
    /// Prunes a Node.
    pub fn new(node: Node) -> Self {
        let spec = node.spec.unwrap_or_default();
        let status = node.status.unwrap_or_default();
        let labels = lasting(node.metadata.labels.unwrap_or_default());
        let annotation = node.metadata.annotations.and_then(|mut all| all.remove(GPU_INVENTORY));
        Self {
            name: node.metadata.name.unwrap_or_default(),
            inventory: annotation.map(|text| believed(&text, &labels)),
            labels,
            taints: spec
                .taints
                .unwrap_or_default()
                .into_iter()
                .filter_map(|taint| keeps_pods_off(&taint))
                .collect(),
            schedulable: spec.unschedulable != Some(true),
            gpus: gpus(status.allocatable.as_ref()),
            advertised: gpus(status.capacity.as_ref()),
        }
    }

    /// The agent's inventory, when there is one that can be believed.
    pub fn believed_inventory(&self) -> Option<&NodeInventory> {
        self.inventory.as_ref()?.as_deref().ok()
    }

    /// Whether pods with `tolerations` may run here.
    pub fn accepts(&self, tolerations: &[Toleration]) -> bool {
        self.obstacle(tolerations).is_none()
    }

    /// What keeps pods with `tolerations` off.
    pub fn obstacle(&self, tolerations: &[Toleration]) -> Option<Obstacle<'_>> {
        if !self.schedulable {
            return Some(Obstacle::Unschedulable);
        }
        let tolerated = |taint: &&Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
        self.taints.iter().find(|taint| !tolerated(taint)).map(Obstacle::Taint)
    }

    /// Whether the node carries every label of `selector`.
    pub fn matches(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

/// Pods are scheduled by the labels, so an annotation that does not say what they say cannot be planned by. The agent
/// writes both at once: when they differ, somebody else wrote one of them. Only multiprocessors may be in no label: older agents
/// do not write it.
fn believed(text: &str, labels: &BTreeMap<String, String>) -> Result<Box<NodeInventory>, String> {
    let inventory = NodeInventory::parse(text).map_err(|error| error.to_string())?;
    let written = [
        (GPU_DEVICE, Some(inventory.device_label())),
        (GPU_PRODUCT, inventory.product_label()),
        (GPU_MULTIPROCESSORS, inventory.multiprocessors_label()),
    ];
    let differs = |(label, written): (&str, Option<String>)| {
        let found = labels.get(label);
        let untold = label == GPU_MULTIPROCESSORS && found.is_none();
        (found != written.as_ref() && !untold).then(|| {
            format!(
                "annotation {GPU_INVENTORY} describes {label}={}, the label is {}: the node's agent writes both alike, so \
                 something else changed one; the labels decide until the agent writes again",
                written.as_deref().unwrap_or("(none)"),
                found.map_or("(absent)", String::as_str)
            )
        })
    };
    match written.into_iter().find_map(differs) {
        Some(sentence) => Err(sentence),
        None => Ok(Box::new(inventory)),
    }
}

fn gpus(resources: Option<&BTreeMap<String, Quantity>>) -> u32 {
    resources.and_then(|all| all.get(NVIDIA_GPU)?.0.parse().ok()).unwrap_or(0)
}

fn lasting(mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.remove(TIMESTAMP);
    labels
}

/// Taints under `node.kubernetes.io/` come and go with a node's health. Planning by them would move replicas, and
/// flip paths, whenever a kubelet is late; evicting and rescheduling is the scheduler's business.
fn keeps_pods_off(taint: &k8s_openapi::api::core::v1::Taint) -> Option<Taint> {
    let passing = taint.key.starts_with("node.kubernetes.io/") || taint.effect == "PreferNoSchedule";
    (!passing).then(|| Taint {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
    })
}

/// The scheduler's rule: key and effect match when equal or empty, `Exists` ignores the value.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let exists = toleration.operator.as_deref() == Some("Exists");
    let key = match toleration.key.as_deref() {
        None | Some("") => exists,
        Some(key) => key == taint.key,
    };
    let effect = match toleration.effect.as_deref() {
        None | Some("") => true,
        Some(effect) => effect == taint.effect,
    };
    key && effect && (exists || toleration.value.as_deref().unwrap_or_default() == taint.value)
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn node(spec: serde_json::Value) -> FleetNode {
        FleetNode::new(from_value(json!({ "metadata": { "name": "n" }, "spec": spec })).unwrap())
    }

    #[test]
    fn taints_are_tolerated_as_the_scheduler_does() {
        let tainted = node(json!({ "taints": [{ "key": "team", "value": "a", "effect": "NoSchedule" }] }));
        let cases = [
            (json!({ "key": "team", "value": "a" }), true),
            (json!({ "key": "team", "value": "b" }), false),
            (json!({ "key": "team", "operator": "Exists" }), true),
            (json!({ "operator": "Exists" }), true),
            (json!({ "key": "team", "operator": "Exists", "effect": "NoExecute" }), false),
            (json!({ "key": "other", "operator": "Exists" }), false),
        ];
        assert!(!tainted.accepts(&[]));
        let Some(Obstacle::Taint(taint)) = tainted.obstacle(&[]) else { panic!("it is tainted") };
        assert_eq!(taint.to_string(), "team=a:NoSchedule");
        for (toleration, accepted) in cases {
            assert_eq!(tainted.accepts(&[from_value(toleration.clone()).unwrap()]), accepted, "{toleration}");
        }
    }

    #[test]
    fn a_late_kubelet_changes_no_plan_but_a_cordon_does() {
        let late = json!([{ "key": "node.kubernetes.io/not-ready", "effect": "NoExecute" }]);
        assert!(node(json!({ "taints": late })).accepts(&[]));
        assert!(node(json!({ "taints": [{ "key": "x", "effect": "PreferNoSchedule" }] })).accepts(&[]));
        assert!(!node(json!({ "unschedulable": true })).accepts(&[]));
    }

    #[test]
    fn a_new_timestamp_is_no_change_but_another_label_is() {
        let labelled = |labels: serde_json::Value| {
            FleetNode::new(from_value(json!({ "metadata": { "name": "n", "labels": labels } })).unwrap())
        };
        let before = labelled(json!({ "zone": "a", "nvidia.com/gfd.timestamp": "1" }));
        assert_eq!(before, labelled(json!({ "zone": "a", "nvidia.com/gfd.timestamp": "2" })));
        assert_ne!(before, labelled(json!({ "zone": "b", "nvidia.com/gfd.timestamp": "1" })));
    }

    #[test]
    fn gpus_are_told_by_the_kubelet() {
        let status =
            json!({ "allocatable": { "nvidia.com/gpu": "7" }, "capacity": { "nvidia.com/gpu": "8" } });
        let node = FleetNode::new(from_value(json!({ "metadata": {}, "status": status })).unwrap());
        assert_eq!((node.gpus, node.advertised), (7, 8));
    }
}
