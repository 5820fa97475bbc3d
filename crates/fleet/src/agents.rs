//! How old what agents told is.

use std::collections::BTreeMap;

/// Whether a node's agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentState {
    /// Whether its pod is ready.
    pub ready: bool,
    /// Since when, in seconds of the same clock as [`Agents::now`].
    pub since: i64,
}

/// The agents of the fleet at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agents {
    /// Agents by node. A node without an entry has none.
    pub by_node: BTreeMap<String, AgentState>,
    /// When it became known that nodes without an entry have none; `None` when they are looked at only once. Then there is
    /// no later look that tells of an agent which is gone for good.
    pub known_since: Option<i64>,
    /// Now, in seconds.
    pub now: i64,
}

/// An agent that restarts or is being upgraded is no news.
pub(crate) const STALE_SECONDS: i64 = 60;

/// The steps in which age is told. Finer ones would change the text, and with it every status, all the time.
const STEPS: [(i64, &str); 7] = [
    (7 * 86_400, "7 days"),
    (86_400, "1 day"),
    (6 * 3600, "6 h"),
    (3600, "1 h"),
    (900, "15 min"),
    (300, "5 min"),
    (STALE_SECONDS, "60 s"),
];

/// What is told where there is no step.
pub(crate) const UNKNOWN_AGE: &str = "unknown";

impl Agents {
    /// How long ago `node`'s agent stopped being ready, in a step it has passed; `None` while the agent runs or, when
    /// agents are watched, has only just gone.
    pub fn stale(&self, node: &str) -> Option<&'static str> {
        let since = match self.by_node.get(node) {
            Some(AgentState { ready: true, .. }) => return None,
            Some(AgentState { since, .. }) => Some(*since),
            None => self.known_since,
        };
        let age = since.map_or(0, |since| self.now.saturating_sub(since));
        let step = STEPS.iter().find(|(least, _)| age >= *least).map(|(_, text)| *text);
        step.or(self.known_since.is_none().then_some(UNKNOWN_AGE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_told_in_steps_and_only_of_agents_that_are_gone() {
        let state = |ready, since| AgentState { ready, since };
        let by_node = [("up", state(true, 0)), ("down", state(false, 1000))];
        let mut agents = Agents {
            by_node: by_node.map(|(node, state)| (node.to_owned(), state)).into(),
            known_since: Some(500),
            now: 1059,
        };
        let told = |agents: &Agents| ["up", "down", "never"].map(|node| agents.stale(node));
        assert_eq!(told(&agents), [None, None, Some("5 min")]);
        agents.now = 1060;
        assert_eq!(told(&agents), [None, Some("60 s"), Some("5 min")]);
        agents.now = 1_000_000;
        assert_eq!(told(&agents), [None, Some("7 days"), Some("7 days")]);
        (agents.known_since, agents.now) = (None, 1059);
        assert_eq!(told(&agents), [None, Some("unknown"), Some("unknown")], "nobody looks again");
        agents.now = 1060;
        assert_eq!(told(&agents), [None, Some("60 s"), Some("unknown")]);
    }
}
