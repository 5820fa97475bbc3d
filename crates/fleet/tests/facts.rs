//! What is told of a node, in whatever order and from whomever, comes to one answer.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::collections::BTreeMap;

use gqla_api::inventory::{DriverState, GpuFacts, GpuHealth, NodeInventory};
use gqla_fleet::{
    AgentState, Agents, Fact, FactSource, FleetNode, Hardware, HardwareFacts, NodeHardware, ProblemKind,
    Recognition, describe, survey,
};
use gqla_planner::Catalogue;
use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use serde_json::{from_value, json};

use support::told::{gpu, labelled, ready, told};

fn source() -> impl Strategy<Value = FactSource> {
    prop::sample::select(vec![
        FactSource::Nvml,
        FactSource::ResourceSlice,
        FactSource::GfdLabel,
        FactSource::GpuClass,
        FactSource::Catalogue,
    ])
}

fn facts() -> impl Strategy<Value = HardwareFacts> {
    let number = || prop::option::of((0_u32..4, source()));
    (prop::option::of(("[ab]", source())), number(), number()).prop_map(|(product, gpus, memory)| {
        HardwareFacts {
            product: product.map(|(value, source)| Fact::told(value, source)),
            gpus: gpus.map(|(value, source)| Fact::told(value, source)),
            memory_mib: memory.map(|(value, source)| Fact::told(u64::from(value), source)),
            bytes_per_second: memory.map(|(value, source)| Fact::told(f64::from(value), source)),
            ..HardwareFacts::default()
        }
    })
}

fn merged(all: &[HardwareFacts]) -> HardwareFacts {
    all.iter().cloned().fold(HardwareFacts::default(), HardwareFacts::merge)
}

proptest! {
    #[test]
    fn any_order_and_any_repetition_gives_the_same(
        (all, shuffled) in prop::collection::vec(facts(), 0..6).prop_flat_map(|all| {
            (Just(all.clone()), Just(all).prop_shuffle())
        }),
    ) {
        prop_assert_eq!(merged(&all), merged(&shuffled));
        prop_assert_eq!(merged(&[all.clone(), shuffled].concat()), merged(&all));
    }

    #[test]
    fn dropping_weaker_facts_changes_no_stronger_answer(all in prop::collection::vec(facts(), 1..6), keep in source()) {
        let strong = |facts: &HardwareFacts| HardwareFacts {
            product: facts.product.clone().filter(|fact| fact.source <= keep),
            gpus: facts.gpus.clone().filter(|fact| fact.source <= keep),
            memory_mib: facts.memory_mib.clone().filter(|fact| fact.source <= keep),
            bytes_per_second: facts.bytes_per_second.clone().filter(|fact| fact.source <= keep),
            ..HardwareFacts::default()
        };
        let stronger: Vec<_> = all.iter().map(strong).collect();
        prop_assert_eq!(merged(&stronger), strong(&merged(&all)));
    }

    #[test]
    fn what_labels_say_never_changes_nvmls_word(node in support::node(), product in "[A-Za-z0-9._-]{0,20}") {
        let agents_word = node.metadata.labels.as_ref().and_then(|labels| labels.get("gqla.dev/gpu.device"));
        let stated = node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key("gqla.dev/gpu-class"));
        prop_assume!(!stated && agents_word.is_some_and(|word| u16::from_str_radix(word, 16).is_ok()));
        let mut relabelled = node.clone();
        relabelled.metadata.labels.get_or_insert_default().insert("nvidia.com/gpu.product".to_owned(), product);
        let class = |node: Node| describe(&[node], &[], &[], None)[0].recognition.clone();
        prop_assert_eq!(class(node), class(relabelled));
    }

    #[test]
    fn nothing_anybody_writes_on_a_node_panics(
        labels in prop::collection::btree_map("(gqla.dev/gpu(-class|.device|.product|.multiprocessors)|nvidia.com/gpu.(product|memory|count))", ".{0,70}", 0..6),
        annotation in ".{0,300}",
        inventory in support::inventory(),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = inventory.render().unwrap();
        let torn: String = whole.chars().take(cut.index(whole.len() + 1)).collect();
        for annotation in [annotation, torn, whole] {
            let mut node = labelled(json!({}));
            node.metadata.labels = Some(labels.clone());
            node.metadata.annotations = Some(BTreeMap::from([("gqla.dev/gpu-inventory".to_owned(), annotation)]));
            prop_assert_eq!(describe(&[node], &[], &[], None).len(), 1);
        }
    }
}

proptest! {
    #[test]
    fn a_known_name_with_anything_added_is_never_taken_for_that_card(
        index in any::<prop::sample::Index>(),
        addition in "[A-Za-z0-9._-]{1,8}",
        in_front in any::<bool>(),
    ) {
        let catalogue = Catalogue::builtin();
        let known: Vec<(&str, &str)> = catalogue
            .iter()
            .flat_map(|class| class.product_labels.iter().map(|label| (class.name(), label.as_ref())))
            .collect();
        let (name, label) = *index.get(&known);
        let product = if in_front { format!("{addition}{label}") } else { format!("{label}{addition}") };
        let found = one(labelled(json!({ "nvidia.com/gpu.product": product })));
        let is_another_exact_label = known.iter().any(|(_, other)| *other == product);
        prop_assert!(found.recognition.class() != Some(name) || is_another_exact_label, "{product} was taken for {name}");
    }
}

fn one(node: Node) -> NodeHardware {
    describe(&[node], &[], &[], None).remove(0)
}

fn kinds(hardware: &NodeHardware) -> Vec<ProblemKind> {
    hardware.problems.iter().map(|problem| problem.kind).collect()
}

#[test]
fn every_label_of_the_catalogue_means_one_class() {
    let catalogue = Catalogue::builtin();
    for class in catalogue.iter() {
        for label in class.product_labels.iter() {
            let node = labelled(json!({ "nvidia.com/gpu.product": label }));
            assert_eq!(one(node).recognition.class(), Some(class.name()), "{label}");
        }
    }
}

/// What a product label of its own leads to.
#[test]
fn product_labels_lead_where_the_table_says() {
    let table = [
        ("NVIDIA-H20", "H20"),
        ("H20", "H20"),
        ("NVIDIA-H20-3e", "H20-3e"),
        ("NVIDIA-H200", "H200"),
        ("H200", "H200"),
        ("NVIDIA-H200-NVL", "UnknownProduct"),
        ("H100-80GB-HBM3", "H100"),
        ("NVIDIA-GH200-480GB", "UnknownProduct"),
        ("NVIDIA-A100-PCIE-80GB", "A100-PCIe"),
        ("NVIDIA-A100-80GB-PCIe", "A100-PCIe"),
        ("NVIDIA-L40", "UnknownProduct"),
        ("NVIDIA-L4", "L4"),
        ("NVIDIA-A10", "A10"),
        ("NVIDIA-A100", "UnknownProduct"),
        ("NVIDIA-H800", "H800"),
        ("NVIDIA-A800-SXM4-80GB", "A800"),
        ("NVIDIA-GB200", "GB200"),
        ("NVIDIA-B300-SXM6-AC", "B300"),
        ("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition", "RTX-PRO-6000"),
        ("NVIDIA-H20-SHARED", "SharedGpu"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", "MigSlice"),
        ("NVIDIA-H20-MIG-1g.12gb-SHARED", "MigSlice"),
        ("NVIDIA-H200-MIG-INVALID", "MigSlice"),
        ("CPU", "UnknownProduct"),
        ("nvidia-h20", "UnknownProduct"),
        ("NVIDIA-NVIDIA-H20", "UnknownProduct"),
        ("", "Unlabelled"),
    ];
    for (product, expected) in table {
        let hardware = one(labelled(json!({ "nvidia.com/gpu.product": product })));
        let problem = || hardware.problems.first().map(|problem| problem.kind.as_str());
        assert_eq!(hardware.recognition.class().or_else(problem), Some(expected), "{product}");
    }
}

#[test]
fn a_node_without_gpu_labels_is_a_cpu_node_and_one_awaiting_discovery_is_not() {
    let cases = [
        (json!({ "kubernetes.io/arch": "amd64", "nvidia.com/gpu.present": "false" }), Recognition::Cpu),
        (json!({ "nvidia.com/gpu.present": "true" }), Recognition::Unlabelled),
        (json!({ "feature.node.kubernetes.io/pci-10de.present": "true" }), Recognition::Unlabelled),
        (json!({ "feature.node.kubernetes.io/pci-0302_10de.present": "true" }), Recognition::Unlabelled),
        (json!({ "feature.node.kubernetes.io/pci-0300_10de.present": "true" }), Recognition::Unlabelled),
        (json!({ "cloud.google.com/gke-accelerator": "nvidia-x9" }), Recognition::Unlabelled),
    ];
    for (labels, expected) in cases {
        assert_eq!(one(labelled(labels.clone())).recognition, expected, "{labels}");
    }
}

#[test]
fn a_stated_class_is_taken_in_the_spellings_that_pods_require() {
    let stated =
        |name: &str| one(labelled(json!({ "gqla.dev/gpu-class": name, "nvidia.com/gpu.product": "X" })));
    for (name, class) in [
        ("h20", "H20"),
        ("H20", "H20"),
        ("h100-pcie", "H100-PCIe"),
        ("H100-PCIE", "H100-PCIe"),
        ("H100-PCIe", "H100-PCIe"),
    ] {
        assert_eq!(stated(name).recognition.class(), Some(class), "{name}");
    }
    for (name, words) in [
        ("H100-pcie", "the label must be spelled H100-PCIe"),
        ("x9", "the label names no class of the catalogue; create a GPUClass x9 or correct the label"),
    ] {
        let wrong = stated(name);
        assert_eq!((wrong.recognition.class(), kinds(&wrong)), (None, vec![ProblemKind::UnknownClass]));
        assert_eq!(wrong.problems[0].sentence, words);
    }
}

#[test]
fn a_declared_class_may_claim_a_slice() {
    let declared = from_value(json!({
        "metadata": { "name": "h20-1g" },
        "spec": { "memoryGiB": 12, "memoryBandwidthGBps": 500, "bf16TFLOPS": 18,
                  "productLabels": ["NVIDIA-H20-MIG-1g.12gb"] },
    }))
    .unwrap();
    let nodes = ["NVIDIA-H20-MIG-1g.12gb", "NVIDIA-H20"]
        .map(|product| labelled(json!({ "nvidia.com/gpu.product": product })));
    let described = describe(&nodes, &[declared], &[], None);
    let classes: Vec<_> = described.iter().map(|hardware| hardware.recognition.class()).collect();
    assert_eq!(classes, [Some("h20-1g"), Some("H20")]);
}

#[test]
fn a_survey_counts_nodes_and_what_they_hold() {
    let node = |name: &str, product: &str, gpus: &str| {
        let mut node = labelled(json!({ "nvidia.com/gpu.product": product }));
        node.metadata.name = Some(name.to_owned());
        let gpus = from_value(json!(gpus)).unwrap();
        let allocatable = node.status.get_or_insert_default().allocatable.get_or_insert_default();
        allocatable.insert("nvidia.com/gpu".to_owned(), gpus);
        FleetNode::new(node)
    };
    let nodes = [
        node("a", "NVIDIA-H200", "4"),
        node("b", "NVIDIA-H200", "8"),
        node("c", "NVIDIA-H20", "8"),
        node("d", "X9", "8"),
    ];
    let hardware = Hardware::new(Catalogue::builtin(), nodes.iter(), &BTreeMap::new(), None);
    let survey = survey(&hardware, &hardware.nodes);
    assert_eq!(survey.classes.keys().collect::<Vec<_>>(), ["H20", "H200"]);
    assert_eq!((survey.classes["H200"].most_gpus(), survey.classes["H200"].capacity(3)), (8, 3));
    let wrong: Vec<_> = survey.problems.iter().map(|problem| (problem.node.as_str(), problem.kind)).collect();
    assert_eq!(wrong, [("d", ProblemKind::UnknownProduct)]);
}

#[test]
fn nvml_wins_over_a_lying_label_and_says_so() {
    let h20 = ready(vec![gpu("NVIDIA H20", 0x2329); 8]);
    for label in [json!({ "nvidia.com/gpu.product": "NVIDIA-H200" }), json!({ "gqla.dev/gpu-class": "H200" })]
    {
        let hardware = one(told(&h20, label));
        assert_eq!(hardware.recognition.class(), Some("H20"));
        assert_eq!(kinds(&hardware), [ProblemKind::LyingLabel]);
        let problem = &hardware.problems[0];
        assert!(problem.fact.contains("H200"), "{problem:?}");
        assert_eq!(
            problem.sentence,
            "NVML says NVIDIA-H20, PCI device 2329, and NVML wins: the node counts as H20; correct or remove the label"
        );
    }
    // Somebody's device and somebody else's name: the device decides.
    let odd = GpuFacts { multiprocessors: None, ..gpu("NVIDIA H20", 0x2335) };
    let odd = one(told(&ready(vec![odd]), json!({ "gqla.dev/gpu-class": "h20" })));
    assert_eq!((odd.recognition.class(), kinds(&odd)), (Some("H200"), vec![ProblemKind::LyingLabel]));
    let agreed =
        one(told(&h20, json!({ "nvidia.com/gpu.product": "NVIDIA-H20", "gqla.dev/gpu-class": "h20" })));
    assert_eq!((agreed.recognition.class(), kinds(&agreed)), (Some("H20"), vec![]));
}

#[test]
fn multiprocessors_overrule_a_name_and_tell_namesakes_apart() {
    use gqla_api::GPUClass;
    let cut = GpuFacts { multiprocessors: Some(60), ..gpu("NVIDIA H20", 0x2399) };
    let hardware = one(told(&ready(vec![cut.clone()]), json!({})));
    assert_eq!(hardware.recognition, Recognition::Unknown { class: Some("unknown-2399".to_owned()) });
    let words = "it goes by the name of H20, but has 60 multiprocessors and not 78, so no class has this GPU";
    assert!(hardware.problems[0].sentence.starts_with(words), "{hardware:?}");
    let small: GPUClass = from_value(json!({
        "metadata": { "name": "h20-small" },
        "spec": { "memoryGiB": 96, "memoryBandwidthGBps": 4000, "bf16TFLOPS": 110, "multiprocessors": 60,
                  "productLabels": ["NVIDIA-H20"] },
    }))
    .unwrap();
    let full = gpu("NVIDIA H20", 0x239a);
    let nodes = [told(&ready(vec![cut]), json!({})), told(&ready(vec![full]), json!({}))];
    let classes: Vec<_> = describe(&nodes, &[small], &[], None)
        .iter()
        .map(|hardware| hardware.recognition.class().map(str::to_owned))
        .collect();
    assert_eq!(classes, [Some("h20-small".to_owned()), Some("H20".to_owned())]);
}

#[test]
fn one_odd_node_does_not_stop_its_fleet() {
    let odd = GpuFacts { multiprocessors: Some(60), ..gpu("NVIDIA H20", 0x2329) };
    let nodes = [odd, gpu("NVIDIA H20", 0x2329)].map(|gpu| told(&ready(vec![gpu]), json!({})));
    let described = describe(&nodes, &[], &[], None);
    let classes = [&described[0], &described[1]].map(|hardware| hardware.recognition.class());
    assert_eq!(classes, [Some("unknown-2329"), Some("H20")]);
    assert_eq!((kinds(&described[0]), kinds(&described[1])), (vec![ProblemKind::UnknownProduct], vec![]));
}

/// What an agent wrote, and what others made of the label: only exactly a class's number, or none, is that class.
#[test]
fn the_label_of_multiprocessors_decides() {
    let table = [
        (Some("78"), Some("H20"), vec![]),
        (None, Some("H20"), vec![]),
        (Some("132"), None, vec![ProblemKind::BadAnnotation, ProblemKind::UnknownProduct]),
        (Some("078"), None, vec![ProblemKind::BadAnnotation, ProblemKind::UnknownProduct]),
        (Some("+78"), None, vec![ProblemKind::BadAnnotation, ProblemKind::UnknownProduct]),
        (Some(""), None, vec![ProblemKind::BadAnnotation, ProblemKind::UnknownProduct]),
    ];
    for (label, class, problems) in table {
        let mut node = told(&ready(vec![gpu("NVIDIA H20", 0x2329)]), json!({}));
        let labels = node.metadata.labels.as_mut().unwrap();
        labels.remove("gqla.dev/gpu.multiprocessors");
        labels.extend(label.map(|label| ("gqla.dev/gpu.multiprocessors".to_owned(), label.to_owned())));
        let hardware = one(node);
        assert_eq!((hardware.recognition.class(), kinds(&hardware)), (class, problems), "{label:?}");
        if label == Some("132") {
            let words = "describes gqla.dev/gpu.multiprocessors=78, the label is 132";
            assert!(hardware.problems[0].sentence.contains(words), "{hardware:?}");
        }
    }
}

#[test]
fn a_count_that_no_agent_told_is_not_believed() {
    let uncounted = GpuFacts { multiprocessors: None, ..gpu("NVIDIA H20", 0x2329) };
    let mut node = told(&ready(vec![uncounted]), json!({}));
    assert_eq!(kinds(&one(node.clone())), []);
    node.metadata.labels.as_mut().unwrap().insert("gqla.dev/gpu.multiprocessors".to_owned(), "78".to_owned());
    let hardware = one(node);
    assert_eq!(
        (hardware.recognition.class(), kinds(&hardware)),
        (Some("H20"), vec![ProblemKind::BadAnnotation])
    );
    assert!(
        hardware.problems[0].sentence.contains("gpu.multiprocessors=(none), the label is 78"),
        "{hardware:?}"
    );
}

#[test]
fn an_unknown_gpu_is_derived_cautiously_or_says_what_is_missing() {
    let unknown = gpu("NVIDIA X9", 0x9999);
    let node = told(&ready(vec![unknown.clone()]), json!({}));
    let hardware = one(node.clone());
    assert_eq!(hardware.recognition.class(), Some("unknown-9999"));
    let bandwidth = hardware.facts.bytes_per_second.unwrap();
    assert_eq!((bandwidth.value / 1e9).round(), 4023.0);
    // 78 multiprocessors of 4096 FLOPs at 1980 MHz are 632.6 TFLOP/s.
    assert_eq!((hardware.facts.flops_per_second.unwrap().value / 1e12).round(), 316.0);
    // Which kernels it has is no guess.
    let nodes = [FleetNode::new(node)];
    let fleet = Hardware::new(Catalogue::builtin(), nodes.iter(), &BTreeMap::new(), None);
    let class = &fleet.class("unknown-9999").unwrap().spec;
    let capability = class.compute_capability.map(|capability| capability.to_string());
    assert_eq!((capability.as_deref(), class.derived), (Some("9.0"), true));
    let blind = GpuFacts { memory_bus_bits: None, ..unknown };
    let hardware = one(told(&ready(vec![blind]), json!({})));
    assert_eq!((hardware.recognition.class(), kinds(&hardware)), (None, vec![ProblemKind::UnknownProduct]));
    assert!(hardware.problems[0].sentence.contains("NVML does not tell: memory bus width;"), "{hardware:?}");
}

#[test]
fn a_restarted_kubelet_moves_nothing() {
    let restarting = |node: &mut Node| {
        let status = node.status.get_or_insert_default();
        status.capacity = status.allocatable.replace(Default::default());
    };
    let mut announced = told(&NodeInventory::default(), json!({ "nvidia.com/gpu.product": "NVIDIA-H20" }));
    let mut seen = told(&ready(vec![gpu("NVIDIA H20", 0x2329); 8]), json!({}));
    for node in [&mut announced, &mut seen] {
        restarting(node);
        let hardware = one(node.clone());
        assert_eq!((hardware.gpus.allocatable, hardware.gpus.usable), (0, 8));
    }
}

#[test]
fn usable_gpus_are_those_that_work_and_outlive_their_driver() {
    let mut inventory = ready(vec![gpu("NVIDIA H20", 0x2329); 8]);
    inventory.gpus.iter_mut().zip(0..).for_each(|(gpu, index)| gpu.index = index);
    inventory.gpus[3].health = GpuHealth::Lost;
    inventory.gpus[5].health = GpuHealth::Xid(79);
    let hardware = one(told(&inventory, json!({})));
    assert_eq!((hardware.gpus.allocatable, hardware.gpus.healthy, hardware.gpus.usable), (8, Some(6), 6));
    assert_eq!(kinds(&hardware), [ProblemKind::GpuLost, ProblemKind::GpuUnhealthy]);
    assert_eq!(hardware.problems[0].fact, "GPU 3");
    inventory.driver = DriverState::Missing;
    let mut gone = told(&inventory, json!({}));
    gone.status = None;
    let hardware = one(gone);
    assert_eq!((hardware.gpus.allocatable, hardware.gpus.usable), (0, 6), "the device plugin lost them too");
    assert!(kinds(&hardware).contains(&ProblemKind::DriverMissing));
    inventory.driver = DriverState::TooOld;
    let unseen = NodeInventory { driver: DriverState::TooOld, ..NodeInventory::default() };
    let labels = json!({ "nvidia.com/gpu.product": "NVIDIA-H20" });
    for (inventory, healthy) in [(&inventory, Some(6)), (&unseen, None)] {
        let hardware = one(told(inventory, labels.clone()));
        assert_eq!((hardware.gpus.healthy, hardware.gpus.usable), (healthy, 0), "CUDA 12 does not run there");
        assert!(kinds(&hardware).contains(&ProblemKind::DriverTooOld));
    }
    let none = NodeInventory::default();
    assert_eq!(kinds(&one(told(&none, json!({})))), [], "a node without GPUs needs no driver");
}

#[test]
fn mixed_sliced_and_unbelievable_nodes_are_told() {
    let h20 = gpu("NVIDIA H20", 0x2329);
    let mixed = one(told(
        &ready(vec![h20.clone(), gpu("NVIDIA H200", 0x2335)]),
        json!({ "gqla.dev/gpu-class": "h20" }),
    ));
    assert_eq!((mixed.recognition.class(), mixed.problems[0].kind), (None, ProblemKind::MixedModels));
    assert_eq!(mixed.problems[0].fact, "1 × NVIDIA H20, 1 × NVIDIA H200");
    let sliced = one(told(&ready(vec![GpuFacts { mig: Some(vec![]), ..h20.clone() }]), json!({})));
    assert_eq!(
        (sliced.recognition.clone(), kinds(&sliced)),
        (Recognition::MigSlice, vec![ProblemKind::MigSlice])
    );
    let mut forged = told(&ready(vec![h20]), json!({}));
    let labels = forged.metadata.labels.as_mut().unwrap();
    labels.insert("gqla.dev/gpu.device".to_owned(), "2335".to_owned());
    let half = one(forged.clone());
    assert_eq!(
        half.recognition.class(),
        Some("H20"),
        "an H200 has other multiprocessors, and the name is an H20's"
    );
    forged
        .metadata
        .labels
        .as_mut()
        .unwrap()
        .insert("gqla.dev/gpu.multiprocessors".to_owned(), "132".to_owned());
    let forged = one(forged);
    assert_eq!(forged.problems[0].kind, ProblemKind::BadAnnotation);
    assert!(forged.problems[0].sentence.contains("describes gqla.dev/gpu.device=2329, the label is 2335"));
    assert_eq!((forged.recognition.class(), forged.gpus.healthy), (Some("H200"), None), "the labels decide");
}

#[test]
fn control_characters_are_not_believed_and_not_repeated() {
    let mut inventory = ready(vec![gpu("NVIDIA H20", 0x2329)]);
    inventory.message = Some("red \u{1b}[31m\nand bell\u{7}".to_owned());
    let hardware = one(told(&inventory, json!({})));
    assert_eq!(kinds(&hardware), [ProblemKind::BadAnnotation]);
    assert!(!hardware.problems[0].sentence.contains(char::is_control), "{hardware:?}");
    assert_eq!(hardware.recognition.class(), Some("H20"), "the labels decide");
}

#[test]
fn facts_of_an_absent_agent_are_old_and_nothing_else_changes() {
    let node = told(&ready(vec![gpu("NVIDIA H20", 0x2329); 8]), json!({}));
    let agents = |ready, now| Agents {
        by_node: BTreeMap::from([("n".to_owned(), AgentState { ready, since: 0 })]),
        known_since: Some(0),
        now,
    };
    let at =
        |ready, now| describe(std::slice::from_ref(&node), &[], &[], Some(&agents(ready, now))).remove(0);
    let (fresh, old) = (at(true, 400), at(false, 400));
    assert_eq!((fresh.stale, old.stale), (None, Some("5 min")));
    assert_eq!((&fresh.recognition, fresh.gpus, &fresh.facts), (&old.recognition, old.gpus, &old.facts));
    assert_eq!(kinds(&old), [ProblemKind::StaleFacts]);
}

#[test]
fn resource_slices_tell_more_than_labels_and_less_than_nvml() {
    let slice = from_value(json!({ "metadata": {}, "spec": {
        "driver": "gpu.nvidia.com", "nodeName": "n",
        "pool": { "name": "p", "generation": 1, "resourceSliceCount": 1 },
        "devices": [{ "name": "gpu-0", "capacity": { "memory": { "value": "97871Mi" } }, "attributes": {
            "type": { "string": "gpu" }, "productName": { "string": "NVIDIA H20" } } }],
    }}))
    .unwrap();
    let slices = [slice];
    let labels = json!({ "nvidia.com/gpu.product": "NVIDIA-H200", "nvidia.com/gpu.memory": "143771" });
    let lying = describe(&[labelled(labels.clone())], &[], &slices, None).remove(0);
    assert_eq!((lying.recognition.class(), kinds(&lying)), (None, vec![ProblemKind::LyingLabel]));
    assert_eq!(lying.facts.memory_mib, Some(Fact::told(97_871, FactSource::ResourceSlice)));
    let h100 = GpuFacts { multiprocessors: Some(132), ..gpu("NVIDIA H100 80GB HBM3", 0x2330) };
    let h100 = ready(vec![h100]);
    let h100 = describe(&[told(&h100, labels)], &[], &slices, None).remove(0);
    assert_eq!(h100.recognition.class(), Some("H100"));
    assert_eq!(h100.facts.product, Some(Fact::told("NVIDIA-H100-80GB-HBM3".to_owned(), FactSource::Nvml)));
}
