//! What was measured of a machine that decodes on its processor, in place of the catalogue's figures.

use std::ops::RangeInclusive;

use crate::{
    calibration::{MeasuredDevice, Provenance},
    gpu::GpuSpec,
};

/// Bytes/s no memory is outside of.
const POSSIBLE_BYTES: RangeInclusive<f64> = 1e6..=1e14;
/// FLOP/s no processor is outside of.
const POSSIBLE_FLOPS: RangeInclusive<f64> = 1e6..=1e17;

/// The two rates of one machine's roofline, as measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostRates {
    /// FLOP/s in the precision attention computes in.
    pub flops_per_second: f64,
    /// Bytes/s read from memory.
    pub bytes_per_second: f64,
}

/// A measurement that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "{quantity} was measured as {value:e} {unit}, expected {least:e} to {most:e}: measure again while the machine is \
     less busy"
)]
pub struct AbsurdRate {
    quantity: &'static str,
    value: f64,
    unit: &'static str,
    least: f64,
    most: f64,
}

impl HostRates {
    /// FLOPs the machine computes while it reads one byte.
    pub fn ridge(&self) -> f64 {
        self.flops_per_second / self.bytes_per_second
    }

    /// Refuses rates no machine has, so that a clock that stood still does not decide a path.
    pub fn validate(&self) -> Result<(), AbsurdRate> {
        let rates = [
            ("memory bandwidth", self.bytes_per_second, "bytes/s", POSSIBLE_BYTES),
            ("arithmetic", self.flops_per_second, "FLOP/s", POSSIBLE_FLOPS),
        ];
        match rates.into_iter().find(|(_, value, _, possible)| !possible.contains(value)) {
            Some((quantity, value, unit, possible)) => {
                Err(AbsurdRate { quantity, value, unit, least: *possible.start(), most: *possible.end() })
            }
            None => Ok(()),
        }
    }

    /// `class` with these rates.
    pub fn apply(&self, class: &GpuSpec) -> Result<GpuSpec, AbsurdRate> {
        self.validate()?;
        let Self { flops_per_second, bytes_per_second } = *self;
        Ok(GpuSpec { flops_per_second, bytes_per_second, ..class.clone() })
    }

    /// The calibration entry that gives class `gpu` these rates.
    pub fn device(&self, gpu: &str, provenance: Provenance) -> Result<MeasuredDevice, AbsurdRate> {
        self.validate()?;
        let Self { flops_per_second, bytes_per_second } = *self;
        Ok(MeasuredDevice { gpu: gpu.to_owned(), flops_per_second, bytes_per_second, provenance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{CPU_CLASS, Catalogue};

    fn rates(flops_per_second: f64, bytes_per_second: f64) -> HostRates {
        HostRates { flops_per_second, bytes_per_second }
    }

    #[test]
    fn a_class_takes_the_rates_and_keeps_the_rest() {
        let cpu = Catalogue::builtin().get(CPU_CLASS).unwrap().spec.clone();
        let measured = rates(3e12, 2e11).apply(&cpu).unwrap();
        assert_eq!((measured.ridge(), measured.bytes_per_second), (15.0, 2e11));
        assert_eq!((&measured.name, measured.memory_bytes), (&cpu.name, cpu.memory_bytes));
    }

    #[test]
    fn absurd_rates_are_refused_by_name() {
        for (flops, bytes, quantity) in [
            (1e11, 0.0, "memory bandwidth"),
            (1e11, -1.0, "memory bandwidth"),
            (1e11, f64::NAN, "memory bandwidth"),
            (1e11, f64::INFINITY, "memory bandwidth"),
            (1e11, 1.01e14, "memory bandwidth"),
            (0.0, 1e10, "arithmetic"),
            (f64::NAN, 1e10, "arithmetic"),
            (f64::INFINITY, 1e10, "arithmetic"),
        ] {
            let sentence = rates(flops, bytes).validate().unwrap_err().to_string();
            assert!(sentence.starts_with(quantity), "{flops} {bytes}: {sentence}");
        }
        assert_eq!(
            rates(1e11, 2e14).validate().unwrap_err().to_string(),
            "memory bandwidth was measured as 2e14 bytes/s, expected 1e6 to 1e14: measure again while the machine is \
             less busy"
        );
        for (flops, bytes) in [(1e6, 1e6), (1e17, 1e14), (1.7e11, 3e10)] {
            assert_eq!(rates(flops, bytes).validate(), Ok(()));
        }
    }
}
