//! One pass over NVML.

use std::collections::{BTreeMap, HashMap};

use gqla_api::inventory::{GpuFacts, MigSlices};
use nvml_wrapper::{
    Device, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{Clock, TemperatureSensor},
    enums::device::SampleValue,
    error::NvmlError,
    structs::device::FieldId,
    sys_exports::field_id::{NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING},
};

use super::library::refusal;
use crate::facts::{Facts, GpuReading, Now, Refusal, Seen};

/// NVLinks that any card has at most.
const MAX_LINKS: u32 = 18;
const MIB: u64 = 1 << 20;

/// Reasons for low clocks that are shown, in the order of [`THROTTLE_NAMES`].
const THROTTLE_REASONS: [ThrottleReasons; 5] = [
    ThrottleReasons::SW_POWER_CAP,
    ThrottleReasons::HW_SLOWDOWN,
    ThrottleReasons::SW_THERMAL_SLOWDOWN,
    ThrottleReasons::HW_THERMAL_SLOWDOWN,
    ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
];
/// Names of the reasons for low clocks, as metrics spell them.
pub(crate) const THROTTLE_NAMES: [&str; 5] =
    ["power_cap", "hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake"];

/// Other ends of links, by GPU and link: cables do not move while a driver is loaded.
pub(super) type LinkEnds = HashMap<(u32, u32), String>;

/// Reads every GPU.
///
/// # Errors
/// When the driver does not answer, or no GPU does for another reason than its loss.
pub(super) fn read(nvml: &Nvml, links: &mut LinkEnds) -> Result<Facts, Refusal> {
    let failed = |error: NvmlError| refusal("NVML", &error);
    let count = nvml.device_count().map_err(failed)?;
    let answers =
        (0..count).map(|index| nvml.device_by_index(index).and_then(|gpu| seen(&gpu, index, links)));
    Ok(Facts {
        driver_version: nvml.sys_driver_version().map_err(failed)?,
        cuda_driver: nvml.sys_cuda_driver_version().map_err(failed)?,
        gpus: readings(answers)?,
    })
}

/// What the GPUs' answers, by index, say of GPUs and driver.
fn readings(answers: impl Iterator<Item = Result<Seen, NvmlError>>) -> Result<Vec<GpuReading>, Refusal> {
    let (mut gpus, mut refused) = (Vec::new(), None);
    for (index, answer) in answers.enumerate() {
        gpus.push(match answer {
            Ok(seen) => GpuReading::Seen(Box::new(seen)),
            Err(error) if is_of_driver(&error) => return Err(refusal(&format!("GPU {index}"), &error)),
            // One that needs a reset is as good as gone until it gets it.
            Err(NvmlError::GpuLost | NvmlError::ResetRequired) => GpuReading::Lost,
            // A GPU in trouble has many errors. Where others answer, it is not the driver's.
            Err(error) => {
                tracing::debug!(gpu = index, %error, "the GPU does not answer");
                refused.get_or_insert_with(|| refusal(&format!("GPU {index}"), &error));
                GpuReading::Lost
            }
        });
    }
    match refused {
        Some(refused) if gpus.iter().all(|gpu| *gpu == GpuReading::Lost) => Err(refused),
        _ => Ok(gpus),
    }
}

/// Whether an error that came with one GPU is the whole driver's.
fn is_of_driver(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::NoPermission
            | NvmlError::LibRmVersionMismatch
            | NvmlError::Timeout
            | NvmlError::LibraryNotFound
            | NvmlError::FunctionNotFound
            | NvmlError::LibloadingError(_)
            | NvmlError::FailedToLoadSymbol(_)
    )
}

fn seen(gpu: &Device, index: u32, links: &mut LinkEnds) -> Result<Seen, NvmlError> {
    let pci = gpu.pci_info()?;
    let memory = optional(gpu.memory_info())?;
    let limit = optional(gpu.enforced_power_limit())?;
    let default_limit = optional(gpu.power_management_limit_default())?;
    let facts = GpuFacts {
        index,
        product: gpu.name()?,
        uuid: gpu.uuid()?,
        pci_bus_id: pci.bus_id,
        pci_device_id: (pci.pci_device_id >> 16) as u16,
        memory_mib: memory.as_ref().map_or(0, |memory| memory.total / MIB),
        memory_bus_bits: optional(gpu.memory_bus_width())?,
        memory_clock_mhz: optional(gpu.max_clock_info(Clock::Memory))?,
        clock_mhz: optional(gpu.max_clock_info(Clock::SM))?,
        power_cap_watts: limit
            .zip(default_limit)
            .filter(|(limit, default)| limit < default)
            .map(|(limit, _)| limit / 1000),
        default_power_watts: default_limit.map(|milliwatts| milliwatts / 1000),
        mig: slices(gpu)?,
        ..GpuFacts::default()
    };
    let throttled = optional(gpu.current_throttle_reasons())?.unwrap_or(ThrottleReasons::NONE);
    let named = THROTTLE_NAMES.iter().zip(THROTTLE_REASONS).filter(|(_, reason)| throttled.contains(*reason));
    Ok(Seen {
        facts,
        cuda_cores: optional(gpu.num_cores())?,
        capability: optional(gpu.cuda_compute_capability())?.map(|version| (version.major, version.minor)),
        link_ends: link_ends(gpu, index, links)?,
        bad_memory: bad_memory(gpu)?,
        now: Now {
            memory_total: memory.as_ref().map(|memory| memory.total),
            memory_used: memory.as_ref().map(|memory| memory.used),
            sm_clock_mhz: optional(gpu.clock_info(Clock::SM))?,
            memory_clock_mhz: optional(gpu.clock_info(Clock::Memory))?,
            temperature_celsius: optional(gpu.temperature(TemperatureSensor::Gpu))?,
            power_milliwatts: optional(gpu.power_usage())?,
            power_limit_milliwatts: limit,
            throttled: named.map(|(name, _)| *name).collect(),
        },
    })
}

/// Only a loss is an error here: what a card cannot tell, or the driver has no name for, is left out.
fn optional<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Other ends of the links that are up; empty text where the driver does not name one.
fn link_ends(gpu: &Device, index: u32, known: &mut LinkEnds) -> Result<Vec<String>, NvmlError> {
    let mut ends = Vec::new();
    for number in 0..MAX_LINKS {
        let link = gpu.link_wrapper_for(number);
        match optional(link.is_active())? {
            Some(true) => {}
            Some(false) => continue,
            None => break,
        }
        let end = match known.get(&(index, number)) {
            Some(end) => end.clone(),
            None => {
                let end = optional(link.remote_pci_info())?.map_or(String::new(), |pci| pci.bus_id);
                known.insert((index, number), end.clone());
                end
            }
        };
        ends.push(end);
    }
    Ok(ends)
}

/// Whether rows of the memory wait for a reset to be remapped, or could not be.
fn bad_memory(gpu: &Device) -> Result<bool, NvmlError> {
    let fields = [NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_FAILURE].map(FieldId);
    let samples = optional(gpu.field_values_for(&fields))?.unwrap_or_default();
    Ok(samples.into_iter().flatten().any(|sample| match sample.value {
        Ok(SampleValue::U32(value)) => value > 0,
        Ok(SampleValue::U64(value)) => value > 0,
        _ => false,
    }))
}

/// The slices by profile; `None` unless MIG is on.
fn slices(gpu: &Device) -> Result<Option<Vec<MigSlices>>, NvmlError> {
    if optional(gpu.mig_mode())?.is_none_or(|mode| mode.current == 0) {
        return Ok(None);
    }
    let mut slices: BTreeMap<String, MigSlices> = BTreeMap::new();
    for index in 0..optional(gpu.mig_device_count())?.unwrap_or(0) {
        let Some(slice) = optional(gpu.mig_device_by_index(index))? else { continue };
        let Some(attributes) = optional(slice.attributes())? else { continue };
        // The name ends in the profile: `NVIDIA A100-SXM4-80GB MIG 1g.10gb`.
        let name = optional(slice.name())?.unwrap_or_default();
        let named = name.rsplit_once(" MIG ").map(|(_, profile)| profile.to_owned());
        let profile = named.unwrap_or_else(|| {
            format!("{}g.{}gb", attributes.gpu_instance_slice_count, attributes.memory_size_mb.div_ceil(1024))
        });
        let of_profile = slices.entry(profile.clone()).or_insert_with(|| MigSlices {
            profile,
            count: 0,
            memory_mib: attributes.memory_size_mb,
            multiprocessors: Some(attributes.multiprocessor_count),
        });
        of_profile.count += 1;
    }
    Ok(Some(slices.into_values().collect()))
}

#[cfg(test)]
mod tests {
    use gqla_api::inventory::DriverState;

    use super::*;

    fn lost_or_refused(answers: Vec<Result<Seen, NvmlError>>) -> Result<Vec<bool>, (DriverState, bool)> {
        match readings(answers.into_iter()) {
            Ok(gpus) => Ok(gpus.iter().map(|gpu| *gpu == GpuReading::Lost).collect()),
            Err(refused) => Err((refused.state, refused.message.starts_with("GPU 1: "))),
        }
    }

    #[test]
    fn errors_of_one_gpu_are_its_loss_and_errors_of_the_driver_a_refusal() {
        let seen = || Ok(Seen::default());
        let of_gpu = [
            NvmlError::GpuLost,
            NvmlError::ResetRequired,
            NvmlError::Unknown,
            NvmlError::OperatingSystem,
            NvmlError::IrqIssue,
            NvmlError::CorruptedInfoROM,
            NvmlError::InsufficientPower,
            NvmlError::UnexpectedVariant(1000),
        ];
        for error in of_gpu {
            let words = error.to_string();
            assert_eq!(
                lost_or_refused(vec![seen(), Err(error), seen()]),
                Ok(vec![false, true, false]),
                "{words}"
            );
        }
        let of_driver = [
            (NvmlError::Uninitialized, DriverState::Failing),
            (NvmlError::DriverNotLoaded, DriverState::Missing),
            (NvmlError::NoPermission, DriverState::NoPermission),
            (NvmlError::LibRmVersionMismatch, DriverState::Failing),
            (NvmlError::Timeout, DriverState::Failing),
        ];
        for (error, state) in of_driver {
            let words = error.to_string();
            assert_eq!(lost_or_refused(vec![seen(), Err(error), seen()]), Err((state, true)), "{words}");
        }
    }

    #[test]
    fn a_driver_none_of_whose_gpus_answers_is_refused_unless_all_are_lost() {
        let lost = || Err(NvmlError::GpuLost);
        assert_eq!(lost_or_refused(vec![lost(), lost()]), Ok(vec![true, true]));
        let failing = vec![lost(), Err(NvmlError::Unknown), Err(NvmlError::OperatingSystem)];
        assert_eq!(lost_or_refused(failing), Err((DriverState::Failing, true)));
        assert_eq!(lost_or_refused(vec![]), Ok(vec![]));
    }
}
