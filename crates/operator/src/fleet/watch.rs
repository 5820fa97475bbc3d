//! Keeps the fleet up to date from watches on Nodes, GPUClasses, agents' pods and, where asked for, ResourceSlices.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::StreamExt as _;
use gqla_api::{
    GPUClass,
    labels::{COMPONENT, COMPONENT_AGENT},
};
use gqla_decide::FleetSnapshot;
use gqla_fleet::{Classes, FleetNode, Index, NodeSlice, classes, slice_facts};
use gqla_planner::Calibration;
use k8s_openapi::api::{
    core::v1::{Node, Pod},
    resource::v1::ResourceSlice,
};
use kube::{
    Api, Client, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{WatchStreamExt as _, watcher, watcher::Event},
};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{AgentPods, apply};

/// How often the age of what absent agents told is looked at.
const AGE_PERIOD: Duration = Duration::from_secs(15);

/// What is watched besides Nodes and GPUClasses.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Namespace of the agents' pods.
    pub agents: String,
    /// Whether ResourceSlices are watched.
    pub resource_slices: bool,
}

#[derive(Default)]
struct State {
    nodes: Index<Arc<FleetNode>>,
    declared: Index<GPUClass>,
    classes: Classes,
    slices: Index<NodeSlice>,
    agents: AgentPods,
    calibration: Arc<Calibration>,
    /// Judged since the last change.
    snapshot: Option<Arc<FleetSnapshot>>,
    /// How old facts of absent agents were last told to be, by node.
    stale: BTreeMap<String, &'static str>,
}

/// A shared picture of the fleet.
#[derive(Clone)]
pub struct Fleet {
    state: Arc<RwLock<State>>,
    /// Counts the changes since Nodes and GPUClasses were listed; 0 until then.
    changes: watch::Sender<u64>,
    clock: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::with_clock(|| {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
        })
    }
}

impl Fleet {
    /// An empty fleet whose time `clock` tells, in Unix seconds.
    pub fn with_clock(clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self { state: Arc::default(), changes: watch::Sender::new(0), clock: Arc::new(clock) }
    }

    /// The same fleet, planned with measurements.
    #[must_use]
    pub fn calibrated(self, calibration: Calibration) -> Self {
        self.state.write().calibration = Arc::new(calibration);
        self
    }

    /// The fleet now. Empty until [`Self::is_ready`].
    pub fn snapshot(&self) -> Arc<FleetSnapshot> {
        if let Some(snapshot) = &self.state.read().snapshot {
            return snapshot.clone();
        }
        let mut state = self.state.write();
        if !state.is_complete() {
            return Arc::default();
        }
        let now = (self.clock)();
        let judged = || Arc::new(state.judged(now));
        let snapshot = state.snapshot.clone().unwrap_or_else(judged);
        state.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// Whether Nodes and GPUClasses have been listed. Plans made before would be wrong.
    pub fn is_ready(&self) -> bool {
        *self.changes.borrow() > 0
    }

    /// Wakes whenever the fleet changed in a way that can change a plan or what is told of it.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits for [`Self::is_ready`].
    pub async fn wait_ready(&self) {
        // The sender lives in self, so the wait cannot fail.
        let _ = self.changes.subscribe().wait_for(|changes| *changes > 0).await;
    }

    /// Follows the cluster until dropped. Watch errors are logged and retried with backoff; the last known fleet serves
    /// meanwhile.
    pub async fn follow(&self, client: Client, sources: &Sources) {
        let paged = || watcher::Config::default().any_semantic().page_size(500);
        let agents = Api::namespaced(client.clone(), &sources.agents);
        let agents_only = watcher::Config::default().labels(&format!("{COMPONENT}={COMPONENT_AGENT}"));
        let slices = async {
            if sources.resource_slices {
                let api = Api::<ResourceSlice>::all(client.clone());
                follow(api, paged(), "ResourceSlices", |event| self.slice_event(event)).await;
            }
        };
        tokio::join!(
            follow(Api::<Node>::all(client.clone()), paged(), "Nodes", |event| self.node_event(event)),
            follow(Api::all(client.clone()), watcher::Config::default(), "GPUClasses", |event| {
                self.class_event(event);
            }),
            follow(agents, agents_only, "agents' pods", |event| self.agent_event(event)),
            slices,
            self.follow_age(),
        );
    }

    async fn follow_age(&self) {
        let mut ticks = tokio::time::interval(AGE_PERIOD);
        loop {
            ticks.tick().await;
            self.look_at_age();
        }
    }

    /// Takes one event of the Node watch.
    pub fn node_event(&self, event: Event<Node>) {
        let mut state = self.state.write();
        let changed =
            apply(&mut state.nodes, event, |node| (node.name_any(), Some(Arc::new(FleetNode::new(node)))));
        self.publish(&mut state, changed);
    }

    /// Takes one event of the GPUClass watch.
    pub fn class_event(&self, event: Event<DeserializeGuard<GPUClass>>) {
        let mut state = self.state.write();
        let changed = apply(&mut state.declared, event, |class| match class.0 {
            Ok(mut class) => {
                // Only what the class says may count as a change.
                class.metadata = kube::api::ObjectMeta { name: class.metadata.name, ..Default::default() };
                (class.name_any(), Some(class))
            }
            Err(invalid) => {
                tracing::warn!(name = invalid.metadata.name, error = invalid.error, "GPUClass ignored");
                (invalid.metadata.name.unwrap_or_default(), None)
            }
        });
        if changed {
            let next = classes(state.declared.values());
            for sentence in newly_refused(&state.classes.refused, &next.refused) {
                tracing::warn!("{sentence}");
            }
            state.classes = next;
        }
        self.publish(&mut state, changed);
    }

    /// Takes one event of the ResourceSlice watch.
    pub fn slice_event(&self, event: Event<ResourceSlice>) {
        let mut state = self.state.write();
        let changed = apply(&mut state.slices, event, |slice| (slice.name_any(), NodeSlice::of(&slice)));
        self.publish(&mut state, changed);
    }

    /// Takes one event of the watch on agents' pods. It wakes nobody: an agent may be absent for a while.
    pub fn agent_event(&self, event: Event<Pod>) {
        let now = (self.clock)();
        self.state.write().agents.event(event, now);
    }

    /// Wakes subscribers when facts of absent agents have become notably older, or an agent is back.
    pub fn look_at_age(&self) {
        let now = (self.clock)();
        let mut state = self.state.write();
        let State { nodes, agents, .. } = &mut *state;
        agents.keep_nodes(|node| nodes.get(node).is_some());
        let Some(agents) = state.agents.at(now) else { return };
        let told = state.nodes.values().filter(|node| node.inventory.is_some());
        let stale = told.filter_map(|node| Some((node.name.clone(), agents.stale(&node.name)?))).collect();
        let changed = state.stale != stale;
        state.stale = stale;
        self.publish(&mut state, changed);
    }

    fn publish(&self, state: &mut State, changed: bool) {
        if changed && state.is_complete() {
            state.snapshot = None;
            self.changes.send_modify(|changes| *changes += 1);
        }
    }
}

impl State {
    fn is_complete(&self) -> bool {
        self.nodes.is_complete() && self.declared.is_complete()
    }

    fn judged(&self, now: i64) -> FleetSnapshot {
        let slices: Vec<_> = self.slices.values().collect();
        let slices = slice_facts(slices.into_iter());
        let nodes = self.nodes.values().cloned().collect();
        FleetSnapshot::new(nodes, &self.classes, &slices, self.agents.at(now).as_ref())
            .calibrated(self.calibration.clone())
    }
}

async fn follow<K>(api: Api<K>, config: watcher::Config, what: &str, take: impl Fn(Event<K>))
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => take(event),
            Err(error) => tracing::warn!(%error, "watching {what} failed; the last known ones serve"),
        }
    }
}

/// A change of the fleet repeats what is wrong with its classes; a person wants to read it once.
fn newly_refused<'a>(before: &'a [String], now: &'a [String]) -> impl Iterator<Item = &'a String> {
    now.iter().filter(|sentence| !before.contains(sentence))
}

#[cfg(test)]
mod tests {
    use gqla_decide::parse_calibration;
    use k8s_openapi::api::core::v1::Node;
    use kube::runtime::watcher::Event;

    use super::{Fleet, newly_refused};

    #[test]
    fn every_picture_of_the_fleet_carries_the_calibration() {
        let device = r#"{"devices": [{"gpu": "CPU", "flops_per_second": 1e12, "bytes_per_second": 1e11, "provenance": {
            "tool": "t", "device": "d", "build": "b", "measured_at": "2026-01-02T03:04:05Z", "samples": 1}}]}"#;
        let calibration = parse_calibration(device).unwrap();
        let fleet = Fleet::default().calibrated(calibration.clone());
        fleet.class_event(Event::Init);
        fleet.class_event(Event::InitDone);
        fleet.node_event(Event::Init);
        fleet.node_event(Event::InitDone);
        assert_eq!(*fleet.snapshot().calibration, calibration);
        fleet.node_event(Event::Apply(Node::default()));
        assert_eq!((fleet.snapshot().nodes.len(), &*fleet.snapshot().calibration), (1, &calibration));
    }

    #[test]
    fn a_refused_class_is_told_once_per_change() {
        let sentences = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let (none, one, two) = (sentences(&[]), sentences(&["a"]), sentences(&["a", "b"]));
        let cases =
            [(&none, &one, vec!["a"]), (&one, &one, vec![]), (&one, &two, vec!["b"]), (&two, &none, vec![])];
        for (before, now, told) in cases {
            assert_eq!(newly_refused(before, now).collect::<Vec<_>>(), told);
        }
    }
}
