use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use serde_json::{Value, from_value, json};

use super::*;
use crate::{
    fixtures::{fleet, node, validated},
    plan::plan,
    validate::Shape,
};

const H100: &str = "NVIDIA-H100-80GB-HBM3";

fn planned(spec: Value, fleet: &FleetSnapshot) -> (Plan, Vec<NodeUse>) {
    let valid = validated(spec);
    let Shape::Known(shape) = valid.shape.clone() else { panic!("the fixture has a shape") };
    let plan = plan(&valid, &shape, fleet);
    let uses = node_uses(&valid, &plan, fleet);
    (plan, uses)
}

fn with_spec(mut node: Node, spec: Value) -> Node {
    node.spec = from_value(spec).unwrap();
    node
}

/// Every way for a node to be left out, and the sentence.
#[test]
fn a_node_that_is_not_used_is_told_why() {
    let taint = json!({ "taints": [{ "key": "team", "value": "a", "effect": "NoSchedule" }] });
    let nodes = || {
        vec![
            node("used", Some(H100), 8),
            node("small", Some(H100), 1),
            node("other", Some("NVIDIA-H20"), 8),
            node("unknown", Some("NVIDIA-X9"), 8),
            node("cpu", None, 0),
            with_spec(node("tainted", Some(H100), 8), taint.clone()),
            with_spec(node("cordoned", Some(H100), 8), json!({ "unschedulable": true })),
        ]
    };
    let cuda = json!({ "device": "CUDA" });
    let two = json!({ "tensorParallel": 2 });
    let cases = [
        (
            json!({ "runtime": cuda, "decode": two, "placement": { "allowedClasses": ["h100"] } }),
            [
                "pool h100 counts on it",
                "a replica of pool h100 needs 2 GPUs, 1 of the node's are usable",
                "its class is not in placement.allowedClasses",
                "NVIDIA-X9",
                "its class is not in placement.allowedClasses",
                "its taint team=a:NoSchedule is not tolerated",
                "it is cordoned",
            ],
        ),
        (
            json!({ "runtime": cuda, "placement": { "strategy": "Throughput" } }),
            [
                "pool h100 counts on it",
                "pool h100 counts on it",
                "by placement.strategy Throughput other classes get all of the 2 replicas",
                "NVIDIA-X9",
                "only runtime.device: CPU uses such nodes",
                "its taint",
                "it is cordoned",
            ],
        ),
        (
            json!({ "runtime": cuda, "pools": [
                { "name": "a", "gpuClass": "H20", "decode": { "tensorParallel": 3 } },
                { "name": "b", "nodeSelector": { "nvidia.com/gpu.product": H100, "zone": "a" } },
            ]}),
            [
                "pool a is of class H20; pool b's nodeSelector does not match its labels",
                "pool a is of class H20; pool b's",
                "pool a has no plan; pool b's nodeSelector does not match",
                "NVIDIA-X9",
                "pool a is of class H20",
                "its taint",
                "it is cordoned",
            ],
        ),
        (
            json!({ "runtime": { "device": "CPU" }, "replicas": 3 }),
            [
                "pool h100 counts on it",
                "pool h100 counts on it",
                "pool h20 counts on it",
                "NVIDIA-X9",
                "pool cpu counts on it",
                "its taint",
                "it is cordoned",
            ],
        ),
    ];
    for (spec, expected) in cases {
        let (_, uses) = planned(spec.clone(), &fleet(nodes()));
        for (told, words) in uses.iter().zip(expected) {
            assert!(told.why.contains(words), "{spec}: node {}: {}", told.node, told.why);
            assert_eq!(told.is_used(), words.ends_with("counts on it"), "{spec}: {told:?}");
        }
    }
}

#[test]
fn a_class_that_cannot_hold_the_model_says_so() {
    let mut large = crate::fixtures::deepseek_shape();
    large["parameters"] = json!(30_000_000_000_u64);
    let source = json!({ "persistentVolumeClaim": { "claimName": "m" } });
    let spec = json!({ "runtime": { "device": "CUDA" }, "model": { "source": source, "shape": large } });
    let nodes = vec![node("large", Some(H100), 8), node("small", Some("NVIDIA-L4"), 1)];
    let (plan, uses) = planned(spec, &fleet(nodes));
    assert!(plan.failures.is_empty(), "{:?}", plan.failures);
    assert!(uses[0].is_used() && !uses[1].is_used());
    assert!(uses[1].why.starts_with("pool l4: no way to run this model on L4"), "{}", uses[1].why);
}

fn any_node() -> impl Strategy<Value = (usize, u32, bool, bool)> {
    (0..4_usize, 0..9_u32, any::<bool>(), any::<bool>())
}

proptest! {
    /// A node is told to be used exactly where the plan counted on it.
    #[test]
    fn told_and_counted_nodes_are_the_same(
        drawn in prop::collection::vec(any_node(), 0..8), kind in 0..4_usize, degree in 1..3_u32,
    ) {
        let products = [Some(H100), Some("NVIDIA-H20"), Some("NVIDIA-X9"), None];
        let nodes = drawn.into_iter().enumerate().map(|(index, (product, gpus, cordoned, zone))| {
            let mut drawn = node(&format!("n{index}"), products[product], gpus);
            if zone {
                drawn.metadata.labels.get_or_insert_default().insert("zone".to_owned(), "a".to_owned());
            }
            with_spec(drawn, json!({ "unschedulable": cordoned }))
        });
        let fleet = fleet(nodes.collect());
        let specs = [
            json!({ "runtime": { "device": "CUDA" } }),
            json!({ "runtime": { "device": "CPU" } }),
            json!({ "runtime": { "device": "CUDA" }, "pools": [
                { "name": "a", "gpuClass": "h20" }, { "name": "b", "nodeSelector": { "zone": "a" } } ] }),
            json!({ "runtime": { "device": "CUDA" }, "placement": { "strategy": "Throughput" } }),
        ];
        let mut spec = specs[kind].clone();
        if kind != 1 {
            spec["decode"] = json!({ "tensorParallel": degree });
        }
        let (plan, uses) = planned(spec, &fleet);
        for pool in &plan.pools {
            let told: Vec<_> = uses.iter().filter(|told| told.pools.contains(&pool.name)).collect();
            let gpus: u32 = told.iter().map(|told| told.gpus).sum();
            prop_assert_eq!((told.len(), gpus), (pool.nodes, pool.gpus), "{}: {:?}", pool.name, uses);
        }
        prop_assert!(uses.iter().all(|told| !told.why.is_empty()), "{:?}", uses);
    }
}
