//! The labels a GPU goes by, and how exactly they are read.
//!
//! GPU feature discovery writes the NVML name into `nvidia.com/gpu.product`, spaces turned into dashes. Names are
//! compared whole: matching by prefix takes an H200 for an H20, and family, compute capability and memory size each
//! confuse two cards that decode best along different paths. A card we do not know stays unknown; it is never
//! planned as the card it resembles.

use std::collections::BTreeSet;

/// Labels that say a GPU is there before, or without, its product being known.
pub const PRESENCE_LABELS: [&str; 4] = [
    "nvidia.com/gpu.present",
    "feature.node.kubernetes.io/pci-10de.present",
    "feature.node.kubernetes.io/pci-0302_10de.present",
    "feature.node.kubernetes.io/pci-0300_10de.present",
];

/// Labels by which clouds and autoscalers announce a node's accelerator before anything runs on it.
pub const ACCELERATOR_LABELS: [&str; 9] = [
    "aliyun.accelerator/nvidia_name",
    "baidu/nvidia_name",
    "cloud.google.com/gke-accelerator",
    "cloud.tencent.com/tke-accelerator",
    "cluster-api/accelerator",
    "k8s.amazonaws.com/accelerator",
    "karpenter.azure.com/sku-gpu-name",
    "karpenter.k8s.aws/instance-gpu-name",
    "kubernetes.azure.com/accelerator",
];

/// The ways a label may spell the name of `class`: as the catalogue does, in lower and in upper case.
///
/// Node affinity compares label values exactly, so what is recognised has to be a list that a pod can carry.
pub fn spellings(class: &str) -> BTreeSet<String> {
    [class.to_owned(), class.to_ascii_lowercase(), class.to_ascii_uppercase()].into()
}

/// Which part of a GPU a product label speaks of, when not of the whole: its rates are not the card's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Part {
    /// Time-slicing or MPS: several pods share one device.
    #[error(
        "the GPU is shared between pods (time-slicing or MPS), so its bandwidth and memory are not this pod's alone; \
         turn sharing off on nodes that serve models"
    )]
    Shared,
    /// A MIG partition stands in for the device.
    #[error(
        "the GPU is partitioned (MIG), so a pod gets a slice whose rates the catalogue does not hold; \
         disable MIG or declare a GPUClass whose productLabels contain the slice's"
    )]
    MigSlice,
    /// MIG is enabled but its configuration is broken.
    #[error(
        "the GPU's MIG configuration is invalid, so it offers no device; repair nvidia.com/mig.config on the node"
    )]
    MigInvalid,
}

impl Part {
    /// The part that `product` speaks of; `None` for a whole GPU.
    pub fn of(product: &str) -> Option<Self> {
        if product.ends_with("-MIG-INVALID") {
            Some(Self::MigInvalid)
        } else if product.contains("-MIG-") {
            Some(Self::MigSlice)
        } else if product.ends_with("-SHARED") {
            Some(Self::Shared)
        } else {
            None
        }
    }
}
