//! What the cost model needs to know of a class besides the roofline: caches, links and what its tensor cores can run.
//!
//! Keyed by class name, so that a `GPUClass` which overrides a rate keeps the rest. A class that only says which
//! instructions it has ([`GpuSpec::compute_capability`]) gets its family's kernels; one nobody described gets none. Both
//! get the plainest figures besides: no NVLink, no cache to speak of.

use crate::gpu::{ComputeCapability, GpuSpec};

/// Families whose kernels differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Compute capability 8.0, 8.6 and 8.7: `mma.sync` only.
    Ampere,
    /// 8.9: as Ampere, with fp8.
    Ada,
    /// 9.0: warp-group instructions of 64 rows.
    Hopper,
    /// 10.0 and 10.3: tensor memory, tiles of 64 rows and more.
    Blackwell,
    /// 12.0: `mma.sync`, with fp8.
    BlackwellRtx,
    /// No GPU.
    Cpu,
    /// Nothing is known.
    Unknown,
}

impl Architecture {
    /// The family of a compute capability; [`Self::Unknown`] where no kernels are known for it.
    pub const fn of(capability: ComputeCapability) -> Self {
        match (capability.major, capability.minor) {
            (8, 0 | 6 | 7) => Self::Ampere,
            (8, 9) => Self::Ada,
            (9, 0) => Self::Hopper,
            (10, 0 | 3) => Self::Blackwell,
            (12, 0 | 1) => Self::BlackwellRtx,
            _ => Self::Unknown,
        }
    }

    /// Multiprocessors of the family's largest data-centre card, for a class that is known by its family alone.
    const fn multiprocessors(self) -> u32 {
        match self {
            Self::Ampere => 108,
            Self::Ada => 142,
            Self::Hopper => 132,
            Self::Blackwell => 148,
            Self::BlackwellRtx => 188,
            Self::Cpu | Self::Unknown => 1,
        }
    }

    /// Whether tensor cores multiply fp8.
    pub const fn has_fp8(self) -> bool {
        matches!(self, Self::Ada | Self::Hopper | Self::Blackwell | Self::BlackwellRtx)
    }
}

/// Figures of one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hardware {
    /// The family whose rates its kernels are planned with.
    pub architecture: Architecture,
    /// CUDA's version of its instructions, which says what room kernels have; `None` for processors and where nobody stated it.
    pub capability: Option<ComputeCapability>,
    /// Last-level cache, bytes.
    pub l2_bytes: f64,
    /// What the last-level cache delivers, bytes/s.
    pub l2_bytes_per_second: f64,
    /// Bandwidth between GPUs of one node, both directions together, bytes/s. PCIe where there is no NVLink.
    pub link_bytes_per_second: f64,
    /// Whether GPUs reach each other's memory over NVLink.
    pub nvlink: bool,
    /// Streaming multiprocessors, or cores.
    pub multiprocessors: u32,
}

impl Hardware {
    /// The figures of `gpu`'s class. A compute capability that the class states wins over what its name says.
    pub fn of(gpu: &GpuSpec) -> Self {
        let named = TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(&gpu.name)).map(Row::hardware);
        let architecture = match gpu.compute_capability {
            Some(capability) if !gpu.derived => Architecture::of(capability),
            _ => Architecture::Unknown,
        };
        match (named, gpu.compute_capability) {
            (Some(named), None) => named,
            (Some(named), capability) => Self { architecture, capability, ..named },
            (None, capability) => Self { capability, ..Self::undescribed(gpu, architecture) },
        }
    }

    /// A cache no better than memory, so that nothing is expected of it.
    fn undescribed(gpu: &GpuSpec, architecture: Architecture) -> Self {
        Self {
            architecture,
            capability: None,
            l2_bytes: 0.0,
            l2_bytes_per_second: gpu.bytes_per_second,
            link_bytes_per_second: 32e9,
            nvlink: false,
            multiprocessors: architecture.multiprocessors(),
        }
    }
}

struct Row {
    name: &'static str,
    /// `None` is a processor.
    capability: Option<ComputeCapability>,
    l2_megabytes: f64,
    l2_terabytes_per_second: f64,
    /// GB/s in both directions together; `None` is PCIe.
    nvlink: Option<f64>,
    pcie: f64,
    multiprocessors: u32,
}

impl Row {
    fn hardware(&self) -> Hardware {
        Hardware {
            architecture: self.capability.map_or(Architecture::Cpu, Architecture::of),
            capability: self.capability,
            l2_bytes: self.l2_megabytes * 1e6,
            l2_bytes_per_second: self.l2_terabytes_per_second * 1e12,
            link_bytes_per_second: self.nvlink.unwrap_or(self.pcie) * 1e9,
            nvlink: self.nvlink.is_some(),
            multiprocessors: self.multiprocessors,
        }
    }
}

const fn row(
    name: &'static str,
    capability: Option<(u8, u8)>,
    l2: (f64, f64),
    nvlink: Option<f64>,
    pcie: f64,
    multiprocessors: u32,
) -> Row {
    let (l2_megabytes, l2_terabytes_per_second) = l2;
    let capability = match capability {
        Some((major, minor)) => Some(ComputeCapability { major, minor }),
        None => None,
    };
    Row { name, capability, l2_megabytes, l2_terabytes_per_second, nvlink, pcie, multiprocessors }
}

/// Compute capabilities, sizes, links and multiprocessors are the vendor's; PCIe is x16 of the card's generation. Cache bandwidths are
/// estimates between what microbenchmarks of the family report, rounded to half a TB/s; they matter only for caches that
/// fit. Bridged cards are planned without their bridge, which a node may lack.
static TABLE: [Row; 21] = [
    row("H100", Some((9, 0)), (50.0, 5.5), Some(900.0), 128.0, 132),
    row("H100-PCIe", Some((9, 0)), (50.0, 4.5), None, 128.0, 114),
    row("H100-NVL", Some((9, 0)), (50.0, 5.0), None, 128.0, 132),
    row("H200", Some((9, 0)), (50.0, 5.5), Some(900.0), 128.0, 132),
    row("H800", Some((9, 0)), (50.0, 5.5), Some(400.0), 128.0, 132),
    row("H20", Some((9, 0)), (60.0, 5.0), Some(900.0), 128.0, 78),
    row("H20-3e", Some((9, 0)), (60.0, 5.0), Some(900.0), 128.0, 78),
    row("A100", Some((8, 0)), (40.0, 4.0), Some(600.0), 64.0, 108),
    row("A100-40GB", Some((8, 0)), (40.0, 4.0), Some(600.0), 64.0, 108),
    row("A100-PCIe", Some((8, 0)), (40.0, 4.0), None, 64.0, 108),
    row("A800", Some((8, 0)), (40.0, 4.0), Some(400.0), 64.0, 108),
    row("A10", Some((8, 6)), (6.0, 1.5), None, 64.0, 72),
    row("L4", Some((8, 9)), (48.0, 1.5), None, 64.0, 58),
    row("L40S", Some((8, 9)), (96.0, 4.0), None, 64.0, 142),
    row("L20", Some((8, 9)), (96.0, 3.0), None, 64.0, 92),
    row("B200", Some((10, 0)), (126.0, 10.0), Some(1800.0), 128.0, 148),
    row("B300", Some((10, 3)), (126.0, 10.0), Some(1800.0), 128.0, 148),
    row("GB200", Some((10, 0)), (126.0, 10.0), Some(1800.0), 128.0, 148),
    row("GB300", Some((10, 3)), (126.0, 10.0), Some(1800.0), 128.0, 148),
    row("RTX-PRO-6000", Some((12, 0)), (128.0, 6.0), None, 128.0, 188),
    // A step reads every layer's weights and cache before it returns to a layer, so a last-level cache holds nothing of
    // it by then. The rate is that of a 32 MiB one, as measured where the catalogue's CPU figures were.
    row("CPU", None, (0.0, 0.13), None, 32.0, 2),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn every_built_in_class_is_described() {
        for class in Catalogue::builtin().iter() {
            let hardware = Hardware::of(&class.spec);
            assert_ne!(hardware.architecture, Architecture::Unknown, "{}", class.name());
            assert!(hardware.l2_bytes_per_second >= class.spec.bytes_per_second, "{}", class.name());
            if let Some(multiprocessors) = class.multiprocessors {
                assert_eq!(hardware.multiprocessors, multiprocessors, "{}", class.name());
            }
        }
    }

    #[test]
    fn an_unheard_of_class_is_given_nothing_but_the_kernels_it_states() {
        let gpu = |capability: Option<&str>| GpuSpec {
            name: "X9".into(),
            flops_per_second: 1e14,
            bytes_per_second: 1e12,
            memory_bytes: 1 << 34,
            compute_capability: capability.map(|text| text.parse().unwrap()),
            derived: false,
        };
        let hardware = Hardware::of(&gpu(None));
        assert_eq!(hardware.architecture, Architecture::Unknown);
        assert!(!hardware.nvlink && !hardware.architecture.has_fp8());
        let hopper = Hardware::of(&gpu(Some("9.0")));
        assert_eq!(hopper.architecture, Architecture::Hopper);
        assert!(!hopper.nvlink && hopper.l2_bytes == 0.0);
        let turing = Hardware::of(&gpu(Some("7.5")));
        assert_eq!(turing.architecture, Architecture::Unknown);
        assert_eq!(turing.capability, Some(ComputeCapability { major: 7, minor: 5 }));
        let derived = Hardware::of(&GpuSpec { derived: true, ..gpu(Some("9.0")) });
        assert_eq!(derived, Hardware { capability: hopper.capability, ..hardware });
    }

    #[test]
    fn a_stated_capability_wins_over_the_name_and_keeps_the_rest() {
        let mut h100 = Catalogue::builtin().get("H100").unwrap().spec.clone();
        let named = Hardware::of(&h100);
        h100.compute_capability = Some(ComputeCapability { major: 8, minor: 0 });
        let stated =
            Hardware { architecture: Architecture::Ampere, capability: h100.compute_capability, ..named };
        assert_eq!(Hardware::of(&h100), stated);
    }

    #[test]
    fn a_capability_is_two_numbers() {
        assert_eq!("12.0".parse(), Ok(ComputeCapability { major: 12, minor: 0 }));
        for text in ["9", "9.", ".0", "9.0.1", "+9.0", "sm_90", "999.0", ""] {
            let sentence = text.parse::<ComputeCapability>().unwrap_err().to_string();
            assert!(sentence.ends_with("such as 9.0"), "{sentence}");
        }
    }
}
