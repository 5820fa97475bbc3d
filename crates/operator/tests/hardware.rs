//! What nodes really have, through passes of the reconciler: a wrong class never gets a pod, and what is wrong is told.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use gqla_api::{
    GQLADeployment,
    inventory::{DriverState, GpuFacts, GpuHealth, NodeInventory},
};
use gqla_decide::names::pool_object_name;
use gqla_operator::{
    fleet::Fleet,
    metrics::Metrics,
    reconcile::{Context, reconcile},
    scrape::Throughput,
};
use gqla_telemetry::prometheus::{Registry, TextEncoder};
use gqla_testkit::recording::RecordingServer;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{core::DeserializeGuard, runtime::watcher::Event};
use serde_json::{Value, from_value, json};

const OBJECT: &str = "/apis/gqla.dev/v1alpha1/namespaces/n/gqladeployments/d";

fn gpus(product: &str, device: u16, sms: u32, count: u32) -> Vec<GpuFacts> {
    let gpu = |index| GpuFacts {
        index,
        product: product.to_owned(),
        pci_device_id: device,
        multiprocessors: Some(sms),
        memory_mib: 97_871,
        memory_bus_bits: Some(6144),
        memory_clock_mhz: Some(2619),
        clock_mhz: Some(1980),
        compute_capability: Some("9.0".to_owned()),
        ..GpuFacts::default()
    };
    (0..count).map(gpu).collect()
}

fn h20(count: u32) -> NodeInventory {
    ready(gpus("NVIDIA H20", 0x2329, 78, count))
}

fn ready(gpus: Vec<GpuFacts>) -> NodeInventory {
    NodeInventory { driver: DriverState::Ready, gpus, ..NodeInventory::default() }
}

/// A node as its agent leaves it, with a label of GPU feature discovery.
fn node(name: &str, inventory: &NodeInventory, product: Option<&str>, allocatable: u32) -> Node {
    let mut labels = BTreeMap::from([("gqla.dev/gpu.device", inventory.device_label())]);
    labels.extend(inventory.product_label().map(|label| ("gqla.dev/gpu.product", label)));
    labels.extend(inventory.multiprocessors_label().map(|label| ("gqla.dev/gpu.multiprocessors", label)));
    labels.extend(product.map(|product| ("nvidia.com/gpu.product", product.to_owned())));
    from_value(json!({
        "metadata": {
            "name": name, "labels": labels,
            "annotations": { "gqla.dev/gpu-inventory": inventory.render().unwrap(), "other": "x".repeat(1000) },
        },
        "status": { "allocatable": { "nvidia.com/gpu": allocatable.to_string() } },
    }))
    .unwrap()
}

fn agent(node: &str) -> Pod {
    from_value(json!({
        "metadata": { "name": format!("agent-{node}") }, "spec": { "nodeName": node, "containers": [] },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    }))
    .unwrap()
}

struct Scene {
    server: RecordingServer,
    fleet: Fleet,
    context: Arc<Context>,
    now: Arc<AtomicI64>,
}

impl Scene {
    fn new(nodes: Vec<Node>) -> Self {
        let now = Arc::new(AtomicI64::new(1_000_000));
        let clock = now.clone();
        let fleet = Fleet::with_clock(move || clock.load(Ordering::Relaxed));
        fleet.class_event(Event::Init);
        fleet.class_event(Event::InitDone);
        fleet.node_event(Event::Init);
        nodes.into_iter().for_each(|node| fleet.node_event(Event::InitApply(node)));
        fleet.node_event(Event::InitDone);
        let server = RecordingServer::new();
        server.put(
            OBJECT,
            json!({
                "apiVersion": "gqla.dev/v1alpha1", "kind": "GQLADeployment",
                "metadata": { "name": "d", "namespace": "n", "uid": "cr-uid", "generation": 1 },
                "spec": {
                    "model": {
                        "source": { "persistentVolumeClaim": { "claimName": "m" } },
                        "shape": {
                            "numAttentionHeads": 128, "numKeyValueHeads": 8, "kvLoraRank": 512,
                            "qkNopeHeadDim": 128, "qkRopeHeadDim": 64, "vHeadDim": 128, "hiddenSize": 2048,
                            "numHiddenLayers": 16, "parameters": 2_500_000_000_u64, "numNextnPredictLayers": 1,
                            "maxPositionEmbeddings": 32768,
                        },
                    },
                    "runtime": { "device": "CUDA" }, "placement": { "strategy": "Spread" }, "replicas": 2,
                },
            }),
        );
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let context = Context::new(server.client(), fleet.clone(), Throughput::default(), metrics, "test");
        Self { server, fleet, context: Arc::new(context), now }
    }

    async fn pass(&self) {
        let object: DeserializeGuard<GQLADeployment> = from_value(self.server.get(OBJECT).unwrap()).unwrap();
        reconcile(Arc::new(object), self.context.clone()).await.unwrap();
    }

    fn status(&self) -> Value {
        self.server.get(OBJECT).unwrap()["status"].clone()
    }

    fn recognised(&self) -> (String, String, String) {
        let status = self.status();
        let conditions = status["conditions"].as_array().unwrap().iter();
        let mut found = conditions.filter(|condition| condition["type"] == "HardwareRecognized");
        let condition = found.next().unwrap();
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    fn classes(&self) -> Vec<String> {
        let status = self.status();
        let pools = status["pools"].as_array().cloned().unwrap_or_default();
        pools.iter().map(|pool| pool["gpuClass"].as_str().unwrap().to_owned()).collect()
    }

    fn note(&self) -> String {
        self.status()["pools"][0]["note"].as_str().unwrap_or_default().to_owned()
    }

    fn template(&self, pool: &str) -> Value {
        let path = format!("/apis/apps/v1/namespaces/n/deployments/{}", pool_object_name("d", pool));
        self.server.get(&path).unwrap()["spec"].clone()
    }

    /// Reasons of the Events since the record was cleared.
    fn events(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        let events = requests.filter(|request| request.is_write() && request.path.contains("/events"));
        events.map(|request| request.body["reason"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_lying_label_is_planned_as_what_nvml_says_and_told() {
    let scene = Scene::new(vec![node("a", &h20(8), Some("NVIDIA-H200"), 8)]);
    scene.pass().await;
    assert_eq!(scene.classes(), ["H20"]);
    let (status, reason, message) = scene.recognised();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "LyingLabel"));
    assert!(message.starts_with("node a (label nvidia.com/gpu.product=NVIDIA-H200): NVML says"), "{message}");
    assert!(scene.template("h20").to_string().contains("2329"));
    assert!(
        scene.events().contains(&"LyingLabel".to_owned()),
        "told from the first pass on: {:?}",
        scene.events()
    );
    // A second node with the same lie is news, and is told once.
    scene.server.clear();
    scene.pass().await;
    assert_eq!(scene.events(), [""; 0]);
    scene.fleet.node_event(Event::Apply(node("b", &h20(8), Some("NVIDIA-H200"), 8)));
    scene.pass().await;
    scene.pass().await;
    assert_eq!(scene.events(), ["LyingLabel"]);
}

#[tokio::test]
async fn mixed_and_sliced_nodes_get_no_pod() {
    let mixed =
        ready([gpus("NVIDIA H20", 0x2329, 78, 4), gpus("NVIDIA H100 80GB HBM3", 0x2330, 132, 4)].concat());
    let mut sliced = h20(8);
    sliced.gpus.iter_mut().for_each(|gpu| gpu.mig = Some(vec![]));
    for (inventory, expected, words) in
        [(mixed, "MixedModels", "4 × NVIDIA H100 80GB HBM3, 4 × NVIDIA H20"), (sliced, "MigSlice", "(MIG)")]
    {
        let scene = Scene::new(vec![node("a", &inventory, Some("NVIDIA-H20"), 8)]);
        scene.pass().await;
        assert_eq!(scene.server.names("deployments"), [""; 0], "{expected}");
        let (status, reason, message) = scene.recognised();
        assert_eq!((status.as_str(), reason.as_str()), ("False", expected));
        assert!(message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn a_pulled_card_shows_in_the_pool_and_in_one_event() {
    let scene = Scene::new(vec![node("a", &h20(8), None, 8)]);
    scene.pass().await;
    let before = scene.template("h20");
    scene.server.clear();
    let changes = scene.fleet.subscribe();
    let mut pulled = h20(8);
    pulled.gpus[3].health = GpuHealth::Lost;
    scene.fleet.node_event(Event::Apply(node("a", &pulled, None, 8)));
    assert!(changes.has_changed().unwrap(), "a pass is woken");
    scene.pass().await;
    assert!(scene.note().contains("node a (GPU 3): fell off the bus"), "{}", scene.note());
    assert_eq!(scene.events(), ["GpuLost"]);
    assert_eq!(scene.recognised().0, "True", "what it is, is known");
    assert_eq!(scene.template("h20"), before, "no pod is rolled for it");
    scene.pass().await;
    assert_eq!(scene.events(), ["GpuLost"], "told once");
    scene.fleet.node_event(Event::Apply(node("a", &h20(8), None, 8)));
    scene.pass().await;
    assert!(!scene.note().contains("GPU 3"), "{}", scene.note());
}

#[tokio::test]
async fn an_absent_agent_changes_no_plan_and_its_facts_get_an_age() {
    let scene = Scene::new(vec![node("a", &h20(8), None, 8)]);
    scene.fleet.agent_event(Event::Init);
    scene.fleet.agent_event(Event::InitApply(agent("a")));
    scene.fleet.agent_event(Event::InitDone);
    scene.pass().await;
    let before = scene.template("h20");
    scene.fleet.agent_event(Event::Delete(agent("a")));
    scene.now.fetch_add(59, Ordering::Relaxed);
    let changes = scene.fleet.subscribe();
    scene.fleet.look_at_age();
    assert!(!changes.has_changed().unwrap(), "an agent may restart");
    scene.now.fetch_add(300, Ordering::Relaxed);
    scene.fleet.look_at_age();
    assert!(changes.has_changed().unwrap());
    scene.pass().await;
    assert!(scene.note().contains("node a (agent)"), "{}", scene.note());
    assert!(scene.note().contains("the last known, over 5 min old"), "{}", scene.note());
    assert_eq!(scene.template("h20"), before);
    scene.fleet.agent_event(Event::Apply(agent("a")));
    scene.fleet.look_at_age();
    scene.pass().await;
    assert!(!scene.note().contains("last known"), "{}", scene.note());
}

#[tokio::test]
async fn a_missing_driver_keeps_the_plan() {
    let scene = Scene::new(vec![node("a", &h20(8), None, 8)]);
    scene.pass().await;
    let before = scene.template("h20");
    let missing = NodeInventory {
        driver: DriverState::Missing,
        message: Some("libnvidia-ml.so.1 is not there".to_owned()),
        ..h20(8)
    };
    scene.fleet.node_event(Event::Apply(node("a", &missing, None, 0)));
    scene.pass().await;
    assert_eq!((scene.classes(), scene.template("h20")), (vec!["H20".to_owned()], before));
    let words = "node a (driver): there is no NVIDIA driver (libnvidia-ml.so.1 is not there); the GPUs seen before stay";
    assert!(scene.note().contains(words), "{}", scene.note());
}

/// The device plugin tells that its driver went before the agent does, or the kubelet restarts.
#[tokio::test]
async fn nothing_allocatable_for_a_moment_moves_no_replica() {
    let h100 = ready(gpus("NVIDIA H100 80GB HBM3", 0x2330, 132, 8));
    let scene = Scene::new(vec![node("a", &h100, None, 8), node("b", &h20(8), None, 8)]);
    scene.pass().await;
    let before = (scene.template("h100"), scene.template("h20"));
    let mut restarting = node("a", &h100, None, 8);
    let status = restarting.status.as_mut().unwrap();
    status.capacity = status.allocatable.clone();
    status.allocatable.as_mut().unwrap().insert("nvidia.com/gpu".to_owned(), Quantity("0".to_owned()));
    scene.fleet.node_event(Event::Apply(restarting));
    scene.pass().await;
    assert_eq!((scene.template("h100"), scene.template("h20")), before);
}

#[tokio::test]
async fn a_driver_that_is_too_old_gets_no_pod() {
    let old = NodeInventory { driver: DriverState::TooOld, ..h20(8) };
    let scene = Scene::new(vec![node("a", &old, None, 8)]);
    scene.pass().await;
    assert_eq!(scene.server.names("deployments"), [""; 0]);
    let status = scene.status();
    assert!(status["message"].as_str().unwrap().contains("usable H20 node offers 0"), "{status}");
}

#[tokio::test]
async fn an_unknown_gpu_gets_a_cautious_pool_that_says_so() {
    let scene = Scene::new(vec![node("a", &ready(gpus("NVIDIA X9", 0x9999, 78, 8)), Some("NVIDIA-X9"), 8)]);
    scene.pass().await;
    assert_eq!(scene.classes(), ["unknown-9999"]);
    let (status, reason, message) = scene.recognised();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "UnknownProduct"));
    assert!(message.starts_with("node a (NVIDIA-X9, PCI device 9999): no class has this GPU"), "{message}");
    let pool = &scene.status()["pools"][0];
    for text in [&pool["note"], &pool["reason"]] {
        assert!(
            text.as_str().unwrap().contains("derived from what NVML tells, with half the FLOPs"),
            "{text}"
        );
    }
    let terms = scene.template("unknown-9999")["template"]["spec"]["affinity"]["nodeAffinity"]
        ["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        .clone();
    assert_eq!(terms.as_array().unwrap().len(), 1, "{terms}");
    assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["9999"]));
}

#[tokio::test]
async fn the_fleet_is_counted() {
    let scene = Scene::new(vec![
        node("a", &h20(8), Some("NVIDIA-H200"), 8),
        node("b", &h20(8), None, 8),
        node("c", &NodeInventory::default(), None, 0),
    ]);
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    metrics.set_fleet(&scene.fleet.snapshot().hardware);
    let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    for line in [
        "gqla_fleet_nodes{class=\"H20\"} 2",
        "gqla_fleet_nodes{class=\"CPU\"} 1",
        "gqla_fleet_problems{kind=\"LyingLabel\"} 1",
        "gqla_fleet_problems{kind=\"GpuLost\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
