//! Whether each node's agent runs, by pods as they are at one moment.

use std::collections::BTreeMap;

use gqla_api::labels::{COMPONENT, COMPONENT_AGENT};
use gqla_fleet::{AgentState, Agents};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};

/// Agents among `pods`, which are all there are. A node without a ready one has none.
pub fn agents(pods: &[Pod], now: Timestamp) -> Agents {
    let mut by_node: BTreeMap<String, AgentState> = BTreeMap::new();
    for (node, state) in pods.iter().filter(|pod| is_agent(pod)).filter_map(state) {
        // While a pod replaces another, one that is ready counts.
        let known = by_node.entry(node).or_insert(state);
        if state.ready {
            *known = state;
        }
    }
    Agents { by_node, known_since: None, now: now.as_second() }
}

fn is_agent(pod: &Pod) -> bool {
    let component = pod.metadata.labels.as_ref().and_then(|labels| labels.get(COMPONENT));
    component.is_some_and(|component| component == COMPONENT_AGENT)
}

/// `None` where it is not known since when.
fn state(pod: &Pod) -> Option<(String, AgentState)> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let condition = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready")?;
    let since = condition.last_transition_time.as_ref().map(|time| time.0.as_second());
    let ready = condition.status == "True" && pod.metadata.deletion_timestamp.is_none();
    let since = if ready { since.unwrap_or_default() } else { since? };
    Some((node, AgentState { ready, since }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn only_a_ready_agent_keeps_facts_fresh() {
        let pod = |node: &str, component: &str, ready: Value| -> Pod {
            from_value(json!({
                "metadata": {"labels": {COMPONENT: component}}, "spec": {"nodeName": node, "containers": []},
                "status": {"conditions": [ready]},
            }))
            .unwrap()
        };
        let at = |status: &str, time: Option<&str>| json!({"type": "Ready", "status": status, "lastTransitionTime": time});
        let hour = Some("1970-01-01T00:00:00Z");
        let pods = [
            pod("up", COMPONENT_AGENT, at("True", None)),
            pod("replaced", COMPONENT_AGENT, at("True", hour)),
            pod("replaced", COMPONENT_AGENT, at("False", hour)),
            pod("down", COMPONENT_AGENT, at("False", hour)),
            pod("timeless", COMPONENT_AGENT, at("False", None)),
            pod("other", "operator", at("True", hour)),
        ];
        let agents = agents(&pods, Timestamp::from_second(3600).unwrap());
        let told = ["up", "replaced", "down", "timeless", "other"].map(|node| agents.stale(node));
        assert_eq!(told, [None, None, Some("1 h"), Some("unknown"), Some("unknown")]);
    }
}
