//! What the machine is like: one JSON file that tests and test clusters write, and the library rereads when it changes.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Environment variable with the path of the state file.
pub const STATE_ENV: &str = "GQLA_FAKENVML_STATE";
/// Name of the state file in the folder of the library.
pub const STATE_FILE: &str = "gqla-fakenvml.json";
/// The state file where neither the variable nor the library's folder has one.
pub const STATE_PATH: &str = "/run/gqla-fakenvml/gqla-fakenvml.json";

/// One machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// Version of the kernel driver.
    pub driver_version: String,
    /// Version of the library.
    pub nvml_version: String,
    /// Newest CUDA version of the driver, as NVML counts: 12040 is 12.4.
    pub cuda_version: i32,
    /// What every call is refused with, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Every call sleeps this long, or until the state says otherwise.
    pub hang_seconds: f64,
    /// The GPUs, by index.
    pub gpus: Vec<Gpu>,
}

/// How a driver refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// No kernel module behind the library.
    DriverNotLoaded,
    /// The device files may not be opened.
    NoPermission,
    /// Library and kernel module are of different versions, as after an upgrade without a restart.
    VersionMismatch,
    /// The driver said something NVML has no name for.
    Unknown,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gpu {
    /// Name of its [`Profile`](crate::Profile), such as `H20`.
    pub profile: String,
    /// Its UUID; by default one made of profile and index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// It fell off the bus. What registered for its events before hears none of it any more, also when it comes back.
    pub lost: bool,
    /// What every call about it is refused with, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Every XID so far. Appending one raises one event.
    pub xids: Vec<u64>,
    /// Double-bit memory errors so far. Raising it raises as many events.
    pub double_bit_errors: u64,
    /// A row waits for a reset to be remapped.
    pub remap_pending: bool,
    /// A row could not be remapped.
    pub remap_failed: bool,
    /// MIG profiles of its slices; absent means MIG is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<Vec<String>>,
    /// Power cap in watts, if not the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<u32>,
    /// Why its clocks are held down.
    pub throttle: Vec<Throttle>,
    /// NVLinks that are up, if not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlinks_up: Option<u32>,
    /// Index of the GPU a bridge connects it to. A card built with switches needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridged_to: Option<usize>,
    /// Memory in use in MiB.
    pub used_mib: u64,
    /// Clock of the multiprocessors now in MHz, if not the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_clock_mhz: Option<u32>,
    /// Memory clock now in MHz, if not the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Temperature in degrees Celsius, if not 40.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// Power drawn in watts, if not a tenth of the default limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<u32>,
}

/// Why clocks are held down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Throttle {
    /// Nothing to do.
    GpuIdle,
    /// The power cap.
    SwPowerCap,
    /// The hardware halves the clocks.
    HwSlowdown,
    /// Too hot for the driver.
    SwThermalSlowdown,
    /// Too hot for the hardware.
    HwThermalSlowdown,
    /// The machine's power supply asks for it.
    HwPowerBrakeSlowdown,
}

/// Why a state file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refuses.
    #[error("cannot access the state file `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It holds something else.
    #[error("`{}` is not the state of a machine: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A GPU of a kind nobody described.
    #[error("`{}` asks for profile `{profile}`, which does not exist; known are {known}", path.display())]
    UnknownProfile {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        profile: String,
        /// What there is.
        known: String,
    },
}

impl Default for State {
    fn default() -> Self {
        Self {
            driver_version: "550.54.15".to_owned(),
            nvml_version: "12.550.54.15".to_owned(),
            cuda_version: 12_040,
            failure: None,
            hang_seconds: 0.0,
            gpus: Vec::new(),
        }
    }
}

impl Gpu {
    /// A healthy GPU at rest.
    pub fn new(profile: &str) -> Self {
        Self { profile: profile.to_owned(), ..Self::default() }
    }

    /// A GPU cut into these slices.
    pub fn sliced(profile: &str, slices: &[&str]) -> Self {
        Self { mig: Some(slices.iter().map(|&slice| slice.to_owned()).collect()), ..Self::new(profile) }
    }
}

impl State {
    /// A node with `count` GPUs of one kind, such as eight `H20`.
    pub fn node(profile: &str, count: usize) -> Self {
        Self { gpus: vec![Gpu::new(profile); count], ..Self::default() }
    }

    /// A node with one GPU of each of these kinds.
    pub fn mixed(profiles: &[&str]) -> Self {
        Self { gpus: profiles.iter().map(|profile| Gpu::new(profile)).collect(), ..Self::default() }
    }

    /// This machine, with a driver that runs no CUDA 12.
    #[must_use]
    pub fn with_old_driver(self) -> Self {
        Self {
            driver_version: "470.256.02".to_owned(),
            nvml_version: "11.470.256.02".to_owned(),
            cuda_version: 11_040,
            ..self
        }
    }

    /// This machine, with every call refused.
    #[must_use]
    pub fn with_failure(self, failure: Failure) -> Self {
        Self { failure: Some(failure), ..self }
    }

    /// This machine, with every call taking this long.
    #[must_use]
    pub fn with_hang(self, seconds: f64) -> Self {
        Self { hang_seconds: seconds, ..self }
    }

    /// This machine after the GPU fell off the bus; the driver reports XID 79 then.
    #[must_use]
    pub fn with_lost(mut self, gpu: usize) -> Self {
        if let Some(gpu) = self.gpus.get_mut(gpu) {
            gpu.lost = true;
            gpu.xids.push(79);
        }
        self
    }

    /// This machine after one more XID of a GPU.
    #[must_use]
    pub fn with_xid(mut self, gpu: usize, xid: u64) -> Self {
        if let Some(gpu) = self.gpus.get_mut(gpu) {
            gpu.xids.push(xid);
        }
        self
    }

    /// Reads a state file.
    ///
    /// # Errors
    /// When it is missing, malformed, or asks for an unknown profile.
    pub fn read(path: &Path) -> Result<Self, StateError> {
        let text = std::fs::read(path).map_err(|source| StateError::Io { path: path.to_owned(), source })?;
        let state: Self = serde_json::from_slice(&text)
            .map_err(|source| StateError::Malformed { path: path.to_owned(), source })?;
        match state.gpus.iter().find(|gpu| crate::profile(&gpu.profile).is_none()) {
            Some(gpu) => Err(StateError::UnknownProfile {
                path: path.to_owned(),
                profile: gpu.profile.clone(),
                known: crate::profiles()
                    .iter()
                    .map(|known| known.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
            None => Ok(state),
        }
    }

    /// Writes a state file in one step, so that no reader sees half of it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), StateError> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| StateError::Malformed { path: path.to_owned(), source })?;
        let next = path.with_extension("json.next");
        std::fs::write(&next, text)
            .and_then(|()| std::fs::rename(&next, path))
            .map_err(|source| StateError::Io { path: path.to_owned(), source })
    }
}
