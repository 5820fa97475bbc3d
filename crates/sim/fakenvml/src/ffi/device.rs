//! What one GPU says of itself.

use std::ffi::{c_int, c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings::{self as nvml, nvmlDevice_t, nvmlReturn_t};

use super::abi::{
    Card, Code, Device, INVALID, NOT_SUPPORTED, Out, TextOut, Values, answer, bus, field, on_card,
};
use crate::state::Throttle;

/// Vendor 10de in the low half of a PCI device id, as NVML packs it.
pub(super) const NVIDIA: u32 = 0x10de;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| index.set(number(card.index)?))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| minor.set(number(card.index)?))
}

fn number(index: usize) -> Result<c_uint, Code> {
    c_uint::try_from(index).map_err(|_| INVALID)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: TextOut, length: c_uint) -> nvmlReturn_t {
    answer(|machine| {
        let device = Device::of(device)?;
        let card = Card::at(machine, device.gpu())?;
        match device {
            Device::Gpu(_) => name.set(length, &card.profile.product),
            Device::Slice(_, slice) => {
                let slice = card.slice(slice)?;
                name.set(length, &format!("{} MIG {}", card.profile.product, slice.profile))
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: TextOut, length: c_uint) -> nvmlReturn_t {
    answer(|machine| {
        let device = Device::of(device)?;
        let card = Card::at(machine, device.gpu())?;
        match device {
            Device::Gpu(_) => uuid.set(length, &card.uuid()),
            Device::Slice(_, slice) => {
                card.slice(slice)?;
                let whole = card.uuid();
                // As many characters as a whole GPU's UUID: the last four become the slice's number.
                let stem = whole.trim_start_matches("GPU-");
                let stem = stem.get(..stem.len().saturating_sub(4)).unwrap_or(stem);
                uuid.set(length, &format!("MIG-{stem}{slice:04x}"))
            }
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPciInfo_v3(device: nvmlDevice_t, pci: Out<nvml::nvmlPciInfo_t>) -> nvmlReturn_t {
    on_card(device, |card| pci.set(pci_info(bus(card.index), card.profile.pci_device_id)))
}

/// A device at slot 0 of a bus.
pub(super) fn pci_info(bus: u32, device_id: u16) -> nvml::nvmlPciInfo_t {
    nvml::nvmlPciInfo_t {
        busIdLegacy: field(&format!("0000:{bus:02X}:00.0")),
        domain: 0,
        bus,
        device: 0,
        pciDeviceId: u32::from(device_id) << 16 | NVIDIA,
        pciSubSystemId: NVIDIA,
        busId: field(&format!("00000000:{bus:02X}:00.0")),
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: Out<c_int>,
    minor: Out<c_int>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        major.set(card.profile.compute_capability.0)?;
        minor.set(card.profile.compute_capability.1)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetArchitecture(device: nvmlDevice_t, architecture: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| architecture.set(card.profile.architecture))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNumGpuCores(device: nvmlDevice_t, cores: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| cores.set(card.profile.cores()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryBusWidth(device: nvmlDevice_t, bits: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| bits.set(card.profile.memory_bus_bits))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: nvmlDevice_t,
    clock: nvml::nvmlClockType_t,
    mhz: Out<c_uint>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        mhz.set(clock_of(clock, card.profile.sm_clock_mhz, card.profile.memory_clock_mhz)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    clock: nvml::nvmlClockType_t,
    mhz: Out<c_uint>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        let sm = card.gpu.sm_clock_mhz.unwrap_or(card.profile.sm_clock_mhz);
        let memory = card.gpu.memory_clock_mhz.unwrap_or(card.profile.memory_clock_mhz);
        mhz.set(clock_of(clock, sm, memory)?)
    })
}

fn clock_of(clock: nvml::nvmlClockType_t, sm: u32, memory: u32) -> Result<u32, Code> {
    match clock {
        nvml::nvmlClockType_enum_NVML_CLOCK_GRAPHICS | nvml::nvmlClockType_enum_NVML_CLOCK_SM => Ok(sm),
        nvml::nvmlClockType_enum_NVML_CLOCK_MEM => Ok(memory),
        nvml::nvmlClockType_enum_NVML_CLOCK_VIDEO => Err(NOT_SUPPORTED),
        _ => Err(INVALID),
    }
}

/// Total and used bytes of a GPU or slice.
fn memory(machine: &crate::State, device: nvmlDevice_t) -> Result<(u64, u64), Code> {
    let device = Device::of(device)?;
    let card = Card::at(machine, device.gpu())?;
    match device {
        Device::Gpu(_) => Ok((card.profile.memory_mib << 20, card.gpu.used_mib << 20)),
        Device::Slice(_, slice) => Ok((card.slice(slice)?.memory_mib << 20, 0)),
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo(device: nvmlDevice_t, info: Out<nvml::nvmlMemory_t>) -> nvmlReturn_t {
    answer(|machine| {
        let (total, used) = memory(machine, device)?;
        info.set(nvml::nvmlMemory_t { total, used, free: total.saturating_sub(used) })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    info: Out<nvml::nvmlMemory_v2_t>,
) -> nvmlReturn_t {
    answer(|machine| {
        let (total, used) = memory(machine, device)?;
        let version = 2 << 24 | number(size_of::<nvml::nvmlMemory_v2_t>())?;
        let free = total.saturating_sub(used);
        info.set(nvml::nvmlMemory_v2_t { version, total, reserved: 0, free, used })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    rates: Out<nvml::nvmlUtilization_t>,
) -> nvmlReturn_t {
    on_card(device, |card| match card.gpu.mig {
        Some(_) => Err(NOT_SUPPORTED),
        None => rates.set(nvml::nvmlUtilization_t { gpu: 0, memory: 0 }),
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    sensor: nvml::nvmlTemperatureSensors_t,
    celsius: Out<c_uint>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        if sensor != nvml::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(INVALID);
        }
        celsius.set(card.gpu.temperature_celsius.unwrap_or(40))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, milliwatts: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| {
        let watts = card.gpu.power_watts.unwrap_or(card.profile.power_watts / 10);
        milliwatts.set(watts.saturating_mul(1000))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerManagementDefaultLimit(
    device: nvmlDevice_t,
    milliwatts: Out<c_uint>,
) -> nvmlReturn_t {
    on_card(device, |card| milliwatts.set(card.profile.power_watts * 1000))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerManagementLimit(
    device: nvmlDevice_t,
    milliwatts: Out<c_uint>,
) -> nvmlReturn_t {
    on_card(device, |card| milliwatts.set(power_limit(card)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: nvmlDevice_t, milliwatts: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| milliwatts.set(power_limit(card)))
}

fn power_limit(card: &Card) -> u32 {
    card.gpu.power_limit_watts.unwrap_or(card.profile.power_watts).saturating_mul(1000)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    reasons: Out<c_ulonglong>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        let bits = card.gpu.throttle.iter().fold(0, |bits, reason| bits | throttle_bit(*reason));
        reasons.set(u64::from(bits))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksEventReasons(
    device: nvmlDevice_t,
    reasons: Out<c_ulonglong>,
) -> nvmlReturn_t {
    nvmlDeviceGetCurrentClocksThrottleReasons(device, reasons)
}

fn throttle_bit(reason: Throttle) -> u32 {
    match reason {
        Throttle::GpuIdle => nvml::nvmlClocksThrottleReasonGpuIdle,
        Throttle::SwPowerCap => nvml::nvmlClocksThrottleReasonSwPowerCap,
        Throttle::HwSlowdown => nvml::nvmlClocksThrottleReasonHwSlowdown,
        Throttle::SwThermalSlowdown => nvml::nvmlClocksThrottleReasonSwThermalSlowdown,
        Throttle::HwThermalSlowdown => nvml::nvmlClocksThrottleReasonHwThermalSlowdown,
        Throttle::HwPowerBrakeSlowdown => nvml::nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: nvml::nvmlMemoryErrorType_t,
    _counter: nvml::nvmlEccCounterType_t,
    errors: Out<c_ulonglong>,
) -> nvmlReturn_t {
    on_card(device, |card| match kind {
        nvml::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED => {
            errors.set(card.gpu.double_bit_errors)
        }
        nvml::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED => errors.set(0),
        _ => Err(INVALID),
    })
}

/// Rows remapped so far are as many as the double-bit errors that led there.
fn remapped(card: &Card) -> [u32; 4] {
    let rows = u32::try_from(card.gpu.double_bit_errors).unwrap_or(u32::MAX);
    [0, rows, u32::from(card.gpu.remap_pending), u32::from(card.gpu.remap_failed)]
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetRemappedRows(
    device: nvmlDevice_t,
    correctable: Out<c_uint>,
    uncorrectable: Out<c_uint>,
    pending: Out<c_uint>,
    failed: Out<c_uint>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        let [corrected, uncorrected, waiting, failure] = remapped(card);
        correctable.set(corrected)?;
        uncorrectable.set(uncorrected)?;
        pending.set(waiting)?;
        failed.set(failure)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetFieldValues(
    device: nvmlDevice_t,
    count: c_int,
    values: Values<nvml::nvmlFieldValue_t>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        let count = usize::try_from(count).map_err(|_| INVALID)?;
        values.update(count, |value| field_value(card, value))
    })
}

fn field_value(card: &Card, asked: nvml::nvmlFieldValue_t) -> nvml::nvmlFieldValue_t {
    let row = asked.fieldId.checked_sub(nvml::field_id::NVML_FI_DEV_REMAPPED_COR);
    let known = row.and_then(|row| remapped(card).get(row as usize).copied());
    nvml::nvmlFieldValue_t {
        valueType: nvml::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT,
        nvmlReturn: known.map_or(NOT_SUPPORTED.0, |_| nvml::nvmlReturn_enum_NVML_SUCCESS),
        value: nvml::nvmlValue_t { ullVal: u64::from(known.unwrap_or(0)) },
        ..asked
    }
}
