//! Memory of the fleet, measured on the process: alone in its binary, because resident memory belongs to all tests of one.
//! Linux only, as the operator is.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::collections::BTreeMap;

use gqla_api::inventory::{DriverState, GpuFacts, NodeInventory};
use gqla_operator::fleet::Fleet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;
use serde_json::{from_value, json};

const NODES: usize = 5000;
const FLIPS: usize = 10_000;
/// Most that a storm may leave behind, in KiB: less than half a KiB of each change.
const GROWTH: u64 = 4 * 1024;

/// Resident memory in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// 30 labels, 8 GPUs with every field, and an annotation of somebody else.
fn node(index: usize, flip: usize) -> Node {
    let gpu = |gpu: u32| GpuFacts {
        index: gpu,
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        uuid: format!("GPU-{index:08}-{gpu:04}-4000-8000-000000000000"),
        pci_bus_id: format!("00000000:{gpu:02X}:00.0"),
        pci_device_id: 0x2330,
        multiprocessors: Some(132),
        compute_capability: Some("9.0".to_owned()),
        memory_mib: 81_559,
        memory_bus_bits: Some(5120),
        memory_clock_mhz: Some(2619),
        clock_mhz: Some(1980),
        nvlinks: 18,
        nvlink_peers: (0..8).filter(|peer| *peer != gpu).collect(),
        ..GpuFacts::default()
    };
    let inventory = NodeInventory {
        driver: DriverState::Ready,
        since: "2026-01-01T00:00:00Z".to_owned(),
        driver_version: Some("550.54.15".to_owned()),
        cuda_version: Some("12.4".to_owned()),
        gpus: (0..8).map(gpu).collect(),
        ..NodeInventory::default()
    };
    let mut labels: BTreeMap<String, String> = (0..27)
        .map(|label| (format!("example.com/some-label-{label:02}"), format!("value-{index}-{label}")))
        .collect();
    labels.insert("gqla.dev/gpu.device".to_owned(), inventory.device_label());
    labels.insert("gqla.dev/gpu.product".to_owned(), inventory.product_label().unwrap());
    labels.insert("gqla.dev/gpu.multiprocessors".to_owned(), inventory.multiprocessors_label().unwrap());
    labels.insert("example.com/flip".to_owned(), flip.to_string());
    from_value(json!({
        "metadata": {
            "name": format!("node-{index:05}"), "labels": labels,
            "annotations": { "gqla.dev/gpu-inventory": inventory.render().unwrap(), "big": "x".repeat(4096) },
        },
        "status": { "allocatable": { "nvidia.com/gpu": "8" } },
    }))
    .unwrap()
}

#[test]
fn nodes_are_small_and_a_storm_of_labels_leaves_memory_flat() {
    let fleet = Fleet::default();
    fleet.class_event(Event::Init);
    fleet.class_event(Event::InitDone);
    let empty = resident();
    fleet.node_event(Event::Init);
    (0..NODES).for_each(|index| fleet.node_event(Event::InitApply(node(index, 0))));
    fleet.node_event(Event::InitDone);
    assert_eq!(fleet.snapshot().hardware.nodes.len(), NODES);
    let full = resident();
    let per_node = (full - empty) * 1024 / NODES as u64;
    println!("{per_node} bytes a node");
    assert!(per_node <= 20 * 1024, "{per_node} bytes a node");

    // The first one leaves the allocator what two pictures at once need; the second may need no more.
    storm(&fleet, 0);
    let warm = resident();
    storm(&fleet, FLIPS);
    assert_eq!(fleet.snapshot().nodes[0].labels["example.com/flip"], (2 * FLIPS - NODES + 1).to_string());
    let after = resident();
    println!("{full} KiB before the storms, {warm} KiB after one, {after} KiB after two");
    assert!(after <= warm + GROWTH, "{warm} KiB after one storm, {after} KiB after two");
}

fn storm(fleet: &Fleet, first: usize) {
    let mut held = fleet.snapshot();
    for flip in first..first + FLIPS {
        fleet.node_event(Event::Apply(node(flip % NODES, flip + 1)));
        // Passes hold a picture while the next ones are taken.
        if flip % 500 == 0 {
            held = fleet.snapshot();
        }
    }
    assert_eq!(held.nodes.len(), NODES);
}
