//! The fleet at one moment, as plans see it.

use std::{collections::BTreeMap, sync::Arc};

use gqla_fleet::{Agents, Classes, FleetNode, Hardware, NodeHardware, SliceFacts};
use gqla_planner::Calibration;

/// The fleet at one moment.
#[derive(Clone, Debug, Default)]
pub struct FleetSnapshot {
    /// Nodes, pruned, and shared with other snapshots while they do not change.
    pub nodes: Vec<Arc<FleetNode>>,
    /// What they have, in the same order.
    pub hardware: Hardware,
    /// Cost per GPU and hour of the classes that have one.
    pub costs: BTreeMap<String, f64>,
    /// Measurements that replace built-in figures.
    pub calibration: Arc<Calibration>,
}

impl FleetSnapshot {
    /// Judges `nodes` by everything known of them. `agents` is `None` where agents are not watched.
    pub fn new(
        nodes: Vec<Arc<FleetNode>>,
        classes: &Classes,
        slices: &BTreeMap<String, SliceFacts>,
        agents: Option<&Agents>,
    ) -> Self {
        let hardware =
            Hardware::new(classes.catalogue.clone(), nodes.iter().map(AsRef::as_ref), slices, agents);
        Self { nodes, hardware, costs: classes.costs.clone(), calibration: Arc::default() }
    }

    /// The same fleet, planned with measurements.
    #[must_use]
    pub fn calibrated(self, calibration: Arc<Calibration>) -> Self {
        Self { calibration, ..self }
    }

    /// Every node and what it has.
    pub fn described(&self) -> impl Iterator<Item = (&FleetNode, &NodeHardware)> {
        self.nodes.iter().map(AsRef::as_ref).zip(&self.hardware.nodes)
    }
}
