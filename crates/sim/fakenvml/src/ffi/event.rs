//! Events: a growing list in the state file becomes a queue, so that nothing is told twice or missed.

use std::{
    ffi::{c_uint, c_ulonglong},
    ptr,
    time::{Duration, Instant},
};

use nvml_wrapper_sys::bindings::{self as nvml, nvmlDevice_t, nvmlEventSet_t, nvmlReturn_t};

use super::abi::{Code, Device, INVALID, LOST, NOT_SUPPORTED, Out, POLL, TIMEOUT, answer, on_card, ready};
use crate::{
    state::{Gpu, State},
    store::{Registration, library},
};

const XID: u64 = nvml::nvmlEventTypeXidCriticalError as u64;
const DOUBLE_BIT: u64 = nvml::nvmlEventTypeDoubleBitEccError as u64;
const SINGLE_BIT: u64 = nvml::nvmlEventTypeSingleBitEccError as u64;
const SUPPORTED: u64 = XID | DOUBLE_BIT | SINGLE_BIT;

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetCreate(set: Out<nvmlEventSet_t>) -> nvmlReturn_t {
    answer(|_| {
        let mut library = library();
        library.next_set += 1;
        let number = library.next_set;
        library.sets.insert(number, Vec::new());
        set.set(ptr::without_provenance_mut(number))
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    match library().sets.remove(&set.addr()) {
        Some(_) => nvml::nvmlReturn_enum_NVML_SUCCESS,
        None => INVALID.0,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    types: Out<c_ulonglong>,
) -> nvmlReturn_t {
    on_card(device, |_| types.set(SUPPORTED))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    on_card(device, |card| {
        if types & !SUPPORTED != 0 {
            return Err(NOT_SUPPORTED);
        }
        let registration = Registration {
            gpu: card.index,
            types,
            xids: card.gpu.xids.len(),
            double_bit_errors: card.gpu.double_bit_errors,
            lost: false,
        };
        library().sets.get_mut(&set.addr()).ok_or(INVALID)?.push(registration);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: Out<nvml::nvmlEventData_t>,
    timeout: c_uint,
) -> nvmlReturn_t {
    match wait(set.addr(), Duration::from_millis(timeout.into())).and_then(|event| data.set(event)) {
        Ok(()) => nvml::nvmlReturn_enum_NVML_SUCCESS,
        Err(code) => code.0,
    }
}

fn wait(set: usize, timeout: Duration) -> Result<nvml::nvmlEventData_t, Code> {
    let start = Instant::now();
    loop {
        let machine = ready()?;
        let told = {
            let mut library = library();
            let registrations = library.sets.get_mut(&set).ok_or(INVALID)?;
            registrations.iter_mut().find_map(|registration| registration.next(&machine))
        };
        match told {
            Some(told) => return told,
            None if start.elapsed() >= timeout => return Err(TIMEOUT),
            None => std::thread::sleep(POLL),
        }
    }
}

impl Registration {
    /// What happened on this GPU and was not told yet.
    fn next(&mut self, machine: &State) -> Option<Result<nvml::nvmlEventData_t, Code>> {
        let gpu = machine.gpus.get(self.gpu)?;
        if self.lost {
            return None;
        }
        self.forget(gpu);
        if self.types & XID != 0
            && let Some(xid) = gpu.xids.get(self.xids)
        {
            self.xids += 1;
            return Some(Ok(event(self.gpu, XID, *xid)));
        }
        if self.types & DOUBLE_BIT != 0 && gpu.double_bit_errors > self.double_bit_errors {
            self.double_bit_errors += 1;
            return Some(Ok(event(self.gpu, DOUBLE_BIT, 0)));
        }
        if gpu.lost {
            self.lost = true;
            return Some(Err(LOST));
        }
        None
    }

    /// A state that was written anew may have a shorter past.
    fn forget(&mut self, gpu: &Gpu) {
        self.xids = self.xids.min(gpu.xids.len());
        self.double_bit_errors = self.double_bit_errors.min(gpu.double_bit_errors);
    }
}

fn event(gpu: usize, kind: u64, data: u64) -> nvml::nvmlEventData_t {
    nvml::nvmlEventData_t {
        device: Device::Gpu(gpu).handle(),
        eventType: kind,
        eventData: data,
        gpuInstanceId: u32::MAX,
        computeInstanceId: u32::MAX,
    }
}
