//! Keeps the fleet up to date from watches on Nodes and GPUClasses.

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt as _;
use gqla_api::GPUClass;
use gqla_planner::Catalogue;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    core::DeserializeGuard,
    runtime::{WatchStreamExt as _, watcher},
};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{FleetNode, Index, catalogue};

/// The fleet at one moment.
#[derive(Clone, Debug)]
pub struct FleetSnapshot {
    /// Nodes, pruned.
    pub nodes: Vec<FleetNode>,
    /// Known GPU classes.
    pub catalogue: Catalogue,
    /// Cost per GPU and hour of the classes that have one.
    pub costs: BTreeMap<String, f64>,
    /// A sentence for each GPUClass that cannot be used.
    pub refused_classes: Vec<String>,
}

impl Default for FleetSnapshot {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            catalogue: Catalogue::builtin(),
            costs: BTreeMap::new(),
            refused_classes: Vec::new(),
        }
    }
}

#[derive(Default)]
struct State {
    nodes: Index<FleetNode>,
    classes: Index<GPUClass>,
    snapshot: Arc<FleetSnapshot>,
}

/// A shared picture of the fleet.
#[derive(Clone)]
pub struct Fleet {
    state: Arc<RwLock<State>>,
    /// Counts the changes since both listings were complete; 0 until then.
    changes: watch::Sender<u64>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self { state: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl Fleet {
    /// The fleet now. Empty until [`Self::is_ready`].
    pub fn snapshot(&self) -> Arc<FleetSnapshot> {
        self.state.read().snapshot.clone()
    }

    /// Whether Nodes and GPUClasses have been listed. Plans made before would be wrong.
    pub fn is_ready(&self) -> bool {
        *self.changes.borrow() > 0
    }

    /// Wakes whenever the fleet changed in a way that can change a plan.
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
    pub async fn follow(&self, client: Client) {
        tokio::join!(self.follow_nodes(client.clone()), self.follow_classes(client));
    }

    async fn follow_nodes(&self, client: Client) {
        let config = watcher::Config::default().any_semantic().page_size(500);
        let stream = watcher(Api::<Node>::all(client), config).default_backoff();
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => self.node_event(event),
                Err(error) => tracing::warn!(%error, "watching Nodes failed; the last known fleet serves"),
            }
        }
    }

    async fn follow_classes(&self, client: Client) {
        let api = Api::<DeserializeGuard<GPUClass>>::all(client);
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => self.class_event(event),
                Err(error) => tracing::warn!(%error, "watching GPUClasses failed; the last known ones serve"),
            }
        }
    }

    /// Takes one event of the Node watch.
    pub fn node_event(&self, event: watcher::Event<Node>) {
        let mut state = self.state.write();
        let changed = state.nodes.apply(event, |node| (node.name_any(), Some(FleetNode::new(node))));
        self.publish(&mut state, changed);
    }

    /// Takes one event of the GPUClass watch.
    pub fn class_event(&self, event: watcher::Event<DeserializeGuard<GPUClass>>) {
        let mut state = self.state.write();
        let changed = state.classes.apply(event, |class| match class.0 {
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
        self.publish(&mut state, changed);
    }

    fn publish(&self, state: &mut State, changed: bool) {
        if !changed || !state.nodes.is_complete() || !state.classes.is_complete() {
            return;
        }
        let (catalogue, costs, refused_classes) = catalogue(state.classes.values());
        for sentence in newly_refused(&state.snapshot.refused_classes, &refused_classes) {
            tracing::warn!("{sentence}");
        }
        let nodes = state.nodes.values().cloned().collect();
        state.snapshot = Arc::new(FleetSnapshot { nodes, catalogue, costs, refused_classes });
        self.changes.send_modify(|changes| *changes += 1);
    }
}

/// A change of the fleet repeats what is wrong with its classes; a person wants to read it once.
fn newly_refused<'a>(before: &'a [String], now: &'a [String]) -> impl Iterator<Item = &'a String> {
    now.iter().filter(|sentence| !before.contains(sentence))
}

#[cfg(test)]
mod tests {
    use super::newly_refused;

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
