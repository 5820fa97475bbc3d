//! GPUs cut into slices.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{self as nvml, nvmlDevice_t, nvmlReturn_t};

use super::abi::{Card, Code, Device, INVALID, NOT_SUPPORTED, Out, answer, on_card};
use crate::profiles::MigProfile;

/// Most slices of any GPU.
const MAX_SLICES: u32 = 7;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: Out<c_uint>,
    pending: Out<c_uint>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        if card.profile.mig.is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let mode =
            if card.gpu.mig.is_some() { nvml::NVML_DEVICE_MIG_ENABLE } else { nvml::NVML_DEVICE_MIG_DISABLE };
        current.set(mode)?;
        pending.set(mode)
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: Out<c_uint>) -> nvmlReturn_t {
    on_card(device, |card| count.set(if card.profile.mig.is_empty() { 0 } else { MAX_SLICES }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    device: nvmlDevice_t,
    index: c_uint,
    slice: Out<nvmlDevice_t>,
) -> nvmlReturn_t {
    on_card(device, |card| {
        card.slice(index as usize)?;
        slice.set(Device::Slice(card.index, index as usize).handle())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
    slice: nvmlDevice_t,
    device: Out<nvmlDevice_t>,
) -> nvmlReturn_t {
    on_slice(slice, |card, _, _| device.set(Device::Gpu(card.index).handle()))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceIsMigDeviceHandle(device: nvmlDevice_t, is_slice: Out<c_uint>) -> nvmlReturn_t {
    answer(|_| is_slice.set(u32::from(matches!(Device::of(device)?, Device::Slice(..)))))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: Out<c_uint>) -> nvmlReturn_t {
    on_slice(device, |_, index, _| id.set(c_uint::try_from(index + 1).map_err(|_| INVALID)?))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: Out<c_uint>) -> nvmlReturn_t {
    on_slice(device, |_, _, _| id.set(0))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetAttributes_v2(
    device: nvmlDevice_t,
    attributes: Out<nvml::nvmlDeviceAttributes_t>,
) -> nvmlReturn_t {
    on_slice(device, |_, _, slice| {
        attributes.set(nvml::nvmlDeviceAttributes_t {
            multiprocessorCount: slice.multiprocessors,
            sharedCopyEngineCount: slice.slices,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: slice.slices,
            computeInstanceSliceCount: slice.slices,
            memorySizeMB: slice.memory_mib,
        })
    })
}

fn on_slice(
    handle: nvmlDevice_t,
    act: impl FnOnce(&Card, usize, &MigProfile) -> Result<(), Code>,
) -> nvmlReturn_t {
    answer(|machine| match Device::of(handle)? {
        Device::Slice(gpu, slice) => {
            let card = Card::at(machine, gpu)?;
            act(&card, slice, card.slice(slice)?)
        }
        Device::Gpu(_) => Err(NOT_SUPPORTED),
    })
}
