use gqla_api::labels::{KV_LAYOUT, PATH, POOL};
use gqla_decide::{
    Shape,
    fixtures::{mixed, validated},
    names::pool_object_name,
    plan,
};
use kube::ResourceExt as _;
use serde_json::{Value, json, to_value};

use super::*;

fn built(spec: Value) -> Desired {
    let valid = validated(spec);
    let Shape::Known(shape) = valid.shape.clone() else { panic!("the fixture has a shape") };
    build(&valid, &plan(&valid, &shape, &mixed()))
}

fn template(deployment: &Deployment) -> Value {
    to_value(&deployment.spec.as_ref().unwrap().template).unwrap()
}

#[test]
fn selectors_survive_a_path_flip_and_templates_show_it() {
    let auto = built(json!({ "runtime": { "device": "CUDA" } }));
    let fixed = built(json!({ "runtime": { "device": "CUDA" }, "decode": { "path": "MQAAbsorb" } }));
    let (auto, fixed) = (&auto.deployments[1], &fixed.deployments[1]);
    assert_eq!(auto.name_any(), pool_object_name("d", "h20"));
    assert_eq!(auto.spec.as_ref().unwrap().selector, fixed.spec.as_ref().unwrap().selector);
    let labels = |deployment| template(deployment)["metadata"]["labels"].clone();
    assert_eq!((&labels(auto)[PATH], &labels(fixed)[PATH]), (&json!("gqa"), &json!("mqa_absorb")));
    assert_ne!(labels(auto)[KV_LAYOUT], labels(fixed)[KV_LAYOUT]);
}

#[test]
fn pods_hold_no_privilege_and_no_token() {
    let desired = built(json!({ "runtime": { "device": "CUDA" } }));
    let pod = &template(&desired.deployments[0])["spec"];
    assert_eq!(pod["automountServiceAccountToken"], json!(false));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], json!(true));
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault"));
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], json!(true));
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(container["volumeMounts"][0]["readOnly"], json!(true));
    assert_eq!(pod["volumes"][0]["persistentVolumeClaim"]["readOnly"], json!(true));
}

#[test]
fn gpus_are_requested_and_rolled_without_a_surge() {
    let cuda = built(json!({ "runtime": { "device": "CUDA" }, "decode": { "tensorParallel": 2 } }));
    let spec = to_value(&cuda.deployments[0].spec).unwrap();
    assert_eq!(
        spec["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"],
        json!("2")
    );
    assert_eq!(spec["strategy"]["rollingUpdate"], json!({ "maxSurge": 0, "maxUnavailable": 1 }));
    let cpu = built(json!({ "runtime": { "device": "CPU" } }));
    let spec = to_value(&cpu.deployments[0].spec).unwrap();
    assert_eq!(spec["template"]["spec"]["containers"][0].get("resources"), None);
    assert_eq!(spec["strategy"]["rollingUpdate"], json!({ "maxSurge": 1, "maxUnavailable": 0 }));
    let none = built(json!({ "runtime": { "device": "CUDA" }, "rollout": { "maxUnavailable": "0%" } }));
    let spec = to_value(&none.deployments[0].spec).unwrap();
    assert_eq!(spec["strategy"]["rollingUpdate"], json!({ "maxSurge": 1, "maxUnavailable": "0%" }));
}

#[test]
fn pods_require_the_nodes_that_count_as_their_class() {
    let desired = built(json!({ "runtime": { "device": "CUDA" } }));
    let required = template(&desired.deployments[1])["spec"]["affinity"]["nodeAffinity"]
        ["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        .clone();
    let expected = to_value(mixed().hardware.terms("H20", &std::collections::BTreeMap::new())).unwrap();
    assert_eq!(required, expected);
    let text = required.to_string();
    assert!(
        text.contains("\"2329\"") && text.contains("NVIDIA-H20") && !text.contains("NVIDIA-H200"),
        "{text}"
    );
    let tolerations = &template(&desired.deployments[1])["spec"]["tolerations"];
    assert_eq!(tolerations[0]["key"], json!("nvidia.com/gpu"));
}

#[test]
fn the_server_is_told_the_plan() {
    let desired = built(json!({
        "runtime": { "device": "CPU", "extraArgs": ["--max-queued-requests=4"] },
        "goal": { "contextLength": 1024, "concurrency": 4 },
        "decode": { "path": "GQA" },
    }));
    let arguments: Vec<String> =
        serde_json::from_value(template(&desired.deployments[0])["spec"]["containers"][0]["args"].clone())
            .unwrap();
    assert_eq!(
        arguments.join(" "),
        "--model /model --served-model-name d --decode-path gqa --tp 1 --mtp 0 --device cpu --listen 0.0.0.0:8000 \
         --admin-listen 0.0.0.0:9090 --max-model-len 1024 --max-num-seqs 4 --max-queued-requests=4"
    );
}

#[test]
fn one_service_over_all_and_one_per_pool() {
    let desired = built(json!({ "runtime": { "device": "CUDA" } }));
    let names: Vec<_> = desired.services.iter().map(|service| service.name_any()).collect();
    assert_eq!(names, ["d", &pool_object_name("d", "h100"), &pool_object_name("d", "h20")]);
    let selectors: Vec<_> = desired
        .services
        .iter()
        .map(|service| service.spec.as_ref().unwrap().selector.clone().unwrap())
        .collect();
    assert!(!selectors[0].contains_key(POOL) && selectors[1][POOL] == "h100");
}

#[test]
fn the_inspect_job_is_named_by_what_it_reads() {
    let source =
        |claim: &str| json!({ "model": { "source": { "persistentVolumeClaim": { "claimName": claim } } } });
    let name = |claim| inspect(&validated(source(claim))).job.unwrap().name_any();
    assert_eq!(name("a"), name("a"));
    assert_ne!(name("a"), name("b"));
    let job = to_value(inspect(&validated(source("a"))).job.unwrap()).unwrap();
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(
        pod["containers"][0]["args"],
        json!(["inspect", "--model", "/model", "--output", "/dev/termination-log"])
    );
    assert_eq!(pod["restartPolicy"], json!("Never"));
}

#[test]
fn the_inspect_pod_satisfies_quotas_and_policies_without_a_gpu() {
    let spec = json!({
        "podTemplate": { "labels": { "team": "a", "gqla.dev/component": "server" }, "annotations": { "policy": "b" } },
        "runtime": { "resources": {
            "requests": { "cpu": "1", "nvidia.com/gpu": "1" }, "limits": { "memory": "2Gi", "nvidia.com/gpu": "1" },
        }},
    });
    let job = to_value(inspect(&validated(spec)).job.unwrap()).unwrap();
    let template = &job["spec"]["template"];
    assert_eq!(template["metadata"]["labels"]["team"], json!("a"));
    assert_eq!(template["metadata"]["labels"]["gqla.dev/component"], json!("inspect"));
    assert_eq!(template["metadata"]["annotations"], json!({ "policy": "b" }));
    assert_eq!(
        template["spec"]["containers"][0]["resources"],
        json!({ "requests": { "cpu": "1" }, "limits": { "memory": "2Gi" } })
    );
}

#[test]
fn a_rollout_may_take_as_long_as_loading() {
    let desired = built(json!({ "runtime": { "device": "CPU" } }));
    let spec = to_value(&desired.deployments[0].spec).unwrap();
    let probe = &spec["template"]["spec"]["containers"][0]["startupProbe"];
    let loading = probe["periodSeconds"].as_i64().unwrap() * probe["failureThreshold"].as_i64().unwrap();
    assert!(spec["progressDeadlineSeconds"].as_i64().unwrap() >= loading);
}
