//! What each model of GPU says of itself. The figures are data, with their source, in `profiles.json`.

use std::sync::LazyLock;

use serde::Deserialize;

/// One model of GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name by which a [`Gpu`](crate::state::Gpu) asks for it, such as `H20`.
    pub name: String,
    /// Name of the product as NVML gives it.
    pub product: String,
    /// PCI device id under vendor 10de.
    pub pci_device_id: u16,
    /// `nvmlDeviceArchitecture_t`: 6 Turing, 7 Ampere, 8 Ada, 9 Hopper, 10 Blackwell.
    pub architecture: u32,
    /// CUDA compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// CUDA cores of one; NVML tells only the product of both.
    pub cores_per_multiprocessor: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Width of the memory bus in bits.
    pub memory_bus_bits: u32,
    /// Highest memory clock in MHz; data moves on both edges.
    pub memory_clock_mhz: u32,
    /// Highest clock of the multiprocessors in MHz.
    pub sm_clock_mhz: u32,
    /// Default power limit in watts.
    pub power_watts: u32,
    /// NVLinks of the card.
    pub nvlinks: u32,
    /// PCI device id of the NVSwitches it is built with; `None` for cards that are bridged, or have no link.
    pub switch_device_id: Option<u16>,
    /// MIG profiles it can be cut into.
    pub mig: Vec<MigProfile>,
    /// Where the figures are from. What was computed and not read is called derived.
    pub source: String,
}

/// One way to slice a GPU.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigProfile {
    /// Name such as `1g.10gb`.
    pub profile: String,
    /// Sevenths of the multiprocessors.
    pub slices: u32,
    /// Streaming multiprocessors of the slice.
    pub multiprocessors: u32,
    /// Memory of the slice in MiB.
    pub memory_mib: u64,
}

impl Profile {
    /// CUDA cores.
    pub fn cores(&self) -> u32 {
        self.multiprocessors * self.cores_per_multiprocessor
    }
}

/// Every profile. Empty only if the embedded file were malformed, which a test excludes.
pub fn profiles() -> &'static [Profile] {
    static PROFILES: LazyLock<Vec<Profile>> =
        LazyLock::new(|| serde_json::from_str(include_str!("profiles.json")).unwrap_or_default());
    &PROFILES
}

/// The profile of this name.
pub fn profile(name: &str) -> Option<&'static Profile> {
    profiles().iter().find(|profile| profile.name == name)
}
