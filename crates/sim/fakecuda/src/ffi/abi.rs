//! What all exported functions share: out-pointers, handles, and the order in which a call is refused.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int, c_void},
};

use crate::{
    code::Code,
    machine::{Machine, machine},
    queue::{NULL_STREAM, StreamId},
};

/// `CUresult`.
pub(super) type Status = c_int;

/// Where a caller wants one `T`. Rust code cannot make one: they come through the C ABI only, whose contract is that
/// the pointer is null or good for writing.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub fn set(self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, so the C caller vouches for it (see the type); `write` drops nothing that was there.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// As [`Self::set`], for callers that may not want it.
    pub fn set_if_wanted(self, value: T) {
        // A null pointer is the only refusal, and here an answer.
        let _ = self.set(value);
    }
}

/// One `T` from a caller.
#[repr(transparent)]
pub(super) struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub fn get(&self) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, so the C caller vouches for it; C has no alignment to promise for what hides behind `void`.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// The same place, as another type.
    pub fn of<U: Copy>(&self) -> In<U> {
        In(self.0.cast())
    }
}

/// Where a caller wants a text, in a buffer whose length comes with it.
#[repr(transparent)]
pub(super) struct TextOut(*mut c_char);

impl TextOut {
    /// Puts the text and a NUL there; what does not fit is cut, as CUDA does.
    pub fn set(self, length: c_int, text: &str) -> Result<(), Code> {
        let room = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(1))
            .ok_or(Code::INVALID_VALUE)?;
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let bytes = text.len().min(room);
        // SAFETY: not null, so the C caller vouches for `length` bytes, which are more than `bytes` and the NUL.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), self.0, bytes);
            self.0.add(bytes).write(0);
        }
        Ok(())
    }
}

/// A text from a caller, or an image of which he says no length.
#[repr(transparent)]
pub(super) struct TextIn(*const c_char);

impl TextIn {
    pub fn get(&self) -> Result<&CStr, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, so the C caller vouches for a C string that lives through the call.
        Ok(unsafe { CStr::from_ptr(self.0) })
    }

    /// Whether an image begins so.
    pub fn starts_with(&self, bytes: &[u8]) -> bool {
        let equal = |(i, byte): (usize, &u8)| {
            // SAFETY: not null, and read one by one up to the first that differs. A text's NUL does, since the magic numbers that
            // texts are compared with have none; whose image has an ELF's vouches for all that is in one.
            unsafe { self.0.add(i).read() }.cast_unsigned() == *byte
        };
        !self.0.is_null() && bytes.iter().enumerate().all(equal)
    }
}

/// A kernel's parameters: one pointer to each, of sizes that the kernel knows.
#[repr(transparent)]
pub(super) struct ParamsIn(*const *const c_void);

impl ParamsIn {
    /// Copies parameters of (offset, bytes) into `total` bytes.
    pub fn get(&self, places: impl Iterator<Item = (usize, usize)>, total: usize) -> Result<Vec<u8>, Code> {
        let mut params = vec![0u8; total];
        for (index, (offset, bytes)) in places.enumerate() {
            if self.0.is_null() {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: not null, so the C caller vouches for as many pointers as the kernel has parameters.
            let from = unsafe { self.0.add(index).read() };
            if from.is_null() {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: and for `bytes` behind each; `params` is our own.
            let value = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
            params[offset..offset + bytes].copy_from_slice(value);
        }
        Ok(params)
    }
}

thread_local! {
    /// The calling thread's current context.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Contexts are numbers in the shape of pointers, and are never followed.
const CONTEXT_STEP: usize = 0x100;

pub(super) fn context_of(device: usize) -> usize {
    (device + 1) * CONTEXT_STEP
}

fn device_of(context: usize, machine: &Machine) -> Result<usize, Code> {
    let device = (context / CONTEXT_STEP).checked_sub(1).filter(|_| context.is_multiple_of(CONTEXT_STEP));
    let known = |device: &usize| machine.devices.get(*device).is_some_and(|device| device.retained > 0);
    device.filter(known).ok_or(Code::INVALID_CONTEXT)
}

pub(super) fn current() -> usize {
    CURRENT.get()
}

/// Makes `context` the thread's own; 0 for none.
pub(super) fn set_current(machine: &Machine, context: usize) -> Result<(), Code> {
    if context != 0 {
        device_of(context, machine)?;
    }
    CURRENT.set(context);
    Ok(())
}

/// The stream that a handle means. The legacy and the per-thread stream count as the null stream.
pub(super) fn stream(machine: &Machine, device: usize, handle: usize) -> Result<StreamId, Code> {
    let stream = if handle <= 2 { NULL_STREAM } else { handle };
    machine.devices[device].queues.is_stream(stream).then_some(stream).ok_or(Code::INVALID_HANDLE)
}

pub(super) fn status(result: Result<(), Code>) -> Status {
    result.err().map_or(0, |code| code.0)
}

/// Answers one call, once `cuInit` was called.
pub(super) fn answer(act: impl FnOnce(&mut Machine) -> Result<(), Code>) -> Status {
    status(machine().as_mut().ok_or(Code::NOT_INITIALIZED).and_then(act))
}

/// Answers one call about a device by number.
pub(super) fn on_device(device: c_int, act: impl FnOnce(&mut Machine, usize) -> Result<(), Code>) -> Status {
    answer(|machine| {
        let index = usize::try_from(device).ok().filter(|index| *index < machine.devices.len());
        act(machine, index.ok_or(Code::INVALID_DEVICE)?)
    })
}

/// Answers one call in the current context, unless that is broken.
pub(super) fn in_context(act: impl FnOnce(&mut Machine, usize) -> Result<(), Code>) -> Status {
    answer(|machine| {
        let device = device_of(current(), machine)?;
        machine.devices[device].broken.map_or(Ok(()), Err)?;
        act(machine, device)
    })
}
