//! Measurements that replace the built-in figures.
//!
//! A calibration is JSON, written by whatever measured and read by whoever plans. Every entry says where it comes from:
//!
//! ```json
//! {
//!   "kernels": [{
//!     "gpu": "H20", "runtime": "native", "build": "0.1.0", "path": "GQA",
//!     "floor_us": 9.5, "bandwidth": 0.81, "arithmetic": 0.7, "tile_rows": 16,
//!     "provenance": {
//!       "tool": "attention timer", "device": "NVIDIA H20", "build": "0.1.0 sm_90a",
//!       "measured_at": "2026-01-02T03:04:05Z", "samples": 30
//!     }
//!   }]
//! }
//! ```
//!
//! An entry counts for the `gpu` class, `runtime`, `path` and `build` it names. `build` is the engine's version: that of
//! gqla-server is what `gqla-server --version` prints after its name, such as `0.1.0`. An entry without one, or with `*`,
//! counts for any build. What kernels exactly were measured is told by `provenance.build`, for people.

use std::{borrow::Cow, fmt};

use gqla_model::DecodePath;
use serde::{Deserialize, Serialize};

use crate::{
    attention::Efficiency,
    gpu::GpuSpec,
    kernel::{Division, Kernel},
    kernels::Runtime,
    plan::Constraints,
};

/// The build that stands for any.
const ANY_BUILD: &str = "*";

/// Measured kernels and devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// Kernels, the first match counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<MeasuredKernel>,
    /// Rates of whole devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<MeasuredDevice>,
}

/// Where a measurement comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// What measured.
    pub tool: String,
    /// The device it ran on, as the driver names it.
    pub device: String,
    /// Build of the kernels or of the engine.
    pub build: String,
    /// When, as RFC 3339.
    pub measured_at: String,
    /// How many timings stand behind the figures.
    pub samples: u32,
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tool, device, build, measured_at, samples } = self;
        write!(f, "measured by {tool} with {build} on {device}, {measured_at}, {samples} samples")
    }
}

/// One runtime's kernel for one path on one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredKernel {
    /// GPU class.
    pub gpu: String,
    /// The engine.
    pub runtime: Runtime,
    /// The engine's version; `*` and none are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// The path, spelled as the API does.
    pub path: DecodePath,
    /// Microseconds of a call with next to nothing to read.
    pub floor_us: f64,
    /// Share of the class's peak bandwidth reached on caches larger than the last-level cache.
    pub bandwidth: f64,
    /// Share of the class's peak arithmetic reached on full tiles.
    pub arithmetic: f64,
    /// Rows a tile has.
    pub tile_rows: u32,
    /// Where the figures come from.
    pub provenance: Provenance,
}

/// Rates of a device that its class does not have, or has differently: a CPU's above all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredDevice {
    /// GPU class.
    pub gpu: String,
    /// FLOP/s in the precision attention computes in.
    pub flops_per_second: f64,
    /// Bytes/s read from memory.
    pub bytes_per_second: f64,
    /// Where the figures come from.
    pub provenance: Provenance,
}

/// A measurement that cannot be one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("calibration of {gpu}: {field} is {value}, expected {expected}; measure again or remove the entry")]
pub struct CalibrationError {
    gpu: String,
    field: &'static str,
    value: f64,
    expected: &'static str,
}

impl Calibration {
    /// Refuses figures no device can reach.
    pub fn validate(&self) -> Result<(), CalibrationError> {
        for kernel in &self.kernels {
            let share = |value: f64| value > 0.0 && value <= 1.0;
            let share_words = "a share above 0 and at most 1";
            check(&kernel.gpu, "bandwidth", kernel.bandwidth, share(kernel.bandwidth), share_words)?;
            check(&kernel.gpu, "arithmetic", kernel.arithmetic, share(kernel.arithmetic), share_words)?;
            let floor = (0.0..=1e6).contains(&kernel.floor_us);
            check(&kernel.gpu, "floor_us", kernel.floor_us, floor, "0 to 1000000 µs")?;
            let rows = (1..=1024).contains(&kernel.tile_rows);
            check(&kernel.gpu, "tile_rows", kernel.tile_rows.into(), rows, "1 to 1024")?;
        }
        for device in &self.devices {
            let rate = |value: f64| value.is_finite() && value > 0.0;
            let words = "a finite number above 0";
            let flops = device.flops_per_second;
            check(&device.gpu, "flops_per_second", flops, rate(flops), words)?;
            let bytes = device.bytes_per_second;
            check(&device.gpu, "bytes_per_second", bytes, rate(bytes), words)?;
        }
        Ok(())
    }

    /// What counts for engines of version `build`; where that is not known, what counts for any.
    #[must_use]
    pub fn for_build(&self, build: Option<&str>) -> Self {
        let counts = |kernel: &&MeasuredKernel| match kernel.build.as_deref() {
            None | Some(ANY_BUILD) => true,
            wanted => wanted == build,
        };
        Self { kernels: self.kernels.iter().filter(counts).cloned().collect(), devices: self.devices.clone() }
    }

    /// Where the figures come from that a plan for `gpu` under `constraints` takes from here, each once.
    pub(crate) fn applied(&self, constraints: &Constraints, gpu: &str) -> Vec<String> {
        let paths =
            DecodePath::ALL.into_iter().filter(|path| constraints.path.is_none_or(|fixed| fixed == *path));
        let kernels = paths
            .filter(|_| constraints.efficiency == Efficiency::Calibrated)
            .filter_map(|path| self.measured(constraints.runtime, path, gpu))
            .map(|kernel| &kernel.provenance);
        let device = self.device(gpu).map(|device| &device.provenance);
        let mut sources = Vec::new();
        for source in kernels.chain(device).map(ToString::to_string) {
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        sources
    }

    /// `gpu` with measured rates, where there are some for its class.
    pub fn apply(&self, gpu: &GpuSpec) -> GpuSpec {
        match self.device(&gpu.name) {
            Some(measured) => GpuSpec {
                flops_per_second: measured.flops_per_second,
                bytes_per_second: measured.bytes_per_second,
                ..gpu.clone()
            },
            None => gpu.clone(),
        }
    }

    /// The measured kernel, where there is one; `divided` says how it divides contexts, and overlaps loads with arithmetic.
    pub(crate) fn kernel(
        &self,
        runtime: Runtime,
        path: DecodePath,
        gpu: &str,
        divided: Option<(Division, f64)>,
    ) -> Option<Kernel> {
        self.measured(runtime, path, gpu).map(|measured| measured.kernel(divided))
    }

    fn measured(&self, runtime: Runtime, path: DecodePath, gpu: &str) -> Option<&MeasuredKernel> {
        let is_it = |kernel: &&MeasuredKernel| {
            kernel.runtime == runtime && kernel.path == path && kernel.gpu.eq_ignore_ascii_case(gpu)
        };
        self.kernels.iter().find(is_it)
    }

    fn device(&self, gpu: &str) -> Option<&MeasuredDevice> {
        self.devices.iter().find(|device| device.gpu.eq_ignore_ascii_case(gpu))
    }
}

fn check(
    gpu: &str,
    field: &'static str,
    value: f64,
    valid: bool,
    expected: &'static str,
) -> Result<(), CalibrationError> {
    if valid { Ok(()) } else { Err(CalibrationError { gpu: gpu.to_owned(), field, value, expected }) }
}

impl MeasuredKernel {
    fn kernel(&self, divided: Option<(Division, f64)>) -> Kernel {
        let (division, overlap) = divided.unwrap_or((Division::Fills, 4.0));
        Kernel {
            name: Cow::Owned(self.provenance.build.clone()),
            floor_us: self.floor_us,
            stream_us: 0.0,
            bandwidth: self.bandwidth,
            narrow_loss: 0.0,
            arithmetic: self.arithmetic,
            tile_rows: self.tile_rows,
            lone_loss: 0.0,
            overlap,
            division,
            min_heads: 0,
            source: Cow::Owned(self.provenance.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    fn provenance() -> Provenance {
        Provenance {
            tool: "attention timer".into(),
            device: "NVIDIA H20".into(),
            build: "0.1.0 sm_90a".into(),
            measured_at: "2026-01-02T03:04:05Z".into(),
            samples: 30,
        }
    }

    fn measured() -> MeasuredKernel {
        MeasuredKernel {
            gpu: "h20".into(),
            runtime: Runtime::Native,
            build: None,
            path: DecodePath::Gqa,
            floor_us: 7.5,
            bandwidth: 0.5,
            arithmetic: 0.4,
            tile_rows: 16,
            provenance: provenance(),
        }
    }

    #[test]
    fn a_kernel_counts_for_its_class_runtime_and_path_only() {
        let calibration = Calibration { kernels: vec![measured()], ..Calibration::default() };
        let found = |runtime, path, gpu| calibration.kernel(runtime, path, gpu, None).is_some();
        assert!(found(Runtime::Native, DecodePath::Gqa, "H20"));
        assert!(!found(Runtime::Vllm, DecodePath::Gqa, "H20"));
        assert!(!found(Runtime::Native, DecodePath::MqaAbsorb, "H20"));
        assert!(!found(Runtime::Native, DecodePath::Gqa, "H200"));
    }

    #[test]
    fn a_build_is_one_version_or_any() {
        let entry = |build: Option<&str>| MeasuredKernel { build: build.map(str::to_owned), ..measured() };
        let counts = |entry: MeasuredKernel, build| {
            let calibration = Calibration { kernels: vec![entry], ..Calibration::default() };
            !calibration.for_build(build).kernels.is_empty()
        };
        for (named, own, expected) in [
            (None, Some("0.1.0"), true),
            (None, None, true),
            (Some("*"), Some("0.1.0"), true),
            (Some("*"), None, true),
            (Some("0.1.0"), Some("0.1.0"), true),
            (Some("0.1.0"), Some("0.1.01"), false),
            (Some("0.1.0"), None, false),
        ] {
            assert_eq!(counts(entry(named), own), expected, "{named:?} for {own:?}");
        }
    }

    #[test]
    fn every_source_that_took_part_is_told_once() {
        let entries = |second: MeasuredKernel| Calibration {
            kernels: vec![measured(), second],
            ..Calibration::default()
        };
        let other = MeasuredKernel { path: DecodePath::MqaAbsorb, ..measured() };
        let constraints = Constraints::default();
        let source =
            "measured by attention timer with 0.1.0 sm_90a on NVIDIA H20, 2026-01-02T03:04:05Z, 30 samples";
        assert_eq!(entries(other.clone()).applied(&constraints, "H20"), [source]);
        assert_eq!(entries(other.clone()).applied(&constraints, "H100"), [""; 0]);
        let peak = Constraints { efficiency: Efficiency::Peak, ..constraints };
        assert_eq!(entries(other).applied(&peak, "H20"), [""; 0]);
        let vllm = MeasuredKernel { runtime: Runtime::Vllm, ..measured() };
        let fixed = Constraints { path: Some(DecodePath::MqaAbsorb), ..constraints };
        assert_eq!(entries(vllm).applied(&fixed, "H20"), [""; 0]);
    }

    #[test]
    fn a_measured_device_replaces_the_class_rates_and_keeps_its_memory() {
        let device = MeasuredDevice {
            gpu: "CPU".into(),
            flops_per_second: 2e12,
            bytes_per_second: 2e11,
            provenance: provenance(),
        };
        let calibration = Calibration { devices: vec![device], ..Calibration::default() };
        let cpu = Catalogue::builtin().get("CPU").unwrap().spec.clone();
        let measured = calibration.apply(&cpu);
        assert_eq!((measured.ridge(), measured.memory_bytes), (10.0, cpu.memory_bytes));
        let h20 = Catalogue::builtin().get("H20").unwrap().spec.clone();
        assert_eq!(calibration.apply(&h20), h20);
    }

    #[test]
    fn impossible_measurements_name_their_field() {
        let refusal = |kernel| {
            let calibration = Calibration { kernels: vec![kernel], ..Calibration::default() };
            calibration.validate().unwrap_err().to_string()
        };
        assert_eq!(
            refusal(MeasuredKernel { bandwidth: 1.2, ..measured() }),
            "calibration of h20: bandwidth is 1.2, expected a share above 0 and at most 1; measure again or remove \
             the entry"
        );
        assert!(refusal(MeasuredKernel { floor_us: f64::NAN, ..measured() }).contains("floor_us is NaN"));
    }
}
