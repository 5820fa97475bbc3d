//! Random fleets, and the scheduler's rule.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod told;

use std::collections::BTreeMap;

use gqla_api::{
    GPUClass, GPUClassSpec, NodeLabel,
    inventory::{DriverState, GpuFacts, GpuHealth, MigSlices, NodeInventory},
};
use gqla_planner::Catalogue;
use k8s_openapi::{
    api::core::v1::{Node, NodeSelectorTerm},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use proptest::prelude::*;
use serde_json::{from_value, json};

pub const DEVICES: [u16; 6] = [0x2329, 0x2335, 0x2330, 0x26b9, 0x2399, 0x00ff];
const PRODUCTS: [&str; 5] = ["NVIDIA H20", "NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA X9", ""];
const LABELS: [&str; 9] = [
    "NVIDIA-H20",
    "NVIDIA-H200",
    "H20",
    "NVIDIA-X9",
    "NVIDIA-X9-SHARED",
    "NVIDIA-H20-MIG-1g.12gb",
    "NVIDIA-X9-MIG-2g.10gb",
    "NVIDIA-H100-80GB-HBM3",
    "",
];
const STATED: [&str; 12] =
    ["h20", "H20", "H200", "h100", "cpu", "CPU", "x9", "X9", "capped", "Capped", "nothing", "unknown-2399"];
const NAMES: [&str; 7] = ["x9", "capped", "h20", "h200", "cpu", "unknown-2399", "slice"];
const ANNOUNCED: [(&str, &str); 6] = [
    ("cloud.google.com/gke-accelerator", "nvidia-h100-80gb"),
    ("cloud.google.com/gke-accelerator", "nvidia-x9"),
    ("karpenter.k8s.aws/instance-gpu-name", "h200"),
    ("karpenter.k8s.aws/instance-gpu-name", "h100"),
    ("example.com/gpu", "a"),
    ("example.com/gpu", "b"),
];

pub fn multiprocessors() -> impl Strategy<Value = Option<u32>> {
    prop::sample::select(vec![None, Some(60), Some(78), Some(132)])
}

pub fn gpu() -> impl Strategy<Value = GpuFacts> {
    (
        prop::sample::select(&DEVICES[..]),
        prop::sample::select(&PRODUCTS[..]),
        multiprocessors(),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.7),
        prop::sample::select(vec![
            GpuHealth::Healthy,
            GpuHealth::Healthy,
            GpuHealth::Lost,
            GpuHealth::Xid(79),
        ]),
    )
        .prop_map(|(device, product, multiprocessors, sliced, complete, health)| GpuFacts {
            product: product.to_owned(),
            pci_device_id: device,
            multiprocessors,
            health,
            mig: sliced
                .then(|| vec![MigSlices { profile: "1g.12gb".to_owned(), count: 7, ..Default::default() }]),
            memory_mib: 40_000,
            memory_bus_bits: complete.then_some(5120),
            memory_clock_mhz: complete.then_some(2000),
            clock_mhz: complete.then_some(1500),
            compute_capability: complete.then(|| "9.0".to_owned()),
            ..GpuFacts::default()
        })
}

pub fn inventory() -> impl Strategy<Value = NodeInventory> {
    let driver = prop::sample::select(vec![DriverState::Ready, DriverState::Ready, DriverState::Missing]);
    let gpus = prop_oneof![
        6 => (gpu(), 1_usize..4).prop_map(|(gpu, count)| vec![gpu; count]),
        1 => prop::collection::vec(gpu(), 0..3),
    ];
    (driver, gpus).prop_map(|(driver, gpus)| NodeInventory { driver, gpus, ..NodeInventory::default() })
}

fn maybe<T: Clone + std::fmt::Debug + 'static>(
    share: f64,
    values: &'static [T],
) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(share, prop::sample::select(values))
}

/// A node with whatever its agent, an administrator, GPU feature discovery and a cloud wrote on it.
pub fn node() -> impl Strategy<Value = Node> {
    let labels = (
        maybe(0.3, &STATED),
        maybe(0.5, &LABELS),
        maybe(0.1, &["mps", "time-slicing", "none"]),
        prop::collection::vec(prop::sample::select(&ANNOUNCED[..]), 0..2),
        prop::bool::weighted(0.1),
    );
    let tampered = maybe(
        0.2,
        &[
            ("gqla.dev/gpu.device", "2335"),
            ("gqla.dev/gpu.device", "xyz"),
            ("gqla.dev/gpu.product", "NVIDIA-H20"),
            ("gqla.dev/gpu.multiprocessors", "78"),
            ("gqla.dev/gpu.multiprocessors", "132"),
            ("gqla.dev/gpu.multiprocessors", "078"),
            ("gqla.dev/gpu.multiprocessors", ""),
        ],
    );
    let agent = prop::option::weighted(0.7, (inventory(), prop::bool::weighted(0.2)));
    (agent, labels, tampered).prop_map(|(agent, own, tampered)| {
        let (stated, discovered, sharing, announced, present) = own;
        let mut labels: BTreeMap<String, String> = BTreeMap::new();
        let mut annotations: BTreeMap<String, String> = BTreeMap::new();
        let mut put = |key: &str, value: Option<&str>| {
            labels.extend(value.map(|value| (key.to_owned(), value.to_owned())));
        };
        if let Some((inventory, is_old)) = agent {
            put("gqla.dev/gpu.device", Some(&inventory.device_label()));
            put("gqla.dev/gpu.product", inventory.product_label().as_deref());
            put(
                "gqla.dev/gpu.multiprocessors",
                inventory.multiprocessors_label().filter(|_| !is_old).as_deref(),
            );
            annotations.insert("gqla.dev/gpu-inventory".to_owned(), inventory.render().unwrap());
        }
        put("gqla.dev/gpu-class", stated);
        put("nvidia.com/gpu.product", discovered);
        put("nvidia.com/gpu.sharing-strategy", sharing);
        put("nvidia.com/gpu.present", present.then_some("true"));
        announced.into_iter().for_each(|(key, value)| put(key, Some(value)));
        tampered.into_iter().for_each(|(key, value)| put(key, Some(value)));
        Node {
            metadata: ObjectMeta {
                labels: Some(labels),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            ..from_value(json!({ "metadata": {}, "status": { "allocatable": { "nvidia.com/gpu": "8" } } }))
                .unwrap()
        }
    })
}

/// Several, each with a name of its own.
pub fn nodes() -> impl Strategy<Value = Vec<Node>> {
    prop::collection::vec(node(), 1..8).prop_map(|mut nodes| {
        for (index, node) in nodes.iter_mut().enumerate() {
            node.metadata.name = Some(format!("n{index}"));
        }
        nodes
    })
}

fn class() -> impl Strategy<Value = GPUClass> {
    (
        prop::sample::select(&NAMES[..]),
        prop::collection::btree_set(prop::sample::select(&DEVICES[..]), 0..3),
        prop::collection::btree_set(prop::sample::select(&LABELS[..LABELS.len() - 1]), 0..3),
        multiprocessors(),
        prop::collection::btree_set(prop::sample::select(&ANNOUNCED[..]), 0..2),
    )
        .prop_map(|(name, devices, labels, multiprocessors, announced)| {
            let spec = GPUClassSpec {
                memory_gib: Some(96.0),
                memory_bandwidth_gbps: Some(4000.0),
                bf16_tflops: Some(148.0),
                pci_device_ids: devices.iter().map(|id| format!("{id:04x}")).collect(),
                product_labels: labels.into_iter().map(str::to_owned).collect(),
                multiprocessors,
                node_labels: announced
                    .into_iter()
                    .map(|(key, value)| NodeLabel { key: key.to_owned(), value: value.to_owned() })
                    .collect(),
                ..GPUClassSpec::default()
            };
            GPUClass::new(name, spec)
        })
}

pub fn catalogue() -> impl Strategy<Value = Catalogue> {
    prop::collection::vec(class(), 0..4).prop_map(|declared| gqla_fleet::classes(&declared).catalogue)
}

/// The scheduler's rule for required node affinity, written apart from the product's.
pub fn schedulable(terms: &[NodeSelectorTerm], node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let name = BTreeMap::from([("metadata.name".to_owned(), node.metadata.name.clone().unwrap_or_default())]);
    terms.iter().any(|term| {
        let expressions = term.match_expressions.iter().flatten().map(|one| (one, &labels));
        let fields = term.match_fields.iter().flatten().map(|one| (one, &name));
        expressions.chain(fields).all(|(one, of)| {
            let found = of.get(&one.key);
            let values = one.values.clone().unwrap_or_default();
            match (one.operator.as_str(), found) {
                ("In", Some(value)) => values.contains(value),
                ("In", None) => false,
                ("NotIn", Some(value)) => !values.contains(value),
                ("NotIn", None) | ("DoesNotExist", None) | ("Exists", Some(_)) => true,
                ("DoesNotExist", Some(_)) | ("Exists", None) => false,
                (other, _) => panic!("operator {other} is not the scheduler's"),
            }
        })
    })
}
