//! What is wrong with nodes, one by one and as people are told.

use std::collections::BTreeMap;

use serde::Serialize;

/// Nodes that a group names before it only counts.
const NAMED: usize = 3;

/// What kind of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ProblemKind {
    /// A label says another class than NVML, which wins.
    LyingLabel,
    /// GPUs of several kinds in one node.
    MixedModels,
    /// The GPUs are cut into MIG slices.
    MigSlice,
    /// Pods share GPUs.
    SharedGpu,
    /// No class has this GPU.
    UnknownProduct,
    /// A GPU is there, and nothing says which.
    Unlabelled,
    /// An administrator's label names no class.
    UnknownClass,
    /// Clouds' labels contradict each other.
    Disputed,
    /// The agent's annotation cannot be believed.
    BadAnnotation,
    /// There is no driver.
    DriverMissing,
    /// The driver is too old.
    DriverTooOld,
    /// The agent may not open the devices.
    DriverNoPermission,
    /// The driver does not answer.
    DriverHanging,
    /// The driver answers with an error.
    DriverFailing,
    /// A GPU fell off the bus.
    GpuLost,
    /// A GPU reported an error that ends the work on it.
    GpuUnhealthy,
    /// The agent is gone, and its facts are the last known.
    StaleFacts,
}

impl ProblemKind {
    /// Every kind.
    pub const ALL: [Self; 17] = [
        Self::LyingLabel,
        Self::MixedModels,
        Self::MigSlice,
        Self::SharedGpu,
        Self::UnknownProduct,
        Self::Unlabelled,
        Self::UnknownClass,
        Self::Disputed,
        Self::BadAnnotation,
        Self::DriverMissing,
        Self::DriverTooOld,
        Self::DriverNoPermission,
        Self::DriverHanging,
        Self::DriverFailing,
        Self::GpuLost,
        Self::GpuUnhealthy,
        Self::StaleFacts,
    ];

    /// One word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LyingLabel => "LyingLabel",
            Self::MixedModels => "MixedModels",
            Self::MigSlice => "MigSlice",
            Self::SharedGpu => "SharedGpu",
            Self::UnknownProduct => "UnknownProduct",
            Self::Unlabelled => "Unlabelled",
            Self::UnknownClass => "UnknownClass",
            Self::Disputed => "Disputed",
            Self::BadAnnotation => "BadAnnotation",
            Self::DriverMissing => "DriverMissing",
            Self::DriverTooOld => "DriverTooOld",
            Self::DriverNoPermission => "DriverNoPermission",
            Self::DriverHanging => "DriverHanging",
            Self::DriverFailing => "DriverFailing",
            Self::GpuLost => "GpuLost",
            Self::GpuUnhealthy => "GpuUnhealthy",
            Self::StaleFacts => "StaleFacts",
        }
    }

    /// Whether it puts in doubt what the node is, rather than whether it works at present.
    pub const fn is_of_recognition(self) -> bool {
        matches!(
            self,
            Self::LyingLabel
                | Self::MixedModels
                | Self::MigSlice
                | Self::SharedGpu
                | Self::UnknownProduct
                | Self::Unlabelled
                | Self::UnknownClass
                | Self::Disputed
                | Self::BadAnnotation
        )
    }
}

/// Something that is wrong with one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// What kind of thing.
    pub kind: ProblemKind,
    /// Name of the node.
    pub node: String,
    /// What it is about: a label, an annotation, `GPU 3`.
    pub fact: String,
    /// What is wrong and what to do, without the node's name.
    pub sentence: String,
}

/// Problems of one kind that are told in one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProblemGroup {
    /// The kind.
    pub kind: ProblemKind,
    /// Number of nodes.
    pub nodes: usize,
    /// The first nodes and facts, how many more, and what to do.
    pub sentence: String,
}

/// `problems` by kind and sentence, most serious kind first. Each group names three nodes and counts the others.
pub fn grouped<'p>(problems: impl IntoIterator<Item = &'p Problem>) -> Vec<ProblemGroup> {
    let mut groups: BTreeMap<(ProblemKind, &str), BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
    for problem in problems {
        let nodes = groups.entry((problem.kind, problem.sentence.as_str())).or_default();
        nodes.entry(problem.node.as_str()).or_default().push(problem.fact.as_str());
    }
    groups
        .into_iter()
        .map(|((kind, sentence), nodes)| ProblemGroup {
            kind,
            nodes: nodes.len(),
            sentence: format!("{}: {sentence}", named(&nodes)),
        })
        .collect()
}

fn named(nodes: &BTreeMap<&str, Vec<&str>>) -> String {
    let name = |(node, facts): (&&str, &Vec<&str>)| {
        let facts: Vec<_> = facts.iter().filter(|fact| !fact.is_empty()).copied().collect();
        if facts.is_empty() { (*node).to_owned() } else { format!("{node} ({})", facts.join(", ")) }
    };
    let first: Vec<_> = nodes.iter().take(NAMED).map(name).collect();
    let more = nodes.len().saturating_sub(NAMED);
    let word = if nodes.len() == 1 { "node" } else { "nodes" };
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{word} {}{rest}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_nodes_are_named_and_the_others_counted() {
        let problem = |node: &str, fact: &str| Problem {
            kind: ProblemKind::GpuLost,
            node: node.to_owned(),
            fact: fact.to_owned(),
            sentence: "fell off the bus".to_owned(),
        };
        let mut problems = vec![problem("a", "GPU 3"), problem("a", "GPU 4"), problem("b", "GPU 0")];
        assert_eq!(grouped(&problems)[0].sentence, "nodes a (GPU 3, GPU 4), b (GPU 0): fell off the bus");
        problems.extend(["c", "d", "e"].map(|node| problem(node, "")));
        let groups = grouped(&problems);
        assert_eq!((groups.len(), groups[0].nodes), (1, 5));
        assert_eq!(groups[0].sentence, "nodes a (GPU 3, GPU 4), b (GPU 0), c and 2 more: fell off the bus");
    }
}
