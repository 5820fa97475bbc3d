use std::sync::Arc;

use gqla_api::GPUClass;
use gqla_model::{CacheFormat, DecodePath};
use serde_json::{Value, from_value, json};

use super::*;
use crate::{
    fixtures::{deepseek_shape, fleet, fleet_with_slices, glm_shape, mixed, node, validated},
    parse_calibration, record,
    validate::{SERVER_BUILD, Shape},
};

fn planned(spec: Value, fleet: &FleetSnapshot) -> Plan {
    let valid = validated(spec);
    let Shape::Known(shape) = valid.shape.clone() else { panic!("the fixture has a shape") };
    plan(&valid, &shape, fleet)
}

fn decisions(plan: &Plan) -> Vec<(&str, DecodePath, u32, u32, u32)> {
    let decision = |pool: &'_ PoolPlan| {
        let chosen = &pool.decision.chosen;
        (chosen.path, chosen.tensor_parallel, chosen.multi_token_prediction, pool.replicas)
    };
    plan.pools
        .iter()
        .map(|pool| {
            let (path, degree, drafts, replicas) = decision(pool);
            (pool.name.as_str(), path, degree, drafts, replicas)
        })
        .collect()
}

#[test]
fn one_model_takes_two_paths_on_two_classes() {
    let plan = planned(json!({ "runtime": { "device": "CUDA" } }), &mixed());
    assert_eq!(
        decisions(&plan),
        [("h100", DecodePath::MqaAbsorb, 1, 1, 1), ("h20", DecodePath::Gqa, 1, 1, 1)],
        "{:?}",
        plan.failures
    );
}

#[test]
fn another_shape_flips_the_h20() {
    let source = json!({ "persistentVolumeClaim": { "claimName": "m" } });
    let spec = json!({ "runtime": { "device": "CUDA" }, "model": { "source": source, "shape": glm_shape() },
                       "decode": { "tensorParallel": 1 } });
    let plan = planned(spec, &mixed());
    assert!(plan.pools.iter().all(|pool| pool.decision.chosen.path == DecodePath::MqaAbsorb), "{plan:?}");
}

#[test]
fn the_cpu_backend_runs_everywhere_and_says_what_it_is() {
    let plan = planned(json!({ "runtime": { "device": "CPU" }, "replicas": 3 }), &mixed());
    let names: Vec<_> = plan.pools.iter().map(|pool| (pool.name.as_str(), pool.replicas)).collect();
    assert_eq!(names, [("cpu", 1), ("h100", 1), ("h20", 1)], "{:?}", plan.failures);
    let chosen = plan.pools.iter().map(|pool| &pool.decision.chosen);
    assert!(chosen.clone().all(|chosen| chosen.tensor_parallel == 1 && chosen.multi_token_prediction == 0));
    let told = "runs the CPU backend on H100 nodes: path and figures are what is planned for the H100 itself";
    assert!(plan.pools[1].note.as_ref().is_some_and(|note| note.starts_with(told)), "{plan:?}");
    assert_eq!(plan.pools[0].note, None);
}

#[test]
fn a_cpu_s_cache_is_counted_as_its_pods_store_it() {
    let bytes = |arguments: &[&str]| {
        let runtime = json!({ "device": "CPU", "extraArgs": arguments });
        let plan =
            planned(json!({ "runtime": runtime, "pools": [{ "name": "a", "gpuClass": "CPU" }] }), &mixed());
        plan.pools[0].decision.chosen.bytes_per_token_layer
    };
    let default = bytes(&[]);
    assert_eq!(default, bytes(&[&format!("--kv-cache-dtype={}", CacheFormat::CPU_DEFAULT)]));
    let wide = bytes(&["--max-queued-requests=4", "--kv-cache-dtype", "f32"]);
    assert_eq!(wide, 2 * bytes(&["--kv-cache-dtype=bf16"]));
    let scaled = bytes(&["--kv-cache-dtype=int8"]);
    assert!(scaled > wide / 4 && scaled < wide / 2, "{scaled} of {wide}");
}

#[test]
fn the_cpu_backend_drafts_when_told_to() {
    for (asked, drafts) in [(json!("Auto"), 0), (json!("Off"), 0), (json!(1), 1)] {
        let spec = json!({ "runtime": { "device": "CPU" }, "decode": { "multiTokenPrediction": asked } });
        let plan = planned(spec, &mixed());
        assert!(!plan.pools.is_empty(), "{:?}", plan.failures);
        assert!(decisions(&plan).iter().all(|pool| pool.3 == drafts), "{plan:?}");
    }
    // The fixture has one prediction layer.
    let spec = json!({ "runtime": { "device": "CPU" }, "decode": { "multiTokenPrediction": 2 } });
    assert!(planned(spec, &mixed()).pools.is_empty());
}

#[test]
fn without_spread_the_best_class_gets_everything() {
    let spec = json!({ "runtime": { "device": "CUDA" }, "placement": { "strategy": "Throughput" } });
    let plan = planned(spec.clone(), &mixed());
    assert_eq!(plan.pools.len(), 1, "{plan:?}");
    assert_eq!((plan.pools[0].class.as_str(), plan.pools[0].replicas), ("H100", 2));
    let mut none = spec;
    none["replicas"] = json!(0);
    let plan = planned(none, &mixed());
    assert_eq!(plan.pools.iter().map(|pool| pool.replicas).collect::<Vec<_>>(), [0]);
}

#[test]
fn cost_prefers_more_tokens_for_the_money() {
    let mut fleet = mixed();
    let spec = json!({ "runtime": { "device": "CUDA" }, "placement": { "strategy": "Cost" } });
    fleet.costs = BTreeMap::from([("H100".to_owned(), 100.0), ("H20".to_owned(), 1.0)]);
    assert_eq!(planned(spec, &fleet).pools[0].class, "H20");
}

#[test]
fn unusable_nodes_are_not_planned_for() {
    let mut cordoned = node("h100", Some("NVIDIA-H100-80GB-HBM3"), 8);
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    let fleet = fleet(vec![cordoned, node("h20", Some("NVIDIA-H20"), 8)]);
    let plan = planned(json!({ "runtime": { "device": "CUDA" } }), &fleet);
    assert_eq!(decisions(&plan).iter().map(|decision| decision.0).collect::<Vec<_>>(), ["h20"]);
}

#[test]
fn a_cpu_pod_runs_the_ranks_that_are_asked_for() {
    let plan = |degree: u32| {
        let decode = json!({ "tensorParallel": degree });
        planned(json!({ "runtime": { "device": "CPU" }, "decode": decode }), &mixed())
    };
    assert!(plan(4).pools.iter().all(|pool| pool.decision.chosen.tensor_parallel == 4));
    let refused = plan(16);
    assert!(refused.pools.is_empty(), "{refused:?}");
    assert!(refused.failures[0].sentence.contains("runs at most 8 ranks"), "{:?}", refused.failures);
}

/// Each failure, its reason and what it says; the other pool goes on.
#[test]
fn failures_are_sentences_and_stay_alone() {
    use ConditionReason::{InvalidSpec, NoFeasiblePlan, NoUsableNodes};
    let good = json!({ "name": "good", "gpuClass": "H20" });
    let device = json!({ "device": "CUDA" });
    let cases = [
        (json!({ "name": "a", "gpuClass": "X9" }), InvalidSpec, "gpuClass X9 is not in the catalogue"),
        (json!({ "name": "a", "gpuClass": "A100" }), NoUsableNodes, "no schedulable node of class A100"),
        (json!({ "name": "a", "gpuClass": "CPU" }), InvalidSpec, "class CPU has none"),
        (json!({ "name": "a", "nodeSelector": { "x": "y" } }), NoUsableNodes, "matches its nodeSelector"),
        (
            json!({ "name": "a", "gpuClass": "H100", "decode": { "tensorParallel": 16 } }),
            NoUsableNodes,
            "a replica needs 16 nvidia.com/gpu on one node, the largest usable H100 node offers 8",
        ),
        (
            json!({ "name": "a", "gpuClass": "H100", "decode": { "tensorParallel": 3 } }),
            InvalidSpec,
            "(128 mod 3 = 2)",
        ),
    ];
    for (pool, reason, sentence) in cases {
        let plan = planned(json!({ "runtime": device, "pools": [pool, good] }), &mixed());
        assert_eq!(plan.pools.len(), 1, "{sentence}");
        assert_eq!(plan.failures[0].reason, reason, "{:?}", plan.failures);
        assert!(plan.failures[0].sentence.contains(sentence), "{:?}", plan.failures);
        assert!(plan.keeps("a") && !plan.keeps("good"));
    }
    let none =
        planned(json!({ "runtime": device, "pools": [{ "name": "a", "gpuClass": "A100" }] }), &mixed());
    assert!(none.keeps("a") && !none.keeps("left the spec"), "{none:?}");
    let mut huge = deepseek_shape();
    huge["parameters"] = json!(671_000_000_000_u64);
    let source = json!({ "persistentVolumeClaim": { "claimName": "m" } });
    let plan = planned(json!({ "runtime": device, "model": { "source": source, "shape": huge } }), &mixed());
    assert!(plan.failures.iter().any(|failure| failure.reason == NoFeasiblePlan), "{plan:?}");
    assert!(plan.keeps("whatever runs already"));
}

/// What its pods would refuse to start for is refused before there are any, in the same words; the processor runs all of it.
#[test]
fn a_class_without_kernels_for_a_model_gets_no_pod() {
    let turing = json!({
        "memoryGiB": 16, "memoryBandwidthGBps": 320, "bf16TFLOPS": 65, "computeCapability": "7.5",
        "productLabels": ["Tesla-T4"],
    });
    let classes = gqla_fleet::classes([&GPUClass::new("t4", from_value(turing).unwrap())]);
    let nodes = [
        node("t4", Some("Tesla-T4"), 8),
        node("l40s", Some("NVIDIA-L40S"), 8),
        node("h100", Some("NVIDIA-H100-80GB-HBM3"), 8),
    ];
    let nodes = nodes.map(|node| Arc::new(FleetNode::new(node))).to_vec();
    let fleet = FleetSnapshot::new(nodes, &classes, &BTreeMap::new(), None);
    let widths = |nope: u32, value: u32| {
        let mut shape = deepseek_shape();
        (shape["qkNopeHeadDim"], shape["vHeadDim"]) = (json!(nope), json!(value));
        shape
    };
    let too_old = "on t4: the card has compute capability 7.5, and kernels need 8.0 or higher: use the CPU";
    let too_wide = "on L40S: no kernel decodes along gqa on sm_89: heads of 192 + 64 and 512";
    let odd = "no kernel decodes heads of 24 + 64 and 128, expected multiples of 16: use the CPU";
    let cases: [(_, _, &[(&str, &str)]); 4] = [
        (deepseek_shape(), "Auto", &[("t4", too_old)]),
        (widths(192, 512), "Auto", &[("t4", too_old)]),
        (widths(192, 512), "GQA", &[("t4", too_old), ("l40s", too_wide)]),
        (widths(24, 128), "Auto", &[("t4", too_old), ("l40s", odd), ("h100", odd)]),
    ];
    for (shape, path, refused) in cases {
        let pools = ["t4", "l40s", "h100"].map(|class| json!({ "name": class, "gpuClass": class }));
        let spec = |device: &str| {
            let source = json!({ "persistentVolumeClaim": { "claimName": "m" } });
            json!({ "runtime": { "device": device }, "model": { "source": source, "shape": shape },
                    "decode": { "path": path, "tensorParallel": 1 }, "pools": pools })
        };
        let plan = planned(spec("CUDA"), &fleet);
        let told: Vec<_> = plan.failures.iter().map(|failure| failure.pool.as_str()).collect();
        let expected: Vec<_> = refused.iter().map(|(pool, _)| *pool).collect();
        assert_eq!((told, plan.pools.len()), (expected, 3 - refused.len()), "{:?}", plan.failures);
        for (failure, (_, sentence)) in plan.failures.iter().zip(refused) {
            assert_eq!(failure.reason, ConditionReason::NoFeasiblePlan);
            assert!(failure.sentence.contains(sentence), "{}", failure.sentence);
        }
        let plan = planned(spec("CPU"), &fleet);
        assert_eq!((plan.pools.len(), plan.failures), (3, vec![]));
    }
}

#[test]
fn a_class_with_too_many_wrong_labels_is_not_planned() {
    let names: Vec<_> = (0..=MAX_REFUTED).map(|index| format!("n{index}")).collect();
    let nodes: Vec<_> = names.iter().map(String::as_str).chain(["good"]).collect();
    let slice = |name: &String| {
        from_value(json!({ "metadata": { "name": name }, "spec": {
            "driver": "gpu.nvidia.com", "nodeName": name,
            "pool": { "name": name, "generation": 1, "resourceSliceCount": 1 },
            "devices": [{ "name": "gpu-0", "attributes": {
                "type": { "string": "gpu" }, "productName": { "string": "NVIDIA H200" } } }],
        }}))
        .unwrap()
    };
    let wrong = |count: usize| {
        let nodes = nodes.iter().map(|name| node(name, Some("NVIDIA-H20"), 8)).collect();
        fleet_with_slices(nodes, &names.iter().take(count).map(slice).collect::<Vec<_>>())
    };
    let spec = json!({ "runtime": { "device": "CUDA" } });
    assert_eq!(planned(spec.clone(), &wrong(MAX_REFUTED)).pools.len(), 1);
    let plan = planned(spec, &wrong(MAX_REFUTED + 1));
    let [failure] = plan.failures.as_slice() else { panic!("{plan:?}") };
    assert_eq!((plan.pools.len(), failure.reason), (0, ConditionReason::NoUsableNodes));
    assert!(failure.sentence.contains("the labels of 257 nodes say H20"), "{}", failure.sentence);
}

/// A prompt that needs more context than usual asks for it, as far as the model goes.
#[test]
fn the_context_holds_prompt_and_output() {
    let cases = [
        (json!({}), 4096),
        (json!({ "promptTokens": 100, "outputTokens": 100 }), 4096),
        (json!({ "promptTokens": 8000, "outputTokens": 500 }), 8500),
        (json!({ "promptTokens": 32_000, "outputTokens": 1000 }), 32_768),
        (json!({ "promptTokens": 8000, "contextLength": 9000 }), 9000),
    ];
    for (asked, expected) in cases {
        let spec = json!({ "runtime": { "device": "CUDA" }, "goal": asked });
        let valid = validated(spec.clone());
        let Shape::Known(shape) = valid.shape.clone() else { panic!("the fixture has a shape") };
        assert_eq!(goal(&valid, &shape).context_length, expected, "{asked}");
        let plan = planned(spec, &mixed());
        assert_eq!((plan.pools.len(), plan.failures), (2, vec![]), "{asked}");
    }
}

#[test]
fn replicas_beyond_what_pools_may_have_are_told() {
    let pools = json!([
        { "name": "a", "gpuClass": "H100", "maxReplicas": 1 },
        { "name": "b", "gpuClass": "H20", "maxReplicas": 2 },
    ]);
    let spec = json!({ "runtime": { "device": "CUDA" }, "pools": pools, "replicas": 5 });
    let plan = planned(spec, &mixed());
    assert_eq!(plan.pools.iter().map(|pool| pool.replicas).collect::<Vec<_>>(), [1, 2]);
    let [failure] = plan.failures.as_slice() else { panic!("{:?}", plan.failures) };
    assert_eq!(failure.reason, ConditionReason::ReplicasUnplaced);
    assert!(failure.sentence.starts_with("2 of 5 replicas have no place"), "{}", failure.sentence);
}

/// Figures far below those of the built-in GQA kernel make the other path win, for the build they were measured on alone.
#[test]
fn a_calibration_flips_a_pool_of_its_build_and_no_other() {
    let calibrated = |build: &str, spec: Value| {
        let slow = json!({ "kernels": [{
            "gpu": "h20", "runtime": "native", "build": build, "path": "GQA",
            "floor_us": 50.0, "bandwidth": 0.1, "arithmetic": 0.1, "tile_rows": 64,
            "provenance": { "tool": "timer", "device": "NVIDIA H20", "build": "sm_90a",
                            "measured_at": "2026-01-02T03:04:05Z", "samples": 30 },
        }]});
        let calibration = parse_calibration(&slow.to_string()).unwrap();
        planned(spec, &mixed().calibrated(Arc::new(calibration)))
    };
    let spec = |image: Option<&str>| json!({ "runtime": { "device": "CUDA", "image": image } });
    let built_in = planned(spec(None), &mixed());
    let source = "calibrated: measured by timer with sm_90a on NVIDIA H20, 2026-01-02T03:04:05Z, 30 samples";
    let cases = [
        (SERVER_BUILD, None, true),
        ("*", None, true),
        ("*", Some("mirror/gqla-server:9"), true),
        ("0.0.1-other", None, false),
        // What is in an image of somebody's choice is not known.
        (SERVER_BUILD, Some("mirror/gqla-server:9"), false),
    ];
    for (build, image, counts) in cases {
        let plan = calibrated(build, spec(image));
        let [h100, h20] = plan.pools.as_slice() else { panic!("{plan:?}") };
        let expected = if counts { DecodePath::MqaAbsorb } else { DecodePath::Gqa };
        assert_eq!(h20.decision.chosen.path, expected, "{build} {image:?}");
        assert_eq!(h20.note.as_ref().is_some_and(|note| note.contains(source)), counts, "{build} {image:?}");
        assert_eq!(record(h20).note, h20.note, "the status says so");
        assert_eq!(*h100, built_in.pools[0], "a calibration of the H20 says nothing of the H100");
    }
}
