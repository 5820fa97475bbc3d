//! Modules, functions and launches.

use std::ffi::{c_int, c_uint, c_void};

use super::abi::{Out, ParamsIn, Status, TextIn, in_context, stream};
use crate::{code::Code, cubin::ptx_of, queue::Task};
use gqla_ptxsim::THREADS_PER_BLOCK;

/// First bytes of a cubin and of a fat binary.
const ELF: [u8; 4] = *b"\x7fELF";
const FAT_BINARY: [u8; 4] = [0x50, 0xed, 0x55, 0xba];

/// `CUfunction_attribute` by number.
const MAX_THREADS_PER_BLOCK: c_int = 0;
const SHARED_SIZE_BYTES: c_int = 1;
const LOCAL_SIZE_BYTES: c_int = 3;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
const PREFERRED_SHARED_MEMORY_CARVEOUT: c_int = 9;

/// Loads PTX, and cubins whose PTX is known. Other machine code is refused as on a GPU that it was not made for, so that a
/// program falls back to PTX.
#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: Out<usize>, image: TextIn) -> Status {
    in_context(|machine, device| {
        let (config, state) = (&machine.config, &mut machine.devices[device]);
        let architecture = state.architecture;
        module.set(if image.starts_with(&ELF) {
            let ptx = ptx_of(|cubin| image.starts_with(cubin), config.cubins.as_deref(), architecture)?;
            // A driver compiles nothing of a cubin, so which PTX it was made from does not matter.
            state.modules.load(&ptx, None, architecture)?
        } else if image.starts_with(&FAT_BINARY) {
            return Err(Code::NO_BINARY_FOR_GPU);
        } else {
            state.modules.load(image.get()?.to_bytes(), Some(config.newest_ptx()), architecture)?
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> Status {
    in_context(|machine, device| machine.devices[device].modules.unload(module))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(function: Out<usize>, module: usize, name: TextIn) -> Status {
    in_context(|machine, device| {
        let name = name.get()?.to_str().map_err(|_| Code::NOT_FOUND)?;
        function.set(machine.devices[device].modules.function(module, name)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> Status {
    in_context(|machine, device| {
        let state = &mut machine.devices[device];
        match attribute {
            MAX_DYNAMIC_SHARED_SIZE_BYTES => {
                let bytes = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
                state.modules.set_max_dynamic(function, bytes, state.architecture)
            }
            // A hint.
            PREFERRED_SHARED_MEMORY_CARVEOUT => state.modules.kernel(function).map(drop),
            _ => Err(Code::NOT_SUPPORTED),
        }
    })
}

/// Registers are ptxas's to tell, so they are refused.
#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: usize) -> Status {
    in_context(|machine, device| {
        let modules = &machine.devices[device].modules;
        let kernel = modules.kernel(function)?;
        let number = match attribute {
            MAX_THREADS_PER_BLOCK => kernel.max_threads.unwrap_or(THREADS_PER_BLOCK),
            SHARED_SIZE_BYTES => kernel.static_shared,
            LOCAL_SIZE_BYTES => kernel.local_bytes,
            MAX_DYNAMIC_SHARED_SIZE_BYTES => modules.max_dynamic(function)?,
            _ => return Err(Code::NOT_SUPPORTED),
        };
        value.set(number.cast_signed())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_shared: c_uint,
    handle: usize,
    params: ParamsIn,
    extra: *const c_void,
) -> Status {
    in_context(|machine, device| {
        if !extra.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let stream = stream(machine, device, handle)?;
        let state = &mut machine.devices[device];
        let kernel = state.modules.kernel(function)?;
        let places = kernel.params.iter().map(|param| (param.offset as usize, param.bytes as usize));
        let params = params.get(places, kernel.param_bytes() as usize)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let prepared =
            state.modules.prepare(function, grid, block, dynamic_shared, params, state.architecture)?;
        state.queues.push(stream, Task::Launch(prepared.into()));
        Ok(())
    })
}
