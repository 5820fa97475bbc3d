//! Streams and events.

use std::ffi::{c_int, c_uint};

use super::abi::{Out, Status, in_context, stream};
use crate::{code::Code, machine::Machine};

/// `CU_STREAM_NON_BLOCKING`
const NON_BLOCKING: c_uint = 1;

/// Streams that wait for the null stream by themselves are not modelled, and so are refused.
fn create(machine: &mut Machine, device: usize, handle: Out<usize>, flags: c_uint) -> Result<(), Code> {
    if flags != NON_BLOCKING {
        return Err(Code::NOT_SUPPORTED);
    }
    handle.set(machine.devices[device].queues.create_stream())
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(handle: Out<usize>, flags: c_uint) -> Status {
    in_context(|machine, device| create(machine, device, handle, flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(handle: Out<usize>, flags: c_uint, _priority: c_int) -> Status {
    in_context(|machine, device| create(machine, device, handle, flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(handle: usize) -> Status {
    in_context(|machine, device| {
        let destroyed = machine.devices[device].queues.destroy_stream(handle);
        destroyed.then_some(()).ok_or(Code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        machine.synchronize(device, stream)
    })
}

/// Gets the stream on by one piece of work, so that a program that asks again and again comes to an end.
#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        let busy = !machine.devices[device].queues.is_idle(stream);
        if busy && machine.advance(device, stream)? { Err(Code::NOT_READY) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(handle: usize, event: usize, _flags: c_uint) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        let queues = &mut machine.devices[device].queues;
        if !queues.is_event(event) {
            return Err(Code::INVALID_HANDLE);
        }
        queues.wait(stream, event);
        Ok(())
    })
}

/// Graphs are not modelled, so no stream is ever being captured.
#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(handle: usize, capturing: Out<c_int>) -> Status {
    in_context(|machine, device| {
        stream(machine, device, handle)?;
        capturing.set(0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(handle: Out<usize>, _flags: c_uint) -> Status {
    in_context(|machine, device| handle.set(machine.devices[device].queues.create_event()))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> Status {
    in_context(|machine, device| {
        machine.devices[device].queues.destroy_event(event).then_some(()).ok_or(Code::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, handle: usize) -> Status {
    in_context(|machine, device| {
        let stream = stream(machine, device, handle)?;
        let queues = &mut machine.devices[device].queues;
        if !queues.is_event(event) {
            return Err(Code::INVALID_HANDLE);
        }
        queues.record(event, stream);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> Status {
    in_context(|machine, device| {
        while !machine.devices[device].queues.is_reached(event) {
            let stream = machine.devices[device].queues.stream_of(event);
            machine.advance(device, stream)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: usize) -> Status {
    in_context(|machine, device| {
        if machine.devices[device].queues.is_reached(event) {
            return Ok(());
        }
        let stream = machine.devices[device].queues.stream_of(event);
        machine.advance(device, stream)?;
        Err(Code::NOT_READY)
    })
}
