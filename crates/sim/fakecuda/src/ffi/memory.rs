//! Allocations, copies and fills.

use std::ffi::{c_int, c_uchar, c_uint};

use super::abi::{Out, Status, in_context, stream};
use crate::{
    code::Code,
    host::HostRange,
    machine::Machine,
    queue::{NULL_STREAM, Task},
};

fn allocate(machine: &mut Machine, device: usize, address: Out<u64>, bytes: usize) -> Result<(), Code> {
    if bytes == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let allocated = machine.devices[device].memory.allocate(bytes as u64);
    address.set(allocated.map_err(|error| {
        eprintln!("gqla-fakecuda: device {device}: {error}");
        Code::OUT_OF_MEMORY
    })?)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) -> Status {
    in_context(|machine, device| allocate(machine, device, address, bytes))
}

/// The memory is there at once; that other streams may not touch it yet is not shown.
#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(address: Out<u64>, bytes: usize, handle: usize) -> Status {
    in_context(|machine, device| {
        stream(machine, device, handle)?;
        allocate(machine, device, address, bytes)
    })
}

/// Waits for all work, as a real driver does.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> Status {
    in_context(|machine, device| {
        machine.synchronize_all(device)?;
        machine.devices[device].memory.free(address).map_err(|_| Code::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        let state = &mut machine.devices[device];
        if !state.memory.contains(address, 1) {
            return Err(Code::INVALID_VALUE);
        }
        state.queues.push(stream, Task::Free(address));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Status {
    in_context(|machine, device| {
        let memory = &machine.devices[device].memory;
        free.set((memory.capacity() - memory.allocated()) as usize)?;
        total.set(memory.capacity() as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: Out<usize>, bytes: usize, _flags: c_uint) -> Status {
    in_context(|machine, _| address.set(machine.page_locked.allocate(bytes)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: usize) -> Status {
    in_context(|machine, _| machine.free_page_locked(address))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: usize, bytes: usize, handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        machine.copy_in(device, stream, to, HostRange::new(from, bytes)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) -> Status {
    in_context(|machine, device| {
        machine.copy_in(device, NULL_STREAM, to, HostRange::new(from, bytes)?)?;
        machine.synchronize(device, NULL_STREAM)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: usize, from: u64, bytes: usize, handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        machine.copy_out(device, stream, HostRange::new(to, bytes)?, from)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) -> Status {
    in_context(|machine, device| {
        machine.copy_out(device, NULL_STREAM, HostRange::new(to, bytes)?, from)?;
        machine.synchronize(device, NULL_STREAM)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        machine.copy_within(device, stream, to, from, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, bytes: usize, handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        machine.fill(device, stream, to, value, bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: c_uchar, bytes: usize) -> Status {
    in_context(|machine, device| machine.fill(device, NULL_STREAM, to, value, bytes))
}

/// Devices do not see each other's memory here.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceCanAccessPeer(can: Out<c_int>, _device: c_int, _peer: c_int) -> Status {
    in_context(|_, _| can.set(0))
}
