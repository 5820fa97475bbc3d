//! The accelerators known without being told, and how a fleet adds its own.
//!
//! Memory is what the driver reports (MiB in the `nvidia.com/gpu.memory` label), not the marketing size: that is what
//! weights and caches have to fit into. Labels are exact, because `NVIDIA-H20` is a prefix of `NVIDIA-H200`.

use std::borrow::Cow;

use crate::gpu::{Confidence, GpuClass, GpuSpec, NodeLabel};

/// The class of nodes without an accelerator.
pub const CPU_CLASS: &str = "CPU";

/// A set of GPU classes with unique names.
#[derive(Clone, Debug, PartialEq)]
pub struct Catalogue {
    classes: Vec<GpuClass>,
}

impl Catalogue {
    /// The classes that ship with the product.
    pub fn builtin() -> Self {
        Self { classes: ENTRIES.iter().map(Entry::class).collect() }
    }

    /// Adds `class`, replacing the one of the same name. What it claims wins over everyone else's claims.
    #[must_use]
    pub fn with(mut self, class: GpuClass) -> Self {
        self.classes.retain(|known| !known.name().eq_ignore_ascii_case(class.name()));
        self.classes.insert(0, class);
        self
    }

    /// Finds a class by name, ignoring case.
    pub fn get(&self, name: &str) -> Option<&GpuClass> {
        self.classes.iter().find(|class| class.name().eq_ignore_ascii_case(name))
    }

    /// The class whose product labels contain `product` exactly. Old drivers omit the `NVIDIA-` prefix.
    pub fn by_product(&self, product: &str) -> Option<&GpuClass> {
        self.classes.iter().find(|class| class.claims_product(product))
    }

    /// The class with this PCI device id under vendor 10de.
    pub fn by_pci_device(&self, id: u16) -> Option<&GpuClass> {
        self.classes.iter().find(|class| class.pci_device_ids.contains(&id))
    }

    /// The class whose nodes a cloud announces by label `key` with `value`.
    pub fn by_node_label(&self, key: &str, value: &str) -> Option<&GpuClass> {
        let announces = |class: &&GpuClass| class.node_labels.iter().any(|(k, v)| k == key && v == value);
        self.classes.iter().find(announces)
    }

    /// All classes, added ones first.
    pub fn iter(&self) -> impl Iterator<Item = &GpuClass> {
        self.classes.iter()
    }
}

impl Default for Catalogue {
    fn default() -> Self {
        Self::builtin()
    }
}

/// One row of the table below, in the units data sheets use.
struct Entry {
    name: &'static str,
    teraflops: f64,
    terabytes_per_second: f64,
    mebibytes: u64,
    multiprocessors: Option<u32>,
    pci: &'static [u16],
    labels: &'static [Cow<'static, str>],
    /// Only values that name one card in the cloud that writes them: AWS's `a100` may have 40 or 80 GB.
    announced: &'static [NodeLabel],
    source: &'static str,
    confidence: Confidence,
}

impl Entry {
    fn class(&self) -> GpuClass {
        GpuClass {
            spec: GpuSpec {
                name: Cow::Borrowed(self.name),
                flops_per_second: self.teraflops * 1e12,
                bytes_per_second: self.terabytes_per_second * 1e12,
                memory_bytes: self.mebibytes << 20,
                compute_capability: None,
                derived: false,
            },
            multiprocessors: self.multiprocessors,
            pci_device_ids: Cow::Borrowed(self.pci),
            product_labels: Cow::Borrowed(self.labels),
            node_labels: Cow::Borrowed(self.announced),
            source: Cow::Borrowed(self.source),
            confidence: self.confidence,
        }
    }
}

const fn label(text: &'static str) -> Cow<'static, str> {
    Cow::Borrowed(text)
}

/// As Karpenter labels AWS instances.
const fn karpenter(name: &'static str) -> NodeLabel {
    (label("karpenter.k8s.aws/instance-gpu-name"), label(name))
}

/// `NVIDIA-H100-SXM5-80GB` and `NVIDIA-H20-SXM5-96GB` come from documentation, not from a driver; people label test
/// nodes with them, and they name one card each.
static ENTRIES: [Entry; 21] = [
    Entry {
        name: "H100",
        teraflops: 989.0,
        terabytes_per_second: 3.35,
        mebibytes: 81_559,
        multiprocessors: Some(132),
        pci: &[0x2330],
        labels: &[label("NVIDIA-H100-80GB-HBM3"), label("NVIDIA-H100-SXM5-80GB")],
        announced: &[
            (label("cloud.google.com/gke-accelerator"), label("nvidia-h100-80gb")),
            karpenter("h100"),
        ],
        source: "NVIDIA H100 data sheet (SXM)",
        confidence: Confidence::High,
    },
    Entry {
        name: "H100-PCIe",
        teraflops: 756.0,
        terabytes_per_second: 2.0,
        mebibytes: 81_559,
        multiprocessors: Some(114),
        pci: &[0x2331],
        labels: &[label("NVIDIA-H100-PCIe")],
        announced: &[],
        source: "NVIDIA H100 data sheet (PCIe)",
        confidence: Confidence::High,
    },
    Entry {
        name: "H100-NVL",
        teraflops: 835.0,
        terabytes_per_second: 3.9,
        mebibytes: 95_000,
        multiprocessors: Some(132),
        pci: &[0x2321],
        labels: &[label("NVIDIA-H100-NVL")],
        announced: &[],
        source: "NVIDIA H100 data sheet (NVL); memory rounded down, the label value was not seen",
        confidence: Confidence::Low,
    },
    Entry {
        name: "H200",
        teraflops: 989.0,
        terabytes_per_second: 4.8,
        mebibytes: 143_771,
        multiprocessors: Some(132),
        pci: &[0x2335],
        labels: &[label("NVIDIA-H200")],
        announced: &[karpenter("h200")],
        source: "NVIDIA H200 data sheet (SXM)",
        confidence: Confidence::High,
    },
    Entry {
        name: "H20",
        teraflops: 148.0,
        terabytes_per_second: 4.0,
        mebibytes: 97_871,
        multiprocessors: Some(78),
        pci: &[0x2329],
        labels: &[label("NVIDIA-H20"), label("NVIDIA-H20-SXM5-96GB")],
        announced: &[],
        source: "two independent published tables; no public data sheet",
        confidence: Confidence::High,
    },
    Entry {
        name: "H20-3e",
        teraflops: 148.0,
        terabytes_per_second: 4.8,
        mebibytes: 143_000,
        multiprocessors: Some(78),
        pci: &[0x232c],
        labels: &[label("NVIDIA-H20-3e")],
        announced: &[],
        source: "sellers' pages; the bandwidth is inferred from the H200's memory, not published",
        confidence: Confidence::Low,
    },
    Entry {
        name: "A100",
        teraflops: 312.0,
        terabytes_per_second: 2.039,
        mebibytes: 81_920,
        multiprocessors: Some(108),
        pci: &[0x20b2],
        labels: &[label("NVIDIA-A100-SXM4-80GB")],
        announced: &[],
        source: "NVIDIA A100 data sheet (SXM, 80 GB)",
        confidence: Confidence::High,
    },
    Entry {
        name: "A100-40GB",
        teraflops: 312.0,
        terabytes_per_second: 1.555,
        mebibytes: 39_538,
        multiprocessors: Some(108),
        pci: &[],
        labels: &[label("NVIDIA-A100-SXM4-40GB")],
        announced: &[],
        source: "NVIDIA A100 data sheet (40 GB); memory as old drivers report it",
        confidence: Confidence::High,
    },
    Entry {
        name: "A100-PCIe",
        teraflops: 312.0,
        terabytes_per_second: 1.935,
        mebibytes: 81_920,
        multiprocessors: Some(108),
        pci: &[0x20b5],
        labels: &[label("NVIDIA-A100-PCIE-80GB"), label("NVIDIA-A100-80GB-PCIe")],
        announced: &[],
        source: "NVIDIA A100 data sheet (PCIe, 80 GB)",
        confidence: Confidence::High,
    },
    Entry {
        name: "L40S",
        teraflops: 362.05,
        terabytes_per_second: 0.864,
        mebibytes: 46_068,
        multiprocessors: Some(142),
        pci: &[0x26b9],
        labels: &[label("NVIDIA-L40S")],
        announced: &[karpenter("l40s")],
        source: "NVIDIA L40S data sheet",
        confidence: Confidence::High,
    },
    Entry {
        name: "L20",
        teraflops: 119.5,
        terabytes_per_second: 0.864,
        mebibytes: 46_068,
        multiprocessors: None,
        pci: &[0x26ba],
        labels: &[label("NVIDIA-L20")],
        announced: &[],
        source: "vendors' pages",
        confidence: Confidence::Low,
    },
    Entry {
        name: "B200",
        teraflops: 2250.0,
        terabytes_per_second: 7.7,
        mebibytes: 183_359,
        multiprocessors: Some(148),
        pci: &[0x2901],
        labels: &[label("NVIDIA-B200")],
        announced: &[karpenter("b200")],
        source: "published system tables; data sheets give up to 8.0 TB/s",
        confidence: Confidence::High,
    },
    Entry {
        name: "H800",
        teraflops: 989.0,
        terabytes_per_second: 3.35,
        mebibytes: 81_559,
        multiprocessors: Some(132),
        pci: &[0x2324],
        labels: &[label("NVIDIA-H800")],
        announced: &[],
        source: "published fleet tables; an H100 with slower links",
        confidence: Confidence::High,
    },
    Entry {
        name: "A10",
        teraflops: 125.0,
        terabytes_per_second: 0.6,
        mebibytes: 22_500,
        multiprocessors: Some(72),
        pci: &[0x2236],
        labels: &[label("NVIDIA-A10")],
        announced: &[],
        source: "NVIDIA A10 data sheet; memory rounded down, the label value was not seen",
        confidence: Confidence::High,
    },
    Entry {
        name: "L4",
        teraflops: 121.0,
        terabytes_per_second: 0.3,
        mebibytes: 22_500,
        multiprocessors: Some(58),
        pci: &[0x27b8],
        labels: &[label("NVIDIA-L4")],
        announced: &[],
        source: "NVIDIA L4 data sheet; memory rounded down, the label value was not seen",
        confidence: Confidence::High,
    },
    Entry {
        name: "B300",
        teraflops: 2250.0,
        terabytes_per_second: 7.75,
        mebibytes: 274_000,
        multiprocessors: None,
        pci: &[0x3182],
        labels: &[label("NVIDIA-B300-SXM6-AC")],
        announced: &[],
        source: "published system tables; memory rounded down, the label value was not seen",
        confidence: Confidence::Low,
    },
    Entry {
        name: "GB200",
        teraflops: 2500.0,
        terabytes_per_second: 8.0,
        mebibytes: 189_000,
        multiprocessors: None,
        pci: &[0x2941],
        labels: &[label("NVIDIA-GB200")],
        announced: &[],
        source: "published system tables; memory rounded down, the label value was not seen",
        confidence: Confidence::Low,
    },
    Entry {
        name: "GB300",
        teraflops: 2500.0,
        terabytes_per_second: 8.0,
        mebibytes: 284_000,
        multiprocessors: None,
        pci: &[0x31c2],
        labels: &[label("NVIDIA-GB300")],
        announced: &[],
        source: "published system tables; memory rounded down, the label value was not seen",
        confidence: Confidence::Low,
    },
    Entry {
        name: "RTX-PRO-6000",
        teraflops: 468.0,
        terabytes_per_second: 1.79,
        mebibytes: 97_000,
        multiprocessors: Some(188),
        pci: &[0x2bb1, 0x2bb5],
        labels: &[
            label("NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition"),
            label("NVIDIA-RTX-PRO-6000-Blackwell-Workstation-Edition"),
        ],
        announced: &[],
        source: "published system tables; one server edition's sheet gives 1.597 TB/s; memory rounded down",
        confidence: Confidence::Low,
    },
    Entry {
        name: "A800",
        teraflops: 312.0,
        terabytes_per_second: 2.039,
        mebibytes: 81_920,
        multiprocessors: Some(108),
        pci: &[0x20f3],
        labels: &[label("NVIDIA-A800-SXM4-80GB")],
        announced: &[],
        source: "an A100 (SXM, 80 GB) with slower links",
        confidence: Confidence::High,
    },
    Entry {
        name: CPU_CLASS,
        teraflops: 0.17,
        terabytes_per_second: 0.03,
        mebibytes: 16_384,
        multiprocessors: None,
        pci: &[],
        labels: &[],
        announced: &[],
        source: "one 2-core AVX2 machine, measured (f32 FMA peak, DRAM read); other machines differ",
        confidence: Confidence::Low,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_entry_is_valid_and_no_name_label_or_pci_id_is_claimed_twice() {
        let (mut names, mut labels, mut pci) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut announced = BTreeSet::new();
        for class in Catalogue::builtin().iter() {
            class.spec.validate().unwrap();
            assert!(names.insert(class.name().to_ascii_lowercase()), "{}", class.name());
            assert!(
                class.product_labels.iter().all(|label| labels.insert(label.clone())),
                "{}",
                class.name()
            );
            assert!(class.pci_device_ids.iter().all(|id| pci.insert(*id)), "{}", class.name());
            assert!(class.node_labels.iter().all(|pair| announced.insert(pair.clone())), "{}", class.name());
        }
    }

    #[test]
    fn ridges_are_those_of_the_published_table() {
        let ridge = |name: &str| Catalogue::builtin().get(name).unwrap().spec.ridge().round();
        let table = [
            ("h100", 295.0),
            ("h100-pcie", 378.0),
            ("h100-nvl", 214.0),
            ("h200", 206.0),
            ("h800", 295.0),
            ("h20", 37.0),
            ("h20-3e", 31.0),
            ("a100", 153.0),
            ("a100-pcie", 161.0),
            ("l40s", 419.0),
            ("l20", 138.0),
            ("l4", 403.0),
            ("b200", 292.0),
            ("b300", 290.0),
            ("gb200", 313.0),
            ("gb300", 313.0),
            ("rtx-pro-6000", 261.0),
        ];
        for (name, expected) in table {
            assert_eq!(ridge(name), expected, "{name}");
        }
    }

    #[test]
    fn every_label_means_exactly_one_class() {
        let catalogue = Catalogue::builtin();
        let labels = catalogue.iter().flat_map(|class| &*class.product_labels);
        for label in labels.flat_map(|label| [&**label, label.trim_start_matches("NVIDIA-")]) {
            let claiming = catalogue.iter().filter(|class| class.claims_product(label));
            assert_eq!(claiming.count(), 1, "{label}");
        }
        let announced = catalogue.iter().flat_map(|class| &*class.node_labels);
        for announced in announced {
            let claiming = catalogue.iter().filter(|class| class.node_labels.contains(announced));
            assert_eq!(claiming.count(), 1, "{announced:?}");
        }
    }

    #[test]
    fn an_added_class_replaces_its_namesake_and_takes_its_labels() {
        let mut faster = Catalogue::builtin().get("H20").unwrap().clone();
        faster.spec.bytes_per_second = 4.4e12;
        let catalogue = Catalogue::builtin().with(faster);
        assert_eq!(catalogue.get("h20").unwrap().spec.bytes_per_second, 4.4e12);
        assert_eq!(catalogue.by_product("NVIDIA-H20").unwrap().spec.bytes_per_second, 4.4e12);
        assert_eq!(catalogue.iter().count(), Catalogue::builtin().iter().count());
    }
}
