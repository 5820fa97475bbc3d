//! Nodes as their agents leave them.

use std::collections::BTreeMap;

use gqla_api::inventory::{DriverState, GpuFacts, NodeInventory};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, from_value, json};

pub fn labelled(labels: Value) -> Node {
    from_value(json!({
        "metadata": { "name": "n", "labels": labels }, "status": { "allocatable": { "nvidia.com/gpu": "8" } },
    }))
    .unwrap()
}

/// An H20 in all but its names.
pub fn gpu(product: &str, device: u16) -> GpuFacts {
    GpuFacts {
        product: product.to_owned(),
        pci_device_id: device,
        multiprocessors: Some(78),
        memory_mib: 97_871,
        memory_bus_bits: Some(6144),
        memory_clock_mhz: Some(2619),
        clock_mhz: Some(1980),
        compute_capability: Some("9.0".to_owned()),
        ..GpuFacts::default()
    }
}

/// A node as its agent leaves it, with `labels` of others.
pub fn told(inventory: &NodeInventory, labels: Value) -> Node {
    let mut node = labelled(labels);
    let own = node.metadata.labels.get_or_insert_default();
    own.insert("gqla.dev/gpu.device".to_owned(), inventory.device_label());
    own.extend(inventory.product_label().map(|product| ("gqla.dev/gpu.product".to_owned(), product)));
    let count = inventory.multiprocessors_label();
    own.extend(count.map(|count| ("gqla.dev/gpu.multiprocessors".to_owned(), count)));
    node.metadata.annotations =
        Some(BTreeMap::from([("gqla.dev/gpu-inventory".to_owned(), inventory.render().unwrap())]));
    node
}

pub fn ready(gpus: Vec<GpuFacts>) -> NodeInventory {
    NodeInventory { driver: DriverState::Ready, gpus, ..NodeInventory::default() }
}
