//! Initialisation, versions and handles.

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings::{self as nvml, nvmlDevice_t, nvmlReturn_t};

use super::abi::{Card, Device, INVALID, NOT_FOUND, Out, TextIn, TextOut, answer, awake};
use crate::store::library;

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    eprintln!("gqla-fakenvml: a stand-in, not NVIDIA's NVML");
    match awake() {
        Ok(_) => {
            library().initialised += 1;
            nvml::nvmlReturn_enum_NVML_SUCCESS
        }
        Err(code) => code.0,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    let mut library = library();
    match library.initialised.checked_sub(1) {
        Some(left) => {
            library.initialised = left;
            nvml::nvmlReturn_enum_NVML_SUCCESS
        }
        None => nvml::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text = match result {
        nvml::nvmlReturn_enum_NVML_SUCCESS => c"Success",
        nvml::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => c"Uninitialized",
        nvml::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => c"Invalid Argument",
        nvml::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => c"Not Supported",
        nvml::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION => c"Insufficient Permissions",
        nvml::nvmlReturn_enum_NVML_ERROR_NOT_FOUND => c"Not Found",
        nvml::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => c"Driver Not Loaded",
        nvml::nvmlReturn_enum_NVML_ERROR_TIMEOUT => c"Timeout",
        nvml::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => c"GPU is lost",
        nvml::nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH => c"Driver/library version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(version: TextOut, length: c_uint) -> nvmlReturn_t {
    answer(|machine| version.set(length, &machine.driver_version))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetNVMLVersion(version: TextOut, length: c_uint) -> nvmlReturn_t {
    answer(|machine| version.set(length, &machine.nvml_version))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion(version: Out<c_int>) -> nvmlReturn_t {
    answer(|machine| version.set(machine.cuda_version))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: Out<c_int>) -> nvmlReturn_t {
    answer(|machine| version.set(machine.cuda_version))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(count: Out<c_uint>) -> nvmlReturn_t {
    answer(|machine| count.set(c_uint::try_from(machine.gpus.len()).map_err(|_| INVALID)?))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: Out<nvmlDevice_t>) -> nvmlReturn_t {
    answer(|machine| {
        let card = Card::at(machine, index as usize)?;
        device.set(Device::Gpu(card.index).handle())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByUUID(uuid: TextIn, device: Out<nvmlDevice_t>) -> nvmlReturn_t {
    let uuid = &uuid;
    find(device, |card| Ok(card.uuid() == uuid.get()?))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(bus_id: TextIn, device: Out<nvmlDevice_t>) -> nvmlReturn_t {
    let bus_id = &bus_id;
    find(device, |card| Ok(card.bus_id().eq_ignore_ascii_case(bus_id.get()?)))
}

fn find(device: Out<nvmlDevice_t>, wanted: impl Fn(&Card) -> Result<bool, super::abi::Code>) -> nvmlReturn_t {
    answer(|machine| {
        for index in 0..machine.gpus.len() {
            let Ok(card) = Card::at(machine, index) else { continue };
            if wanted(&card)? {
                return device.set(Device::Gpu(index).handle());
            }
        }
        Err(NOT_FOUND)
    })
}
