//! What an agent may write, judged by a real kube-apiserver: the chart's role and admission policy, and tokens that name
//! a Node as the kubelet's do.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{path::PathBuf, time::Duration};

use gqla_agent::{
    metrics::Metrics,
    publish::{Pace, publish},
    state::State,
};
use gqla_api::{
    inventory::{DriverState, GpuFacts, NodeInventory},
    labels::{GPU_DEVICE, GPU_INVENTORY, GPU_MULTIPROCESSORS, GPU_PRODUCT},
};
use gqla_telemetry::prometheus::Registry;
use gqla_testkit::cluster::Cluster;
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

const AGENT: &str = "gqla-operator-agent";

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", kind));
    if kind == "Node" {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::default_namespaced_with(client.clone(), &resource)
    }
}

async fn create(client: &Client, object: Value) -> DynamicObject {
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let kind = object.types.clone().unwrap().kind;
    api(client, &kind).create(&PostParams::default(), &object).await.unwrap()
}

/// Renders what the chart has for agents, but the DaemonSet, and creates it.
async fn install(cluster: &Cluster) {
    let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/gqla-operator");
    let chart = chart.to_str().unwrap();
    let shown = ["serviceaccount", "rbac", "admission-policy"]
        .map(|template| format!("--show-only=templates/agent/{template}.yaml"));
    let arguments = ["template", "gqla-operator", chart, "--namespace", "default"];
    let arguments = arguments.into_iter().chain(shown.iter().map(String::as_str));
    let rendered = cluster.helm(arguments).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    std::fs::write(&file, rendered).unwrap();
    cluster.kubectl(["create", "--filename", file.to_str().unwrap()]).await.unwrap();
}

/// A client with the token that the pod of an agent on `node` has; with one that names no Node when there is none.
async fn agent_client(cluster: &Cluster, admin: &Client, node: Option<&str>) -> Client {
    let mut arguments = vec!["create".to_owned(), "token".to_owned(), AGENT.to_owned()];
    if let Some(node) = node {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("agent-{node}") },
            "spec": {
                "nodeName": node, "serviceAccountName": AGENT,
                "containers": [{ "name": "agent", "image": "gqla-agent" }],
            },
        });
        let pod = create(admin, pod).await;
        arguments.push("--bound-object-kind=Pod".to_owned());
        arguments.push(format!("--bound-object-name={}", pod.name_any()));
        arguments.push(format!("--bound-object-uid={}", pod.uid().unwrap()));
    }
    let token = cluster.kubectl(arguments).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info = AuthInfo { token: Some(token.trim().to_owned().into()), ..AuthInfo::default() };
    Client::try_from(config).unwrap()
}

/// What the server says to a change of a Node: `None` when it takes it.
async fn refusal(client: &Client, node: &str, change: &Value) -> Option<String> {
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let patched = api(client, "Node").patch(node, &params, &Patch::Merge(change)).await;
    patched.err().map(|error| error.to_string())
}

fn label(key: &str, value: Value) -> Value {
    json!({ "metadata": { "labels": { key: value } } })
}

/// Changes of its own Node that an agent has no business with, and words of the sentence.
fn refused() -> Vec<(Value, &'static str)> {
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u" }]);
    vec![
        (label("nvidia.com/gpu.product", json!("NVIDIA-H200")), "would change in nvidia.com/gpu.product"),
        (label("zone", Value::Null), "would change in zone"),
        (label("zone", json!("b")), "would change in zone"),
        (label("gqla.dev/gpu-class", json!("H200")), "gqla.dev/gpu-class, which is an administrator's"),
        (label("gqla.dev.evil/x", json!("y")), "would change in gqla.dev.evil/x"),
        (json!({ "metadata": { "annotations": { "a": "b" } } }), "would change in a"),
        (
            json!({ "spec": { "taints": [{ "key": "k", "effect": "NoExecute" }] } }),
            "may not change the spec or the taints of Node n1",
        ),
        (json!({ "spec": { "unschedulable": true } }), "may not change the spec or the taints of Node n1"),
        (json!({ "metadata": { "finalizers": ["a.b/c"] } }), "may not change the finalizers of Node n1"),
        (
            json!({ "metadata": { "ownerReferences": owner } }),
            "may not change the ownerReferences of Node n1",
        ),
    ]
}

/// A policy is in force some time after it was created.
async fn until_in_force(agent: &Client) {
    let foreign = label("foreign", json!("x"));
    for _ in 0..200 {
        if refusal(agent, "n1", &foreign).await.is_some_and(|sentence| sentence.contains("would change in")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let sentence = refusal(agent, "n1", &foreign).await;
    panic!("the policy is not in force after 20 s; the server says {sentence:?}");
}

/// The agent's own code publishes on its Node, and again after a change.
async fn publishes(admin: &Client, agent: Client) {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let (stored, known) = oneshot::channel();
    let (wanted, to_publish) = watch::channel(None);
    let publishing = tokio::spawn(async move {
        let state = State::new(Duration::from_secs(60));
        publish(agent, "n1".to_owned(), Pace::default(), metrics, &state, stored, to_publish).await;
    });
    assert_eq!(known.await.unwrap(), NodeInventory::default());
    let gpu = |product: &str, pci_device_id| GpuFacts {
        product: product.to_owned(),
        pci_device_id,
        multiprocessors: Some(78),
        ..GpuFacts::default()
    };
    let (h20, l40s) = (gpu("NVIDIA H20", 0x2329), gpu("NVIDIA L40S", 0x26b9));
    let cases = [
        (vec![h20.clone()], Some("2329"), Some("NVIDIA-H20"), Some("78")),
        (vec![h20, l40s], Some("mixed"), None, None),
    ];
    for (gpus, device, product, multiprocessors) in cases {
        let inventory = NodeInventory { driver: DriverState::Ready, gpus, ..NodeInventory::default() };
        wanted.send_replace(Some(inventory.clone()));
        let node = until_published(admin, &inventory.render().unwrap()).await;
        assert_eq!(node.labels().get(GPU_DEVICE).map(String::as_str), device);
        assert_eq!(node.labels().get(GPU_PRODUCT).map(String::as_str), product);
        assert_eq!(node.labels().get(GPU_MULTIPROCESSORS).map(String::as_str), multiprocessors);
        assert_eq!(node.labels().get("zone").map(String::as_str), Some("a"), "others' labels stay");
    }
    publishing.abort();
}

async fn until_published(admin: &Client, annotation: &str) -> DynamicObject {
    for _ in 0..100 {
        let node = api(admin, "Node").get("n1").await.unwrap();
        if node.annotations().get(GPU_INVENTORY).is_some_and(|held| held == annotation) {
            return node;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the inventory is not on the Node after 10 s");
}

#[tokio::test]
async fn an_agent_writes_its_own_node_and_our_keys_only() {
    let cluster = Cluster::builder().start().await.unwrap();
    let admin = cluster.client().await.unwrap();
    for node in ["n1", "n2"] {
        let labels = json!({ "zone": "a" });
        create(
            &admin,
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node, "labels": labels } }),
        )
        .await;
    }
    install(&cluster).await;
    let agent = agent_client(&cluster, &admin, Some("n1")).await;
    until_in_force(&agent).await;

    publishes(&admin, agent.clone()).await;
    for (change, words) in refused() {
        let sentence = refusal(&agent, "n1", &change).await;
        assert!(
            sentence.as_ref().is_some_and(|text| text.contains(words)),
            "{words}: {sentence:?}: {change}"
        );
        assert_eq!(refusal(&admin, "n1", &change).await, None, "an administrator may: {change}");
    }
    let own_key = label(GPU_DEVICE, json!("2329"));
    assert_eq!(refusal(&agent, "n1", &own_key).await, None);
    let sentence = refusal(&agent, "n2", &own_key).await.unwrap();
    assert!(sentence.contains("the gqla-agent of Node n1 may not write Node n2"), "{sentence}");
    let unbound = agent_client(&cluster, &admin, None).await;
    let sentence = refusal(&unbound, "n1", &own_key).await.unwrap();
    assert!(sentence.contains("must name its Node"), "{sentence}");

    let nodes = api(&agent, "Node");
    let deleted = nodes.delete("n1", &DeleteParams::default()).await.map(drop).unwrap_err().to_string();
    assert!(deleted.contains("cannot delete resource"), "{deleted}");
    let status = json!({ "status": { "capacity": { "nvidia.com/gpu": "8" } } });
    let status = nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(status)).await;
    assert!(status.unwrap_err().to_string().contains("cannot patch resource"));
    cluster.stop().await;
}
