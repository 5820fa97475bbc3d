//! A pod of a class lands on a node exactly when the fleet counts the node as that class.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use gqla_api::inventory::GpuFacts;
use gqla_fleet::{FleetNode, Hardware, SliceDevice, SliceFacts};
use gqla_planner::Catalogue;
use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use serde_json::{from_value, json};

use support::{
    catalogue, nodes, schedulable,
    told::{gpu, labelled, ready, told},
};

fn hardware(catalogue: Catalogue, nodes: &[Node], slices: &BTreeMap<String, SliceFacts>) -> Hardware {
    let pruned: Vec<_> = nodes.iter().cloned().map(FleetNode::new).collect();
    Hardware::new(catalogue, pruned.iter(), slices, None)
}

/// Every class a node counts as, or that there is.
fn classes(catalogue: &Catalogue, hardware: &Hardware) -> BTreeSet<String> {
    let known = catalogue.iter().map(|class| class.name().to_owned());
    let counted = hardware.nodes.iter().filter_map(|node| node.recognition.class().map(str::to_owned));
    known.chain(counted).collect()
}

fn check(
    catalogue: &Catalogue,
    nodes: &[Node],
    slices: &BTreeMap<String, SliceFacts>,
) -> Result<(), TestCaseError> {
    let hardware = hardware(catalogue.clone(), nodes, slices);
    for class in classes(catalogue, &hardware) {
        let terms = hardware.terms(&class, &BTreeMap::new());
        for (node, described) in nodes.iter().zip(&hardware.nodes) {
            let counted = described.recognition.class() == Some(class.as_str());
            prop_assert_eq!(
                schedulable(&terms, node),
                counted,
                "class {}: {:?} with {:?} is {:?}",
                class,
                node.metadata.labels,
                node.metadata.annotations,
                described.recognition
            );
        }
    }
    Ok(())
}

fn slices() -> impl Strategy<Value = BTreeMap<String, SliceFacts>> {
    let device =
        (prop::sample::select(vec!["NVIDIA-H20", "NVIDIA-H200"]), prop::bool::weighted(0.1)).prop_map(
            |(product, is_slice)| SliceDevice { product: product.to_owned(), is_slice, memory_mib: None },
        );
    let facts = prop::collection::vec(device, 1..3).prop_map(|devices| SliceFacts { devices });
    prop::collection::btree_map("n[0-7]", facts, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_wrong_class_never_gets_a_pod(catalogue in catalogue(), nodes in nodes()) {
        check(&catalogue, &nodes, &BTreeMap::new())?;
    }

    #[test]
    fn nor_where_resource_slices_contradict_labels(catalogue in catalogue(), nodes in nodes(), slices in slices()) {
        check(&catalogue, &nodes, &slices)?;
    }

    #[test]
    fn a_node_selector_narrows_every_alternative(catalogue in catalogue(), nodes in nodes()) {
        let hardware = hardware(catalogue.clone(), &nodes, &BTreeMap::new());
        let selector = BTreeMap::from([("example.com/pool".to_owned(), "a".to_owned())]);
        for class in classes(&catalogue, &hardware) {
            let terms = hardware.terms(&class, &selector);
            prop_assert!(nodes.iter().all(|node| !schedulable(&terms, node)));
        }
    }
}

/// Nodes that do not exist yet carry a cloud's labels only, and autoscalers compare those.
#[test]
fn an_announced_node_matches_before_anything_runs_on_it() {
    let hardware = Hardware::new(Catalogue::builtin(), [].iter(), &BTreeMap::new(), None);
    let cases = [
        (json!({ "cloud.google.com/gke-accelerator": "nvidia-h100-80gb" }), Some("H100")),
        (json!({ "karpenter.k8s.aws/instance-gpu-name": "h200" }), Some("H200")),
        (json!({ "karpenter.k8s.aws/instance-gpu-name": "a100" }), None),
        (json!({ "nvidia.com/gpu.product": "NVIDIA-H20" }), Some("H20")),
        (json!({ "gqla.dev/gpu.device": "2329" }), Some("H20")),
        (json!({ "gqla.dev/gpu.device": "2329", "gqla.dev/gpu.multiprocessors": "132" }), None),
        (json!({ "gqla.dev/gpu-class": "h20" }), Some("H20")),
        (json!({ "kubernetes.io/arch": "amd64" }), Some("CPU")),
    ];
    for (labels, expected) in cases {
        let node = labelled(labels.clone());
        let matching: Vec<_> = Catalogue::builtin()
            .iter()
            .map(|class| class.name().to_owned())
            .filter(|class| schedulable(&hardware.terms(class, &BTreeMap::new()), &node))
            .collect();
        assert_eq!(matching, Vec::from_iter(expected), "{labels}");
    }
}

fn seen(name: &str, product: &str, device: u16, multiprocessors: u32) -> Node {
    let gpu = GpuFacts { multiprocessors: Some(multiprocessors), ..gpu(product, device) };
    let mut node = told(&ready(vec![gpu; 8]), json!({}));
    node.metadata.name = Some(name.to_owned());
    node
}

/// Autoscalers add no node for pods with `matchFields`, and a pool whose terms change is rolled.
#[test]
fn an_odd_node_changes_nothing_for_its_class() {
    let (none, any) = (BTreeMap::new(), BTreeMap::new());
    let (honest, odd) = (seen("a", "NVIDIA H20", 0x2329, 78), seen("b", "NVIDIA H20", 0x2329, 132));
    let mut old = seen("c", "NVIDIA H20", 0x2329, 78);
    old.metadata.labels.as_mut().unwrap().remove("gqla.dev/gpu.multiprocessors");
    let nodes = [honest, odd, old];
    let before = hardware(Catalogue::builtin(), &nodes[..1], &none);
    let after = hardware(Catalogue::builtin(), &nodes, &none);
    let classes: Vec<_> = after.nodes.iter().map(|node| node.recognition.class()).collect();
    assert_eq!(classes, [Some("H20"), Some("unknown-2329"), Some("H20")]);
    for class in Catalogue::builtin().iter() {
        let terms = after.terms(class.name(), &any);
        assert_eq!(terms, before.terms(class.name(), &any), "{}", class.name());
        assert!(terms.iter().all(|term| term.match_fields.is_none()), "{}", class.name());
        assert!(terms.len() <= 16, "{} has {} terms", class.name(), terms.len());
    }
    let fits = |class: &str| [0, 1, 2].map(|node| schedulable(&after.terms(class, &any), &nodes[node]));
    assert_eq!((fits("H20"), fits("unknown-2329")), ([true, false, true], [false, true, false]));
}

/// An administrator's wrong statement is one kind of node; the others of its device stay as they are.
#[test]
fn a_lying_statement_adds_a_term_and_changes_none() {
    let (none, any) = (BTreeMap::new(), BTreeMap::new());
    let mut lying = seen("b", "NVIDIA H20", 0x2329, 78);
    lying.metadata.labels.as_mut().unwrap().insert("gqla.dev/gpu-class".to_owned(), "H200".to_owned());
    let nodes = [seen("a", "NVIDIA H20", 0x2329, 78), lying];
    let [before, after] =
        [1, 2].map(|count| hardware(Catalogue::builtin(), &nodes[..count], &none).terms("H20", &any));
    assert_eq!((after.len(), &after[1..]), (before.len() + 1, &before[..]));
    assert!(nodes.iter().all(|node| schedulable(&after, node)));
}

/// A device that a GPUClass has with other multiprocessors is told by product: a statement is not what makes it count, and so
/// does not have it count when it is shared.
#[test]
fn a_statement_does_not_open_a_shared_node_that_counts_by_its_product() {
    let spec = from_value(json!({
        "memoryGiB": 24, "memoryBandwidthGBps": 300, "bf16TFLOPS": 120, "multiprocessors": 60, "pciDeviceIDs": ["00ff"],
    }));
    let catalogue = gqla_fleet::classes(&[gqla_api::GPUClass::new("x9", spec.unwrap())]).catalogue;
    let stated = |name: &str, shared: Option<&str>| {
        let mut node = seen(name, "NVIDIA H200", 0x00ff, 132);
        let labels = node.metadata.labels.as_mut().unwrap();
        labels.insert("gqla.dev/gpu-class".to_owned(), "H200".to_owned());
        labels.extend(shared.map(|how| ("nvidia.com/gpu.sharing-strategy".to_owned(), how.to_owned())));
        node
    };
    let nodes = [stated("a", None), stated("b", Some("mps"))];
    check(&catalogue, &nodes, &BTreeMap::new()).unwrap();
    check(&catalogue, &nodes[1..], &BTreeMap::new()).unwrap();
    let terms = hardware(catalogue, &nodes, &BTreeMap::new()).terms("H200", &BTreeMap::new());
    assert_eq!([0, 1].map(|node| schedulable(&terms, &nodes[node])), [true, false]);
}

/// Whether terms change when a class that nothing shares a name with is declared, with `key` announcing it.
fn rolled(key: &str) -> Vec<String> {
    use gqla_api::{GPUClass, GPUClassSpec};
    let spec: GPUClassSpec = from_value(json!({
        "memoryGiB": 24, "memoryBandwidthGBps": 300, "bf16TFLOPS": 120, "multiprocessors": 58,
        "pciDeviceIDs": ["27ff"], "productLabels": ["NVIDIA-X9"],
        "nodeLabels": [{ "key": key, "value": "nvidia-x9" }],
    }))
    .unwrap();
    let nameless =
        GPUClassSpec { pci_device_ids: vec![], product_labels: vec![], node_labels: vec![], ..spec.clone() };
    let declared = [GPUClass::new("x9", spec), GPUClass::new("h20-capped", nameless)];
    let after = Hardware::new(gqla_fleet::classes(&declared).catalogue, [].iter(), &BTreeMap::new(), None);
    let before = Hardware::new(Catalogue::builtin(), [].iter(), &BTreeMap::new(), None);
    let terms = |hardware: &Hardware, class: &str| hardware.terms(class, &BTreeMap::new());
    let catalogue = Catalogue::builtin();
    let names = catalogue.iter().map(|class| class.name().to_owned());
    names.filter(|class| terms(&before, class) != terms(&after, class)).collect()
}

/// Pods of other classes are rolled only where a term must name what the new class is announced by.
#[test]
fn a_new_class_changes_the_terms_of_those_announced_by_another_key() {
    let catalogue = Catalogue::builtin();
    for (key, cpu) in [("cloud.google.com/gke-accelerator", false), ("example.com/gpu", true)] {
        let others = |class: &gqla_planner::GpuClass| class.node_labels.iter().any(|(other, _)| other != key);
        let expected = catalogue.iter().filter(|class| others(class) || (cpu && class.name() == "CPU"));
        let expected: Vec<_> = expected.map(|class| class.name().to_owned()).collect();
        assert_eq!(rolled(key), expected, "{key}");
        assert!(expected.len() < catalogue.iter().count(), "{expected:?}");
    }
}

/// Too many names for a pod's template: better no pod than one on a node whose labels lie.
#[test]
fn too_many_nodes_with_wrong_labels_close_the_class() {
    let device = SliceDevice { product: "NVIDIA-H200".to_owned(), is_slice: false, memory_mib: None };
    for (wrong, closed) in [(gqla_fleet::MAX_REFUTED, false), (gqla_fleet::MAX_REFUTED + 1, true)] {
        let nodes: Vec<Node> = (0..=wrong)
            .map(|index| {
                let mut node = labelled(json!({ "nvidia.com/gpu.product": "NVIDIA-H20" }));
                node.metadata.name = Some(format!("n{index}"));
                node
            })
            .collect();
        let facts = |index| (format!("n{index}"), SliceFacts { devices: vec![device.clone()] });
        let hardware = hardware(Catalogue::builtin(), &nodes, &(0..wrong).map(facts).collect());
        let terms = hardware.terms("H20", &BTreeMap::new());
        assert_eq!((terms.is_empty(), hardware.refuted_nodes("H20").count()), (closed, wrong));
        assert!(nodes[..wrong].iter().all(|node| !schedulable(&terms, node)));
        assert_eq!(schedulable(&terms, &nodes[wrong]), !closed);
        assert!(!hardware.terms("H100", &BTreeMap::new()).is_empty());
    }
}
