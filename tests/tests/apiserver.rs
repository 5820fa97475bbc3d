//! The CustomResourceDefinitions and their rules, judged by a real kube-apiserver: whether it takes them at all (it
//! estimates what every rule may cost), and what it tells a user whose object breaks one.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{path::PathBuf, time::Duration};

use gqla_api::{GPUClass, GQLADeployment};
use gqla_testkit::cluster::Cluster;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::{Value, json};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn object(heads: u32, groups: u32, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "gqla.dev/v1alpha1", "kind": "GQLADeployment", "metadata": { "name": "t" },
        "spec": { "model": {
            "source": { "persistentVolumeClaim": { "claimName": "c" } },
            "shape": {
                "numAttentionHeads": heads, "numKeyValueHeads": groups, "kvLoraRank": 512, "qkNopeHeadDim": 128,
                "qkRopeHeadDim": 64, "vHeadDim": 128, "hiddenSize": 2048, "numHiddenLayers": 16,
                "parameters": 2_500_000_000_u64, "maxPositionEmbeddings": 32768,
            },
        }},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

fn class(name: &str, product: &str) -> Value {
    json!({
        "apiVersion": "gqla.dev/v1alpha1", "kind": "GPUClass", "metadata": { "name": name },
        "spec": { "productLabels": [product] },
    })
}

/// What pods would be refused for, later and out of sight, were it not refused here.
fn refused_of_pods() -> Vec<(Value, &'static str)> {
    let selector = json!([{ "name": "a", "nodeSelector": { "zone": "a b" } }]);
    let long = "a".repeat(33);
    vec![
        (object(128, 8, json!({ "podTemplate": { "labels": { "team": "a b" } } })), "should match"),
        (object(128, 8, json!({ "pools": selector })), "should match"),
        (object(128, 8, json!({ "runtime": { "env": [{ "name": "A=B", "value": "" }] } })), "should match"),
        (object(128, 8, json!({ "rollout": { "maxUnavailable": -1 } })), "greater than or equal to 0"),
        (
            object(128, 8, json!({ "rollout": { "maxUnavailable": 2_147_483_648_u64 } })),
            "less than or equal to",
        ),
        (class("x9", "NVIDIA X9"), "should match"),
        (class(&long, "NVIDIA-X9"), "must be at most 32 lower-case letters"),
        (class("x9.large", "NVIDIA-X9"), "metadata.name=x9.large must be at most 32"),
    ]
}

/// What the server says to an object: `None` when it takes it.
async fn refusal(client: &Client, object: Value) -> Option<String> {
    let api: Api<DynamicObject> = if object["kind"] == "GPUClass" {
        Api::all_with(client.clone(), &ApiResource::erase::<GPUClass>(&()))
    } else {
        Api::namespaced_with(client.clone(), "default", &ApiResource::erase::<GQLADeployment>(&()))
    };
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&params, &object).await.err().map(|error| error.to_string())
}

/// Objects that break a rule, and words of the sentence that names field and arithmetic.
fn refused() -> Vec<(Value, &'static str)> {
    let pools = |second: Value| {
        json!({
            "decode": { "path": "MQAAbsorb", "tensorParallel": 3 },
            "pools": [{ "name": "fast", "gpuClass": "H100" }, second],
        })
    };
    let absorb = json!({ "name": "slow", "gpuClass": "H20", "decode": { "path": "GQA" } });
    vec![
        (
            object(128, 8, json!({ "decode": { "path": "GQA", "tensorParallel": 3 } })),
            "spec.decode.tensorParallel=3 does not divide spec.model.shape.numAttentionHeads=128 (128 mod 3 = 2)",
        ),
        (
            object(128, 8, json!({ "decode": { "path": "GQA", "tensorParallel": 3 } })),
            "spec.decode.tensorParallel=3 and spec.model.shape.numKeyValueHeads=8 do not divide each other (8 mod 3 = 2, \
             3 mod 8 = 3)",
        ),
        (object(128, 12, json!({})), "(128 mod 12 = 8): every group must serve the same number of heads"),
        (
            object(120, 8, pools(absorb)),
            "spec.pools[slow].decode.tensorParallel=3 and spec.model.shape.numKeyValueHeads=8 do not divide each other",
        ),
        (
            object(128, 8, json!({ "decode": { "multiTokenPrediction": 1 } })),
            "spec.decode.multiTokenPrediction=1 needs prediction layers, but spec.model.shape.numNextnPredictLayers=0",
        ),
        (object(128, 8, json!({ "decode": { "tensorParallel": 0 } })), "greater than or equal to 1"),
        (object(128, 8, json!({ "decode": { "tensorParallel": "8" } })), "should match '^Auto$'"),
        (
            object(128, 8, json!({ "pools": [{ "name": "a" }] })),
            "pool a must set exactly one of gpuClass and nodeSelector, it sets neither",
        ),
        (
            object(
                128,
                8,
                json!({ "pools": [{ "name": "a", "gpuClass": "H20" }, { "name": "a", "gpuClass": "H100" }] }),
            ),
            "Duplicate value",
        ),
        (
            object(
                128,
                8,
                json!({ "pools": [{ "name": "a", "gpuClass": "H20", "minReplicas": 2, "maxReplicas": 1 }] }),
            ),
            "pool a: minReplicas=2 exceeds maxReplicas=1",
        ),
        (
            object(128, 8, json!({ "runtime": { "extraArgs": ["--tp=2"] } })),
            "runtime.extraArgs: --tp=2 is set by the operator",
        ),
        (
            object(128, 8, json!({ "podTemplate": { "labels": { "gqla.dev/path": "gqa" } } })),
            "gqla.dev/path is set by the operator",
        ),
        (
            object(128, 8, json!({ "goal": { "contextLength": 40_000 } })),
            "spec.goal.contextLength=40000 exceeds spec.model.shape.maxPositionEmbeddings=32768",
        ),
        (
            object(
                128,
                8,
                json!({ "pools": [{ "name": "a", "gpuClass": "H20" }],
                                   "placement": { "allowedClasses": ["H20"] } }),
            ),
            "spec.placement.allowedClasses cannot be combined with spec.pools: the 1 pools name their own classes",
        ),
    ]
}

fn accepted() -> Vec<Value> {
    let pools = json!([
        { "name": "fast", "gpuClass": "H100" },
        { "name": "slow", "nodeSelector": { "zone": "a" }, "decode": { "path": "GQA", "tensorParallel": 4 } },
    ]);
    vec![
        object(9, 3, json!({ "decode": { "path": "GQA", "tensorParallel": 3 } })),
        object(128, 8, json!({ "decode": { "path": "GQA", "tensorParallel": 16 } })),
        object(120, 8, json!({ "decode": { "path": "MQAAbsorb", "tensorParallel": 3 }, "pools": pools })),
        object(128, 8, json!({ "decode": { "tensorParallel": "Auto", "multiTokenPrediction": "Off" } })),
        class("h100-pcie", "NVIDIA-H100-80GB_HBM3.x"),
        object(
            128,
            8,
            json!({ "podTemplate": { "labels": { "team": "" } }, "rollout": { "maxUnavailable": 0 } }),
        ),
        object(128, 8, json!({ "runtime": { "env": [{ "name": "RUST_LOG", "value": "info" }] } })),
        object(128, 8, json!({ "rollout": { "maxUnavailable": "30%" }, "goal": { "contextLength": null } })),
    ]
}

#[tokio::test]
async fn definitions_rules_samples_and_scale() {
    let cluster = Cluster::builder().start().await.unwrap();
    let client = cluster.client().await.unwrap();
    let crds = root().join("crds");
    cluster.kubectl(["create", "--filename", crds.to_str().unwrap()]).await.unwrap();
    let wait = ["wait", "--for=condition=Established", "--timeout=30s", "crd/gqladeployments.gqla.dev"];
    cluster.kubectl(wait).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    for (object, words) in refused().into_iter().chain(refused_of_pods()) {
        let sentence = refusal(&client, object.clone()).await;
        assert!(
            sentence.as_ref().is_some_and(|sentence| sentence.contains(words)),
            "{words}: {sentence:?}: {object}"
        );
    }
    for object in accepted() {
        assert_eq!(refusal(&client, object.clone()).await, None, "{object}");
    }
    for sample in ["smollm2.yaml", "deepseek-attention.yaml"] {
        let file = root().join("deploy/samples").join(sample);
        cluster.kubectl(["apply", "--filename", file.to_str().unwrap()]).await.unwrap();
    }
    scales(&client).await;
    cluster.stop().await;
}

/// `kubectl scale` and autoscalers work on the object itself.
async fn scales(client: &Client) {
    let api: Api<GQLADeployment> = Api::default_namespaced(client.clone());
    let replicas = json!({ "spec": { "replicas": 5 } });
    api.patch_scale("smollm2", &PatchParams::default(), &Patch::Merge(replicas)).await.unwrap();
    let selector = json!({ "status": { "selector": "gqla.dev/deployment=smollm2", "replicas": 3 } });
    api.patch_status("smollm2", &PatchParams::default(), &Patch::Merge(selector)).await.unwrap();
    let scale = api.get_scale("smollm2").await.unwrap();
    assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(5));
    let status = scale.status.unwrap();
    assert_eq!((status.replicas, status.selector.as_deref()), (3, Some("gqla.dev/deployment=smollm2")));
}
