//! From a node's labels to a GPU class, or to the reason there is none.
//!
//! GPU feature discovery writes the NVML name into `nvidia.com/gpu.product`, spaces turned into dashes. Names are
//! compared whole: matching by prefix takes an H200 for an H20, and family, compute capability and memory size each
//! confuse two cards that decode best along different paths. A card we do not know stays unknown; it is never
//! planned as the card it resembles.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    catalogue::{CPU_CLASS, Catalogue},
    gpu::GpuClass,
};

/// The node label GPU feature discovery writes the product name to.
pub const PRODUCT_LABEL: &str = "nvidia.com/gpu.product";

/// Labels that say a GPU is there before, or without, its product being known.
pub const PRESENCE_LABELS: [&str; 3] = [
    "nvidia.com/gpu.present",
    "feature.node.kubernetes.io/pci-10de.present",
    "feature.node.kubernetes.io/pci-0302_10de.present",
];

/// The ways a label may spell the name of `class`: as the catalogue does, in lower and in upper case.
///
/// Node affinity compares label values exactly, so what is recognised has to be a list that a pod can carry.
pub fn spellings(class: &str) -> BTreeSet<String> {
    [class.to_owned(), class.to_ascii_lowercase(), class.to_ascii_uppercase()].into()
}

/// What a node's labels say about its accelerator.
#[derive(Clone, Debug, PartialEq)]
pub enum Identification<'a> {
    /// The product is one of `class`'s exact names.
    Recognised {
        /// The class to plan for.
        class: &'a GpuClass,
        /// The label's value.
        product: String,
    },
    /// No label speaks of a GPU: the node decodes on its processors.
    Cpu {
        /// The catalogue's CPU class.
        class: &'a GpuClass,
    },
    /// A whole GPU, but none the catalogue knows.
    Unrecognised {
        /// The label's value.
        product: String,
    },
    /// A part of a GPU, whose rates are not those of the whole.
    Refused {
        /// The label's value.
        product: String,
        /// Which kind of part.
        reason: Refusal,
    },
    /// A GPU is present, but its product label is not there (yet).
    Unlabelled,
}

impl<'a> Identification<'a> {
    /// The class to plan for, if there is one.
    pub fn class(&self) -> Option<&'a GpuClass> {
        match self {
            Self::Recognised { class, .. } | Self::Cpu { class } => Some(class),
            Self::Unrecognised { .. } | Self::Refused { .. } | Self::Unlabelled => None,
        }
    }
}

/// Why a node with a known kind of GPU cannot be planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Time-slicing or MPS: several pods share one device.
    #[error(
        "the GPU is shared between pods (time-slicing or MPS), so its bandwidth and memory are not this pod's alone; \
         turn sharing off on nodes that serve models"
    )]
    Shared,
    /// A MIG partition stands in for the device.
    #[error(
        "the GPU is partitioned (MIG), so a pod gets a slice whose rates the catalogue does not hold; \
         disable MIG or declare a GPU class for the slice"
    )]
    MigSlice,
    /// MIG is enabled but its configuration is broken.
    #[error(
        "the GPU's MIG configuration is invalid, so it offers no device; repair nvidia.com/mig.config on the node"
    )]
    MigInvalid,
}

/// As [`Catalogue::identify`].
pub fn identify<'a>(catalogue: &'a Catalogue, labels: &BTreeMap<String, String>) -> Identification<'a> {
    let product = labels.get(PRODUCT_LABEL).filter(|product| !product.is_empty());
    match product {
        Some(product) => identify_product(catalogue, product),
        None if PRESENCE_LABELS
            .iter()
            .any(|label| labels.get(*label).is_some_and(|value| value == "true")) =>
        {
            Identification::Unlabelled
        }
        None => match catalogue.get(CPU_CLASS) {
            Some(class) => Identification::Cpu { class },
            None => Identification::Unlabelled,
        },
    }
}

fn identify_product<'a>(catalogue: &'a Catalogue, product: &str) -> Identification<'a> {
    let product = product.to_owned();
    // Exact names come first, so that a declared class can claim a slice.
    if let Some(class) = catalogue.by_product(&product) {
        return Identification::Recognised { class, product };
    }
    match refusal(&product) {
        Some(reason) => Identification::Refused { product, reason },
        None => Identification::Unrecognised { product },
    }
}

fn refusal(product: &str) -> Option<Refusal> {
    if product.ends_with("-MIG-INVALID") {
        Some(Refusal::MigInvalid)
    } else if product.contains("-MIG-") {
        Some(Refusal::MigSlice)
    } else if product.ends_with("-SHARED") {
        Some(Refusal::Shared)
    } else {
        None
    }
}

impl Catalogue {
    /// What `labels` of a node say about its accelerator.
    pub fn identify(&self, labels: &BTreeMap<String, String>) -> Identification<'_> {
        identify(self, labels)
    }
}

#[cfg(test)]
mod tests;
