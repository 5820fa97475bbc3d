//! Initialisation, devices, contexts and error texts.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::abi::{
    Out, Status, TextOut, answer, context_of, current, in_context, on_device, set_current, status,
};
use crate::{
    code::Code,
    machine::{Device, initialise},
};
use gqla_ptxsim::{MAX_BLOCK, MAX_GRID, REGISTERS_PER_BLOCK, SHARED_PER_BLOCK, THREADS_PER_BLOCK};

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> Status {
    status(if flags == 0 { initialise() } else { Err(Code::INVALID_VALUE) })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<c_int>) -> Status {
    answer(|machine| {
        let (major, minor) = machine.config.driver;
        version.set((1000 * major + 10 * minor).cast_signed())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> Status {
    answer(|machine| count.set(machine.devices.len() as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) -> Status {
    on_device(ordinal, |_, _| device.set(ordinal))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: TextOut, length: c_int, device: c_int) -> Status {
    on_device(device, |machine, device| name.set(length, &machine.devices[device].profile.product))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) -> Status {
    on_device(device, |machine, device| bytes.set(machine.devices[device].memory.capacity() as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) -> Status {
    on_device(device, |machine, device| value.set(attribute_of(&machine.devices[device], attribute)?))
}

/// `CUdevice_attribute` by number. What is not known here is refused: a made-up figure would be believed.
fn attribute_of(device: &Device, attribute: c_int) -> Result<c_int, Code> {
    let architecture = device.architecture;
    let value = match attribute {
        1 => THREADS_PER_BLOCK,
        2..=4 => MAX_BLOCK[attribute as usize - 2],
        5..=7 => MAX_GRID[attribute as usize - 5],
        8 => SHARED_PER_BLOCK,
        10 => 32,
        12 => REGISTERS_PER_BLOCK,
        16 => device.multiprocessors,
        39 => architecture.threads_per_multiprocessor,
        // Unified addressing, and memory pools for stream-ordered allocation.
        41 | 115 => 1,
        75 => architecture.capability.0,
        76 => architecture.capability.1,
        81 => architecture.shared_per_multiprocessor,
        97 => architecture.shared_per_block_optin,
        _ => return Err(Code::INVALID_VALUE),
    };
    Ok(value.cast_signed())
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<usize>, device: c_int) -> Status {
    on_device(device, |machine, device| {
        context.set(context_of(device))?;
        machine.devices[device].retained += 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    on_device(device, |machine, device| {
        let state = &mut machine.devices[device];
        state.retained = state.retained.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> Status {
    answer(|machine| set_current(machine, context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: Out<usize>) -> Status {
    answer(|_| context.set(current()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: Out<c_int>) -> Status {
    in_context(|_, index| device.set(index as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Status {
    in_context(|machine, device| machine.synchronize_all(device))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: c_int, name: Out<*const c_char>) -> Status {
    status(Code::name(error).ok_or(Code::INVALID_VALUE).and_then(|text| name.set(text.as_ptr())))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: c_int, text: Out<*const c_char>) -> Status {
    cuGetErrorName(error, text)
}

/// NVRTC opens libcuda and calls this without looking whether it is there.
#[unsafe(no_mangle)]
extern "C" fn cuGetExportTable(table: Out<*const c_void>, _id: *const c_void) -> Status {
    table.set_if_wanted(std::ptr::null());
    Code::NOT_FOUND.0
}
