//! The agent against a driver that does what drivers do, and an API server that keeps a record.
//!
//! The driver is the stand-in for NVML, loaded by the real nvml-wrapper from a driver root that is changed while the agent runs.
//! Long because every way a driver or a Node misbehaves is one scene, and all scenes share one stage.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use gqla_agent::{
    facts::{Event, GpuError, Reading},
    metrics::Metrics,
    nvml::{Message, Search, watch},
    publish::{Backoff, Pace},
    run::{Config, follow},
    state::State as Liveness,
};
use gqla_api::{
    inventory::{DriverState, GpuHealth, NodeInventory},
    labels::{AGENT_MANAGER, GPU_DEVICE, GPU_INVENTORY, GPU_MULTIPROCESSORS, GPU_PRODUCT},
};
use gqla_fakenvml::{Failure, Gpu, State, install, state::STATE_FILE};
use gqla_telemetry::{
    Health as _, Probe,
    prometheus::{Registry, TextEncoder},
};
use gqla_testkit::recording::RecordingServer;
use serde_json::json;
use tokio::task::JoinHandle;

const NODE: &str = "/api/v1/nodes/n";
const PERIOD: Duration = Duration::from_millis(50);
const REREAD: Duration = Duration::from_millis(250);

/// A node: a driver root and an API server.
struct Node {
    server: RecordingServer,
    root: tempfile::TempDir,
}

/// A running agent; it ends with the scene.
struct Agent {
    registry: Registry,
    liveness: Arc<Liveness>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    /// Waits until it is ready: it hears later than a test that the Node was written.
    async fn until_ready(&self) {
        let start = Instant::now();
        while self.liveness.ready() != Probe::Ok {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", self.liveness.ready());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn metrics(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap()
    }
}

impl Node {
    /// A node without a driver.
    fn bare() -> Self {
        let server = RecordingServer::new();
        server.put(NODE, json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } }));
        Self { server, root: tempfile::tempdir().unwrap() }
    }

    fn with(state: &State) -> Self {
        let node = Self::bare();
        node.install(state);
        node
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join("usr/lib64")
    }

    fn install(&self, state: &State) {
        std::fs::create_dir_all(self.folder()).unwrap();
        install(&self.folder(), state).unwrap();
    }

    fn set(&self, state: &State) {
        state.write(&self.folder().join(STATE_FILE)).unwrap();
    }

    fn agent(&self) -> Agent {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let liveness = Arc::new(Liveness::new(Duration::from_secs(5)));
        let config = Config {
            node: "n".to_owned(),
            search: Search { loader: false, driver_root: Path::to_owned(self.root.path()) },
            period: PERIOD,
            nvml_timeout: Duration::from_secs(1),
            pace: Pace {
                backoff: Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(100) },
                reread: REREAD,
            },
        };
        let (client, state) = (self.server.client(), liveness.clone());
        let task = tokio::spawn(async move { follow(config, client, metrics, &state).await.unwrap() });
        Agent { registry, liveness, task }
    }

    fn published(&self) -> Option<NodeInventory> {
        let node = self.server.get(NODE)?;
        NodeInventory::parse(node["metadata"]["annotations"][GPU_INVENTORY].as_str()?).ok()
    }

    fn label(&self, key: &str) -> Option<String> {
        Some(self.server.get(NODE)?["metadata"]["labels"][key].as_str()?.to_owned())
    }

    /// Waits until what is published is as wanted.
    async fn until(&self, wanted: impl Fn(&NodeInventory) -> bool) -> NodeInventory {
        let start = Instant::now();
        loop {
            match self.published() {
                Some(node) if wanted(&node) => return node,
                node => assert!(start.elapsed() < Duration::from_secs(20), "published at last: {node:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn writes(&self) -> usize {
        self.server.requests().iter().filter(|request| request.is_write()).count()
    }

    /// What was written to the API server over several periods and readings of the Node.
    async fn writes_at_rest(&self) -> usize {
        self.server.clear();
        tokio::time::sleep(PERIOD * 12).await;
        assert!(!self.server.requests().is_empty(), "the Node is read at rest");
        self.writes()
    }
}

fn ready(node: &NodeInventory) -> bool {
    node.driver == DriverState::Ready
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_h20_are_published_once_and_then_nothing_is_written() {
    let node = Node::with(&State::node("H20", 8));
    let agent = node.agent();
    let inventory = node.until(ready).await;
    assert_eq!(inventory.gpus.len(), 8);
    let gpu = &inventory.gpus[7];
    assert_eq!((gpu.product.as_str(), gpu.pci_device_id, gpu.index), ("NVIDIA H20", 0x2329, 7));
    assert_eq!((gpu.multiprocessors, gpu.memory_mib), (Some(78), 97_871));
    assert_eq!(
        (gpu.memory_bus_bits, gpu.memory_clock_mhz, gpu.clock_mhz),
        (Some(6144), Some(2619), Some(1980))
    );
    assert_eq!((gpu.nvlinks, gpu.nvlink_peers.as_slice()), (18, &[0, 1, 2, 3, 4, 5, 6][..]));
    assert_eq!((gpu.power_cap_watts, gpu.default_power_watts), (None, Some(500)));
    assert_eq!(inventory.cuda_version.as_deref(), Some("12.4"));
    assert_eq!(node.label(GPU_DEVICE).as_deref(), Some("2329"));
    assert_eq!(node.label(GPU_PRODUCT).as_deref(), Some("NVIDIA-H20"));
    assert_eq!(node.label(GPU_MULTIPROCESSORS).as_deref(), Some("78"));
    let requests = node.server.requests();
    let asked: Vec<_> =
        requests.iter().map(|request| (request.method.as_str(), request.path.as_str())).collect();
    assert_eq!(asked[..2], [("GET", NODE), ("PATCH", NODE)]);
    assert_eq!(requests[1].query.get("fieldManager").map(String::as_str), Some(AGENT_MANAGER));
    assert_eq!(node.writes_at_rest().await, 0);
    assert_eq!(agent.liveness.ready(), Probe::Ok);
    let metrics = agent.metrics();
    for line in [
        "gqla_agent_gpu_memory_total_bytes{gpu=\"7\"} 102625181696",
        "gqla_agent_gpu_sm_clock_hertz{gpu=\"0\"} 1980000000",
        "gqla_agent_nvlink_up{gpu=\"0\"} 18",
        "gqla_agent_node_writes_total 1",
        "gqla_agent_driver_state{state=\"Ready\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_from_second_to_second_is_not_written() {
    let node = Node::with(&State::node("H100", 2));
    let agent = node.agent();
    node.until(ready).await;
    let mut busy = State::node("H100", 2);
    busy.gpus[1] = Gpu {
        sm_clock_mhz: Some(1200),
        temperature_celsius: Some(88),
        used_mib: 70_000,
        power_watts: Some(699),
        throttle: vec![gqla_fakenvml::Throttle::HwThermalSlowdown],
        ..Gpu::new("H100")
    };
    node.set(&busy);
    assert_eq!(node.writes_at_rest().await, 0);
    let metrics = agent.metrics();
    for line in [
        "gqla_agent_gpu_temperature_celsius{gpu=\"1\"} 88",
        "gqla_agent_gpu_throttle_reason{gpu=\"1\",reason=\"hardware_thermal\"} 1",
        "gqla_agent_gpu_throttle_reason{gpu=\"0\",reason=\"hardware_thermal\"} 0",
        "gqla_agent_gpu_power_watts{gpu=\"1\"} 699",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    busy.gpus[1].power_limit_watts = Some(500);
    node.set(&busy);
    let capped = node.until(|node| node.gpus[1].power_cap_watts.is_some()).await;
    assert_eq!((capped.gpus[1].power_cap_watts, capped.gpus[1].default_power_watts), (Some(500), Some(700)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_card_is_lost_with_its_details_and_comes_back_healthy() {
    let state = State::node("H20", 2);
    let node = Node::with(&state);
    let agent = node.agent();
    let before = node.until(ready).await;
    node.set(&state.clone().with_lost(1));
    let pulled = Instant::now();
    let lost = node.until(|node| node.gpus[1].health == GpuHealth::Lost).await;
    // One period, and the time a busy machine needs to notice.
    assert!(pulled.elapsed() < PERIOD + Duration::from_millis(500), "{:?}", pulled.elapsed());
    assert_eq!((lost.gpus[1].uuid.as_str(), lost.gpus[1].memory_mib), (before.gpus[1].uuid.as_str(), 97_871));
    assert_eq!((lost.driver, lost.since.as_str()), (DriverState::Ready, before.since.as_str()));
    assert_eq!(lost.gpus[0].health, GpuHealth::Healthy);
    assert_eq!(node.label(GPU_DEVICE).as_deref(), Some("2329"));
    tokio::time::sleep(PERIOD * 2).await;
    let metrics = agent.metrics();
    assert!(metrics.contains("gqla_agent_gpu_healthy{gpu=\"1\"} 0"), "{metrics}");
    assert!(!metrics.contains("gqla_agent_gpu_power_watts{gpu=\"1\"}"), "{metrics}");
    assert_eq!(node.writes_at_rest().await, 0);
    node.set(&state);
    node.until(|node| node.gpus[1].health == GpuHealth::Healthy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_fails_is_lost_while_others_answer() {
    let state = State::node("H20", 2);
    let node = Node::with(&state);
    let _agent = node.agent();
    let before = node.until(ready).await;
    let mut failing = state.clone();
    failing.gpus[0].failure = Some(Failure::Unknown);
    node.set(&failing);
    let lost = node.until(|node| node.gpus[0].health == GpuHealth::Lost).await;
    assert_eq!((lost.driver, lost.gpus[1].health), (DriverState::Ready, GpuHealth::Healthy));
    assert_eq!(lost.gpus[0].uuid, before.gpus[0].uuid);
    failing.gpus[1].failure = Some(Failure::Unknown);
    node.set(&failing);
    let refused = node.until(|node| node.driver == DriverState::Failing).await;
    assert_eq!(refused.gpus, lost.gpus);
    assert!(refused.message.unwrap().contains("GPU 0: "));
    node.set(&state);
    assert_eq!(node.until(ready).await.gpus, before.gpus);
}

/// Every call takes a second here, so there is time to make the driver refuse between the event and the reading after it.
#[test]
fn an_event_before_a_refusal_is_told_with_it() {
    let state = State::node("H100", 1);
    let node = Node::with(&state);
    let (send, mut messages) = tokio::sync::mpsc::channel(64);
    let search = Search { loader: false, driver_root: Path::to_owned(node.root.path()) };
    watch(search, Duration::from_secs(10), send).unwrap();
    let mut answer = || loop {
        if let Some(Message::Answered(answer)) = messages.blocking_recv() {
            return answer;
        }
    };
    assert!(matches!(answer().reading, Reading::Answered(_)));
    // The thread sleeps half a second before it waits for events.
    std::thread::sleep(Duration::from_millis(700));
    node.set(&state.clone().with_xid(0, 48).with_hang(1.0));
    std::thread::sleep(Duration::from_millis(2500));
    node.set(&state.with_xid(0, 48).with_failure(Failure::Unknown));
    let refused = answer();
    assert!(matches!(refused.reading, Reading::Refused(_)), "{:?}", refused.reading);
    assert_eq!(refused.events, [Event { gpu: Some(0), error: GpuError::Xid(48) }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_xid_marks_its_gpu_and_one_of_a_program_does_not() {
    let state = State::node("H100", 2);
    let node = Node::with(&state);
    let agent = node.agent();
    node.until(ready).await;
    let with_program_error = state.with_xid(0, 31);
    node.set(&with_program_error);
    assert_eq!(node.writes_at_rest().await, 0);
    let counted = "gqla_agent_gpu_xid_errors_total{gpu=\"0\",xid=\"31\"} 1";
    assert!(agent.metrics().contains(counted), "{}", agent.metrics());
    node.set(&with_program_error.with_xid(1, 48));
    let marked = node.until(|node| !node.gpus[1].health.is_healthy()).await;
    assert_eq!(marked.gpus[1].health, GpuHealth::Xid(48));
    assert_eq!(marked.gpus[0].health, GpuHealth::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_came_back_is_heard_again() {
    let state = State::node("H100", 2);
    let node = Node::with(&state);
    let _agent = node.agent();
    node.until(ready).await;
    node.set(&state.clone().with_lost(1));
    node.until(|node| node.gpus[1].health == GpuHealth::Lost).await;
    // The stand-in's event set learns of the loss when it is waited on.
    tokio::time::sleep(PERIOD * 4).await;
    node.set(&state);
    node.until(|node| node.gpus[1].health.is_healthy()).await;
    tokio::time::sleep(PERIOD * 2).await;
    node.set(&state.with_xid(1, 48));
    node.until(|node| node.gpus[1].health == GpuHealth::Xid(48)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_errors_mark_their_gpu() {
    let mut state = State::node("H100", 3);
    state.gpus[0].remap_pending = true;
    let node = Node::with(&state);
    let _agent = node.agent();
    let first = node.until(ready).await;
    assert_eq!(first.gpus[0].health, GpuHealth::Ecc);
    state.gpus[2].double_bit_errors = 1;
    node.set(&state);
    node.until(|node| node.gpus[2].health == GpuHealth::Ecc).await;
    assert_eq!(node.published().unwrap().gpus[1].health, GpuHealth::Healthy);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_missing_is_published_and_found_when_it_comes() {
    let node = Node::bare();
    let agent = node.agent();
    let missing = node.until(|node| node.driver == DriverState::Missing).await;
    assert!(missing.message.unwrap().contains("no libnvidia-ml.so.1"));
    assert!(missing.gpus.is_empty());
    assert_eq!((node.label(GPU_DEVICE).as_deref(), node.label(GPU_PRODUCT)), (Some("none"), None));
    assert_eq!(node.label(GPU_MULTIPROCESSORS), None);
    // That there is none is an answer.
    agent.until_ready().await;
    assert_eq!(node.writes_at_rest().await, 0);
    node.install(&State::node("L40S", 1));
    let found = node.until(ready).await;
    assert_eq!(found.gpus[0].product, "NVIDIA L40S");
    assert_eq!(node.label(GPU_PRODUCT).as_deref(), Some("NVIDIA-L40S"));
    assert_eq!(node.label(GPU_MULTIPROCESSORS).as_deref(), Some("142"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_states_that_keep_the_gpus() {
    let state = State::node("H20", 2);
    let node = Node::with(&state);
    let _agent = node.agent();
    let before = node.until(ready).await;
    let cases = [
        (Failure::NoPermission, DriverState::NoPermission),
        (Failure::DriverNotLoaded, DriverState::Missing),
        (Failure::VersionMismatch, DriverState::Failing),
    ];
    for (failure, expected) in cases {
        node.set(&state.clone().with_failure(failure));
        let refused = node.until(|node| node.driver == expected).await;
        assert_eq!(refused.gpus, before.gpus);
        assert_eq!(node.writes_at_rest().await, 0, "a sentence that changes would be written again");
    }
    node.set(&state.clone().with_old_driver());
    let old = node.until(|node| node.driver == DriverState::TooOld).await;
    assert_eq!(old.cuda_version.as_deref(), Some("11.4"));
    assert!(old.message.unwrap().contains("at least 12.0 is needed"));
    node.set(&state);
    let again = node.until(ready).await;
    assert_eq!((again.gpus, again.message), (before.gpus, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_driver_keeps_gpus_and_process_and_recovers() {
    let state = State::node("H20", 8);
    let node = Node::with(&state);
    let agent = node.agent();
    let before = node.until(ready).await;
    node.set(&state.clone().with_hang(5.0));
    let hanging = node.until(|node| node.driver == DriverState::Hanging).await;
    assert_eq!(hanging.gpus, before.gpus);
    assert!(hanging.message.unwrap().contains("did not answer within 1 s"));
    assert_eq!(node.writes_at_rest().await, 0);
    assert_eq!((agent.liveness.live(), agent.liveness.ready()), (Probe::Ok, Probe::Ok));
    let metrics = agent.metrics();
    assert!(metrics.contains("gqla_agent_driver_state{state=\"Hanging\"} 1"), "{metrics}");
    assert!(!metrics.contains("state=\"Ready\""), "{metrics}");
    node.set(&state);
    let again = node.until(ready).await;
    assert_eq!(again.gpus, before.gpus);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_hangs_from_the_start_is_a_verdict() {
    let node = Node::with(&State::node("H20", 1).with_hang(2.0));
    let agent = node.agent();
    assert!(matches!(agent.liveness.ready(), Probe::NotOk(_)));
    node.until(|node| node.driver == DriverState::Hanging).await;
    agent.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_writes_nothing_and_remembers() {
    let state = State::node("H100", 4);
    let node = Node::with(&state);
    let first = node.agent();
    node.until(ready).await;
    drop(first);
    // `since` counts seconds: a new one would differ.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = node.published().unwrap();
    node.server.clear();
    let second = node.agent();
    tokio::time::sleep(PERIOD * 6).await;
    assert_eq!(node.writes(), 0);
    assert_eq!(second.liveness.ready(), Probe::Ok);
    drop(second);
    // The driver is gone when a third one starts: it knows the GPUs from the Node alone.
    std::fs::remove_dir_all(node.folder()).unwrap();
    let _third = node.agent();
    let missing = node.until(|node| node.driver == DriverState::Missing).await;
    assert_eq!(missing.gpus, before.gpus);
    assert_eq!(missing.driver_version, before.driver_version);
}

#[tokio::test(flavor = "multi_thread")]
async fn slices_and_mixed_nodes_are_labelled_as_such() {
    let mut state = State::mixed(&["A100", "A100"]);
    state.gpus[0] = Gpu::sliced("A100", &["1g.10gb", "1g.10gb", "3g.40gb"]);
    let node = Node::with(&state);
    let _agent = node.agent();
    let sliced = node.until(ready).await;
    let slices = sliced.gpus[0].mig.as_ref().unwrap();
    let slices: Vec<_> =
        slices.iter().map(|s| (s.profile.as_str(), s.count, s.memory_mib, s.multiprocessors)).collect();
    assert_eq!(slices, [("1g.10gb", 2, 9728, Some(14)), ("3g.40gb", 1, 40_192, Some(42))]);
    assert_eq!(sliced.gpus[1].mig, None);
    assert_eq!(node.label(GPU_DEVICE).as_deref(), Some("mig"));
    assert_eq!(node.label(GPU_PRODUCT).as_deref(), Some("NVIDIA-A100-SXM4-80GB"));
    assert_eq!(node.label(GPU_MULTIPROCESSORS), None);

    let mixed = Node::with(&State::mixed(&["H20", "L40S"]));
    let _agent = mixed.agent();
    let inventory = mixed.until(ready).await;
    assert_eq!(inventory.gpus.iter().map(|gpu| gpu.pci_device_id).collect::<Vec<_>>(), [0x2329, 0x26b9]);
    assert_eq!((mixed.label(GPU_DEVICE).as_deref(), mixed.label(GPU_PRODUCT)), (Some("mixed"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_without_a_value_is_removed() {
    let node = Node::with(&State::node("H20", 2));
    let _agent = node.agent();
    node.until(ready).await;
    assert_eq!(node.label(GPU_MULTIPROCESSORS).as_deref(), Some("78"));
    node.set(&State::mixed(&["H20", "L40S"]));
    node.until(|node| node.gpus[1].product == "NVIDIA L40S").await;
    assert_eq!((node.label(GPU_DEVICE).as_deref(), node.label(GPU_PRODUCT)), (Some("mixed"), None));
    assert_eq!(node.label(GPU_MULTIPROCESSORS), None);
    assert_eq!(node.writes_at_rest().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_fail_are_tried_again_and_strangers_annotations_replaced() {
    let node = Node::with(&State::node("H20", 1));
    let annotations = json!({ GPU_INVENTORY: "not ours" });
    node.server.put(
        NODE,
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n", "annotations": annotations } }),
    );
    for code in [500, 403, 409] {
        node.server.fail_next_write(code);
    }
    let _agent = node.agent();
    node.until(ready).await;
    assert_eq!(node.writes(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_the_node_is_undone() {
    let node = Node::with(&State::node("H20", 2));
    let _agent = node.agent();
    let inventory = node.until(ready).await;
    let annotation = |node: &mut serde_json::Value| {
        node["metadata"]["annotations"].as_object_mut().unwrap().remove(GPU_INVENTORY);
    };
    let label = |node: &mut serde_json::Value| node["metadata"]["labels"][GPU_DEVICE] = json!("26b9");
    let removed = |node: &mut serde_json::Value| {
        node["metadata"]["labels"].as_object_mut().unwrap().remove(GPU_MULTIPROCESSORS);
    };
    let recounted =
        |node: &mut serde_json::Value| node["metadata"]["labels"][GPU_MULTIPROCESSORS] = json!("132");
    let anew = |node: &mut serde_json::Value| {
        *node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n" } });
    };
    let damages: [&dyn Fn(&mut serde_json::Value); 5] = [&annotation, &label, &removed, &recounted, &anew];
    let whole = |node: &Node| {
        let labels = [GPU_DEVICE, GPU_MULTIPROCESSORS].map(|key| node.label(key));
        labels == [Some("2329".to_owned()), Some("78".to_owned())] && node.published().is_some()
    };
    for damage in damages {
        node.server.edit(NODE, damage);
        let start = Instant::now();
        while !whole(&node) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", node.server.get(NODE));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(node.published(), Some(inventory.clone()));
        assert_eq!(node.writes_at_rest().await, 0, "once is enough");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_cannot_publish_is_not_ready_and_says_why() {
    let state = State::node("H20", 2);
    let node = Node::with(&state);
    let agent = node.agent();
    node.until(ready).await;
    agent.until_ready().await;
    for _ in 0..20 {
        node.server.fail_next_write(403);
    }
    node.set(&state.with_lost(1));
    let start = Instant::now();
    loop {
        match agent.liveness.ready() {
            Probe::NotOk(why) if why.contains("Node `n` cannot be written") => break,
            other => assert!(start.elapsed() < Duration::from_secs(20), "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.until(|node| node.gpus[1].health == GpuHealth::Lost).await;
    agent.until_ready().await;
}
