//! Which nodes' agents run, and since when not.

use std::collections::{BTreeMap, BTreeSet};

use gqla_fleet::{AgentState, Agents, Index};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt as _, runtime::watcher::Event};

use super::apply;

/// An agent's pod, pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AgentPod {
    node: String,
    ready: bool,
    /// When it became ready or ceased to be, in Unix seconds.
    since: Option<i64>,
}

/// The agents' pods. Every moment is passed in.
#[derive(Debug, Default)]
pub struct AgentPods {
    pods: Index<AgentPod>,
    /// When the last pod of a node that had one was gone.
    gone: BTreeMap<String, i64>,
    /// When the first listing was complete.
    known_since: i64,
}

impl AgentPods {
    /// Takes one event of the Pod watch at `now`, in Unix seconds.
    pub fn event(&mut self, event: Event<Pod>, now: i64) {
        let listed_first = matches!(event, Event::InitDone) && !self.pods.is_complete();
        let before: BTreeSet<String> = match &event {
            Event::Apply(pod) | Event::Delete(pod) => {
                self.pods.get(&pod.name_any()).map(|pod| pod.node.clone()).into_iter().collect()
            }
            Event::InitDone => self.pods.values().map(|pod| pod.node.clone()).collect(),
            Event::Init | Event::InitApply(_) => BTreeSet::new(),
        };
        if !apply(&mut self.pods, event, prune) {
            return;
        }
        if listed_first {
            self.known_since = now;
        }
        let after: BTreeSet<&str> = self.pods.values().map(|pod| pod.node.as_str()).collect();
        for node in before.into_iter().filter(|node| !after.contains(node.as_str())) {
            self.gone.entry(node).or_insert(now);
        }
        self.gone.retain(|node, _| !after.contains(node.as_str()));
    }

    /// Forgets nodes that are no more.
    pub fn keep_nodes(&mut self, exists: impl Fn(&str) -> bool) {
        self.gone.retain(|node, _| exists(node));
    }

    /// The agents at `now`; `None` until they have been listed.
    pub fn at(&self, now: i64) -> Option<Agents> {
        if !self.pods.is_complete() {
            return None;
        }
        let mut by_node: BTreeMap<String, AgentState> = self
            .gone
            .iter()
            .map(|(node, since)| (node.clone(), AgentState { ready: false, since: *since }))
            .collect();
        for pod in self.pods.values() {
            let state = AgentState { ready: pod.ready, since: pod.since.unwrap_or(self.known_since) };
            // While a pod replaces another, one that is ready counts.
            by_node
                .entry(pod.node.clone())
                .and_modify(|other| {
                    if state.ready || !other.ready {
                        *other = state;
                    }
                })
                .or_insert(state);
        }
        Some(Agents { by_node, known_since: Some(self.known_since), now })
    }
}

/// Key and pruned pod; no pod before it is scheduled.
fn prune(pod: Pod) -> (String, Option<AgentPod>) {
    let key = pod.name_any();
    let leaving = pod.metadata.deletion_timestamp.is_some();
    let status = pod.status.unwrap_or_default();
    let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let ready = !leaving && condition.is_some_and(|condition| condition.status == "True");
    let since = condition.and_then(|condition| condition.last_transition_time.as_ref());
    let since = since.map(|time| time.0.as_second());
    let node = pod.spec.and_then(|spec| spec.node_name);
    (key, node.map(|node| AgentPod { node, ready, since }))
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn pod(name: &str, ready: bool) -> Pod {
        let status = if ready { "True" } else { "False" };
        from_value(json!({
            "metadata": { "name": name }, "spec": { "nodeName": "n", "containers": [] },
            "status": { "conditions": [
                { "type": "Ready", "status": status, "lastTransitionTime": "1970-01-01T00:01:40Z" }] },
        }))
        .unwrap()
    }

    #[test]
    fn an_agent_is_gone_when_its_last_pod_is() {
        let mut agents = AgentPods::default();
        assert_eq!(agents.at(0), None);
        for event in [Event::Init, Event::InitApply(pod("a", true)), Event::InitDone] {
            agents.event(event, 50);
        }
        let state = |agents: &AgentPods| agents.at(0).unwrap().by_node.get("n").copied();
        assert_eq!(state(&agents), Some(AgentState { ready: true, since: 100 }));
        agents.event(Event::Apply(pod("b", false)), 200);
        assert!(state(&agents).unwrap().ready, "its successor is still starting");
        agents.event(Event::Delete(pod("a", true)), 300);
        assert_eq!(state(&agents), Some(AgentState { ready: false, since: 100 }));
        agents.event(Event::Delete(pod("b", false)), 400);
        assert_eq!(state(&agents), Some(AgentState { ready: false, since: 400 }));
        agents.keep_nodes(|_| false);
        assert_eq!(state(&agents), None);
    }
}
