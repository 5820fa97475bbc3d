//! What all exported functions share: out-pointers, handles, and the order in which a call is refused.

use std::{
    ffi::{CStr, c_char, c_uint},
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::{self as nvml, nvmlDevice_t, nvmlReturn_t};

use crate::{
    profiles::{MigProfile, Profile, profile},
    state::{Failure, Gpu, State},
    store::library,
};

/// A refusal: any `nvmlReturn_t` but success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub nvmlReturn_t);

pub(super) const INVALID: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
pub(super) const NOT_FOUND: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
pub(super) const NOT_SUPPORTED: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
pub(super) const LOST: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
pub(super) const TIMEOUT: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_TIMEOUT);
const TOO_SMALL: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
const UNINITIALISED: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED);
const NOT_LOADED: Code = Code(nvml::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED);

/// How often a sleeping call looks whether it still has to sleep.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// Where a caller wants one `T`. Rust code cannot make one: they come through the C ABI only, whose contract is that
/// the pointer is null or good for writing.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub fn set(self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null, so the C caller vouches for it (see the type); `write` drops nothing that was there.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

/// Values that a caller hands in to be filled, `count` of them.
#[repr(transparent)]
pub(super) struct Values<T>(*mut T);

impl<T: Copy> Values<T> {
    pub fn update(self, count: usize, update: impl Fn(T) -> T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null, so the C caller vouches for `count` initialised values that nobody else uses meanwhile.
        let values = unsafe { std::slice::from_raw_parts_mut(self.0, count) };
        values.iter_mut().for_each(|value| *value = update(*value));
        Ok(())
    }
}

/// Where a caller wants a text, in a buffer whose length comes with it.
#[repr(transparent)]
pub(super) struct TextOut(*mut c_char);

impl TextOut {
    pub fn set(self, length: c_uint, text: &str) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        if text.len() >= length as usize {
            return Err(TOO_SMALL);
        }
        // SAFETY: not null, so the C caller vouches for `length` bytes, which are more than the text's and its NUL.
        unsafe {
            ptr::copy_nonoverlapping(text.as_ptr().cast(), self.0, text.len());
            self.0.add(text.len()).write(0);
        }
        Ok(())
    }
}

/// A text from a caller.
#[repr(transparent)]
pub(super) struct TextIn(*const c_char);

impl TextIn {
    pub fn get(&self) -> Result<&str, Code> {
        if self.0.is_null() {
            return Err(INVALID);
        }
        // SAFETY: not null, so the C caller vouches for a C string that lives through the call.
        unsafe { CStr::from_ptr(self.0) }.to_str().map_err(|_| INVALID)
    }
}

/// Text of a structure's fixed field; what does not fit is cut.
pub(super) fn field<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().take(N - 1).zip(text.bytes()) {
        *to = from.cast_signed();
    }
    field
}

/// What a device handle stands for. Handles are numbers in the shape of pointers, and are never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    Gpu(usize),
    Slice(usize, usize),
}

const SLICE_SHIFT: u32 = 16;

impl Device {
    pub fn handle(self) -> nvmlDevice_t {
        let number = match self {
            Self::Gpu(gpu) => gpu + 1,
            Self::Slice(gpu, slice) => (gpu + 1) | (slice + 1) << SLICE_SHIFT,
        };
        ptr::without_provenance_mut(number)
    }

    pub fn of(handle: nvmlDevice_t) -> Result<Self, Code> {
        let (gpu, slice) = (handle.addr() & ((1 << SLICE_SHIFT) - 1), handle.addr() >> SLICE_SHIFT);
        let gpu = gpu.checked_sub(1).ok_or(INVALID)?;
        Ok(slice.checked_sub(1).map_or(Self::Gpu(gpu), |slice| Self::Slice(gpu, slice)))
    }

    /// The whole GPU it is, or is a part of.
    pub fn gpu(self) -> usize {
        match self {
            Self::Gpu(gpu) | Self::Slice(gpu, _) => gpu,
        }
    }
}

/// One GPU of the machine and what its model is like.
pub(super) struct Card<'a> {
    pub index: usize,
    pub gpu: &'a Gpu,
    pub profile: &'static Profile,
}

impl<'a> Card<'a> {
    /// The GPU at `index`, unless it is lost or fails.
    pub fn at(machine: &'a State, index: usize) -> Result<Self, Code> {
        let gpu = machine.gpus.get(index).ok_or(INVALID)?;
        let profile = profile(&gpu.profile).ok_or(INVALID)?;
        match gpu.failure {
            _ if gpu.lost => Err(LOST),
            Some(failure) => Err(code(failure)),
            None => Ok(Self { index, gpu, profile }),
        }
    }

    pub fn uuid(&self) -> String {
        self.gpu.uuid.clone().unwrap_or_else(|| {
            format!("GPU-{:04x}{:04x}-fa4e-4020-8000-000000000000", self.profile.pci_device_id, self.index)
        })
    }

    pub fn bus_id(&self) -> String {
        format!("00000000:{:02X}:00.0", bus(self.index))
    }

    /// The slice at `index` and its profile.
    pub fn slice(&self, index: usize) -> Result<&'static MigProfile, Code> {
        let name = self.gpu.mig.as_ref().and_then(|slices| slices.get(index)).ok_or(NOT_FOUND)?;
        self.profile.mig.iter().find(|profile| profile.profile == *name).ok_or(NOT_FOUND)
    }
}

/// Buses below are the board's own.
pub(super) fn bus(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX).saturating_add(0x18)
}

/// Answers one call to an initialised library.
pub(super) fn answer(act: impl FnOnce(&State) -> Result<(), Code>) -> nvmlReturn_t {
    let answered = ready().and_then(|machine| act(&machine));
    answered.err().map_or(nvml::nvmlReturn_enum_NVML_SUCCESS, |code| code.0)
}

/// Answers one call about a whole GPU.
pub(super) fn on_card(handle: nvmlDevice_t, act: impl FnOnce(&Card) -> Result<(), Code>) -> nvmlReturn_t {
    answer(|machine| match Device::of(handle)? {
        Device::Gpu(index) => act(&Card::at(machine, index)?),
        Device::Slice(..) => Err(NOT_SUPPORTED),
    })
}

/// The machine, once a hanging driver lets go, if the library is initialised and the driver works.
pub(super) fn ready() -> Result<Arc<State>, Code> {
    let machine = awake()?;
    if library().initialised == 0 { Err(UNINITIALISED) } else { Ok(machine) }
}

/// As [`ready`], for calls that need no initialisation.
pub(super) fn awake() -> Result<Arc<State>, Code> {
    let start = Instant::now();
    loop {
        let machine = library().machine().ok_or(NOT_LOADED)?;
        if start.elapsed().as_secs_f64() >= machine.hang_seconds {
            return match machine.failure {
                Some(failure) => Err(code(failure)),
                None => Ok(machine),
            };
        }
        std::thread::sleep(POLL);
    }
}

fn code(failure: Failure) -> Code {
    match failure {
        Failure::DriverNotLoaded => NOT_LOADED,
        Failure::NoPermission => Code(nvml::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION),
        Failure::VersionMismatch => Code(nvml::nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH),
        Failure::Unknown => Code(nvml::nvmlReturn_enum_NVML_ERROR_UNKNOWN),
    }
}
