//! The GPUs that nodes are to have.

use std::collections::BTreeMap;

use super::Builder;
use crate::cluster::error::ClusterError;
use crate::cluster::gpus::{GpuSpec, NodeGpus, StandIns};
use crate::cluster::layout::Layout;

impl Builder {
    /// Gives the node added last `count` GPUs of a profile of the stand-in NVML, such as `H20`; several calls
    /// make a mixed node. The node then has a driver, NVML and CUDA, in /run/nvidia/driver and a device plugin that advertises
    /// `nvidia.com/gpu`. It has no label of a GPU but those of [`Builder::label`], so that labels can lie.
    pub fn gpus(mut self, profile: impl Into<String>, count: usize) -> Self {
        let profile = profile.into();
        match self.nodes.last_mut() {
            _ if gqla_fakenvml::profile(&profile).is_none() => {
                self.refuse("GPU profile", &profile, "is none that `gqla_fakenvml::profiles` lists");
            }
            Some(node) => {
                let spec = node.gpus.get_or_insert_with(GpuSpec::default);
                spec.profiles.extend(std::iter::repeat_n(profile, count));
            }
            None => self.refuse("GPU profile", &profile, "has no node: call `node` before `gpus`"),
        }
        self
    }

    /// Takes the driver from the node added last: its GPUs are there, nothing answers for them, and its device
    /// plugin waits for [`NodeGpus::install_driver`](crate::cluster::NodeGpus::install_driver).
    pub fn without_driver(mut self) -> Self {
        match self.nodes.last_mut().map(|node| (node.name.clone(), node.gpus.as_mut())) {
            Some((_, Some(gpus))) => gpus.driver_missing = true,
            Some((name, None)) => {
                self.refuse("node", &name, "has no GPUs: call `gpus` before `without_driver`");
            }
            None => self.refuse("missing driver", "", "has no node: call `node` and `gpus` before it"),
        }
        self
    }

    /// Where the programs are that nodes with GPUs need.
    pub fn gpu_stand_ins(mut self, stand_ins: StandIns) -> Self {
        self.stand_ins = Some(stand_ins);
        self
    }

    /// Refuses GPUs that nothing can stand in for.
    pub(super) fn refuse_gpus_without_stand_ins(&mut self) {
        let node = self.nodes.iter().find(|node| node.gpus.is_some());
        if let (Some(name), None) = (node.map(|node| node.name.clone()), &self.stand_ins) {
            self.refuse("node", &name, "has GPUs and nothing to stand in for them: call `gpu_stand_ins`");
        }
    }

    /// Writes the driver of every node that has GPUs.
    pub(super) fn write_gpus(
        &self,
        layout: &Layout,
        stand_ins: Option<&StandIns>,
    ) -> Result<BTreeMap<String, NodeGpus>, ClusterError> {
        let mut written = BTreeMap::new();
        for node in &self.nodes {
            if let (Some(spec), Some(stand_ins)) = (&node.gpus, stand_ins) {
                let gpus = NodeGpus::create(&node.name, &layout.driver(&node.name), spec, stand_ins)?;
                written.insert(node.name.clone(), gpus);
            }
        }
        Ok(written)
    }
}
