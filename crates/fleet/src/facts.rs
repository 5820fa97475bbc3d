//! Single facts, who told them, and how tellings are merged.

use gqla_api::inventory::NodeInventory;
use gqla_planner::Confidence;
use serde::{Serialize, Serializer};

use crate::slices::SliceFacts;

/// Who told a fact, the one who knows best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum FactSource {
    /// NVML, through the node's agent.
    Nvml,
    /// The DRA driver.
    ResourceSlice,
    /// An administrator's label.
    AdministratorLabel,
    /// A label of GPU feature discovery.
    GfdLabel,
    /// A label of a cloud.
    ProviderLabel,
    /// A GPUClass, for the node's class.
    GpuClass,
    /// The built-in catalogue, for the node's class.
    Catalogue,
}

impl FactSource {
    /// As people are told.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nvml => "NVML",
            Self::ResourceSlice => "ResourceSlice",
            Self::AdministratorLabel => "administrator's label",
            Self::GfdLabel => "GPU feature discovery",
            Self::ProviderLabel => "cloud's label",
            Self::GpuClass => "GPUClass",
            Self::Catalogue => "catalogue",
        }
    }
}

/// A value, who told it and how far it can be trusted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fact<T> {
    /// The value.
    pub value: T,
    /// Who told it.
    pub source: FactSource,
    /// How far it can be trusted.
    #[serde(serialize_with = "confidence")]
    pub confidence: Confidence,
}

fn confidence<S: Serializer>(confidence: &Confidence, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match confidence {
        Confidence::High => "High",
        Confidence::Low => "Low",
    })
}

impl<T> Fact<T> {
    /// A fact of high confidence.
    pub fn told(value: T, source: FactSource) -> Self {
        Self { value, source, confidence: Confidence::High }
    }
}

/// Facts of one node that several may tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HardwareFacts {
    /// Product, spelled as label values are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<Fact<String>>,
    /// PCI device id under vendor 10de.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<Fact<u16>>,
    /// GPUs that exist, in whatever state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<Fact<u32>>,
    /// Streaming multiprocessors of one GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiprocessors: Option<Fact<u32>>,
    /// Memory of one GPU in MiB: the least of the node.
    #[serde(rename = "memoryMiB", skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<Fact<u64>>,
    /// Peak memory bandwidth of one GPU in bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Fact<f64>>,
    /// Dense bf16 peak of one GPU in FLOP/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops_per_second: Option<Fact<f64>>,
}

impl HardwareFacts {
    /// Both tellings: of each fact, that of who knows best. The order of merging never matters, and what a weaker source
    /// says never changes what a stronger one said.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            product: stronger(self.product, other.product),
            pci_device_id: stronger(self.pci_device_id, other.pci_device_id),
            gpus: stronger(self.gpus, other.gpus),
            multiprocessors: stronger(self.multiprocessors, other.multiprocessors),
            memory_mib: stronger(self.memory_mib, other.memory_mib),
            bytes_per_second: stronger(self.bytes_per_second, other.bytes_per_second),
            flops_per_second: stronger(self.flops_per_second, other.flops_per_second),
        }
    }

    /// What an agent tells. Figures of single GPUs are the least of the node.
    pub(crate) fn of_inventory(inventory: &NodeInventory) -> Self {
        let nvml = FactSource::Nvml;
        let gpus = &inventory.gpus;
        let first = gpus.first();
        let alike = first.filter(|first| gpus.iter().all(|gpu| gpu.pci_device_id == first.pci_device_id));
        Self {
            product: inventory.product_label().map(|product| Fact::told(product, nvml)),
            pci_device_id: alike.map(|gpu| Fact::told(gpu.pci_device_id, nvml)),
            gpus: u32::try_from(gpus.len()).ok().map(|count| Fact::told(count, nvml)),
            multiprocessors: gpus
                .iter()
                .filter_map(|gpu| gpu.multiprocessors)
                .min()
                .map(|count| Fact::told(count, nvml)),
            memory_mib: gpus
                .iter()
                .map(|gpu| gpu.memory_mib)
                .filter(|mebibytes| *mebibytes > 0)
                .min()
                .map(|mebibytes| Fact::told(mebibytes, nvml)),
            ..Self::default()
        }
    }

    /// What ResourceSlices tell.
    pub(crate) fn of_slices(slices: &SliceFacts) -> Self {
        let source = FactSource::ResourceSlice;
        let whole = || slices.devices.iter().filter(|device| !device.is_slice);
        let first = whole().next();
        let alike = first.filter(|first| whole().all(|device| device.product == first.product));
        Self {
            product: alike.map(|device| Fact::told(device.product.clone(), source)),
            gpus: first
                .and_then(|_| u32::try_from(whole().count()).ok())
                .map(|count| Fact::told(count, source)),
            memory_mib: whole()
                .filter_map(|device| device.memory_mib)
                .min()
                .map(|mebibytes| Fact::told(mebibytes, source)),
            ..Self::default()
        }
    }
}

/// Of equally strong tellings the smaller value, so that the order of merging does not matter.
fn stronger<T: PartialOrd>(a: Option<Fact<T>>, b: Option<Fact<T>>) -> Option<Fact<T>> {
    match (a, b) {
        (Some(a), Some(b)) => {
            let b_first = b.source < a.source || (b.source == a.source && b.value < a.value);
            Some(if b_first { b } else { a })
        }
        (a, b) => a.or(b),
    }
}
