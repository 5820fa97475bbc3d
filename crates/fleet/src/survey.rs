//! Nodes by class.

use std::collections::BTreeMap;

use gqla_planner::GpuClass;

use crate::{
    hardware::{Hardware, NodeHardware},
    problem::Problem,
};

/// Nodes of one class that pods may use.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassNodes {
    /// The class.
    pub class: GpuClass,
    /// Usable GPUs of each node, one entry per node.
    pub gpus_per_node: Vec<u32>,
    /// What is wrong with these nodes.
    pub problems: Vec<Problem>,
}

impl ClassNodes {
    /// Most GPUs one node has.
    pub fn most_gpus(&self) -> u32 {
        self.gpus_per_node.iter().copied().max().unwrap_or(0)
    }

    /// Replicas of `degree` GPUs that fit the nodes when they are otherwise empty.
    pub fn capacity(&self, degree: u32) -> u32 {
        self.gpus_per_node.iter().map(|gpus| gpus / degree.max(1)).sum()
    }
}

/// What nodes turned out to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// Recognised classes by name, each with at least one node.
    pub classes: BTreeMap<String, ClassNodes>,
    /// Everything that is wrong with any of the nodes.
    pub problems: Vec<Problem>,
}

/// Groups `nodes`, which are some of `hardware`'s, by class.
pub fn survey<'h>(hardware: &Hardware, nodes: impl IntoIterator<Item = &'h NodeHardware>) -> Survey {
    let mut survey = Survey::default();
    for node in nodes {
        survey.problems.extend(node.problems.iter().cloned());
        let Some(class) = node.recognition.class().and_then(|name| hardware.class(name)) else { continue };
        let nodes = survey.classes.entry(class.name().to_owned()).or_insert_with(|| ClassNodes {
            class: class.clone(),
            gpus_per_node: Vec::new(),
            problems: Vec::new(),
        });
        nodes.gpus_per_node.push(node.gpus.usable);
        nodes.problems.extend(node.problems.iter().cloned());
    }
    survey
}
