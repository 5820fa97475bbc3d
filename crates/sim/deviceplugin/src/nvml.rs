//! Looks at the driver once a second, through NVML, on a thread of its own: a driver that hangs must not keep
//! the kubelet waiting.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};
use tokio::sync::watch;

use crate::devices::{Devices, Sighting, after_look};
use crate::driver::Driver;

const PERIOD: Duration = Duration::from_secs(1);
/// XIDs taken from one GPU in one look; more of them wait for the next.
const XIDS_PER_LOOK: usize = 64;
/// What NVML calls an XID that it has no number for.
const UNKNOWN_XID: u64 = 999;

/// Starts to look. The thread ends soon after the last receiver is dropped.
///
/// # Errors
/// What the system says when there is no thread to be had.
pub fn watch(driver: Driver) -> std::io::Result<watch::Receiver<Devices>> {
    let (sender, receiver) = watch::channel(Devices::new());
    std::thread::Builder::new().name("nvml".to_owned()).spawn(move || run(&driver.nvml(), &sender))?;
    Ok(receiver)
}

fn run(library: &Path, sender: &watch::Sender<Devices>) {
    let mut said = String::new();
    while !sender.is_closed() {
        let opened = Nvml::builder().lib_path(library.as_os_str()).init();
        let outcome = opened.and_then(|nvml| {
            said.clear();
            observe(&nvml, library, sender)
        });
        publish(sender, &[]);
        let reason = outcome.map_or_else(|error| error.to_string(), |()| "it was removed".to_owned());
        if reason != said {
            tracing::warn!(library = %library.display(), reason, "no driver; its GPUs are unhealthy until there is one");
            said = reason;
        }
        std::thread::sleep(PERIOD);
    }
}

/// Looks until nobody wants to know or the library is gone.
fn observe(nvml: &Nvml, library: &Path, sender: &watch::Sender<Devices>) -> Result<(), NvmlError> {
    let mut events = BTreeMap::new();
    while !sender.is_closed() && library.exists() {
        publish(sender, &look(nvml, &mut events)?);
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

/// Tells the kubelet's side what is new.
fn publish(sender: &watch::Sender<Devices>, seen: &[Sighting]) {
    sender.send_if_modified(|devices| {
        let now = after_look(devices, seen);
        for (uuid, fault) in &now {
            match fault {
                _ if devices.get(uuid) == Some(fault) => {}
                Some(fault) => tracing::warn!(uuid, %fault, "GPU is unhealthy"),
                None => tracing::info!(uuid, "GPU is healthy"),
            }
        }
        let changed = *devices != now;
        *devices = now;
        changed
    });
}

/// The GPUs that answer. `events` holds an event set for each of them: one set for all would be lost with the
/// first GPU that can't be registered. A GPU that comes back needs a new one.
fn look<'nvml>(
    nvml: &'nvml Nvml,
    events: &mut BTreeMap<String, EventSet<'nvml>>,
) -> Result<Vec<Sighting>, NvmlError> {
    let mut seen = vec![];
    for index in 0..nvml.device_count()? {
        let Some((uuid, device)) = answering(nvml, index) else { continue };
        if !events.contains_key(&uuid) {
            events.extend(xid_events(nvml, &device).map(|set| (uuid.clone(), set)));
        }
        seen.push(Sighting { xids: events.get(&uuid).map(raised).unwrap_or_default(), uuid });
    }
    events.retain(|uuid, _| seen.iter().any(|sighting| sighting.uuid == *uuid));
    Ok(seen)
}

/// A GPU that has fallen off the bus keeps its index. The driver may know its UUID by heart, so something is
/// asked that only the GPU knows.
fn answering(nvml: &Nvml, index: u32) -> Option<(String, Device<'_>)> {
    let device = nvml.device_by_index(index).ok()?;
    device.memory_info().ok()?;
    Some((device.uuid().ok()?, device))
}

/// `None` where the driver has no events; the GPU's XIDs stay unknown then.
fn xid_events<'nvml>(nvml: &'nvml Nvml, device: &Device<'nvml>) -> Option<EventSet<'nvml>> {
    let registered = device.register_events(EventTypes::CRITICAL_XID_ERROR, nvml.create_event_set().ok()?);
    registered.inspect_err(|error| tracing::warn!(%error, "XIDs of a GPU can't be watched")).ok()
}

/// The XIDs that wait in `set`.
fn raised(set: &EventSet<'_>) -> Vec<u64> {
    let next = |_| set.wait(0).ok()?.event_data;
    let number = |xid| match xid {
        XidError::Value(xid) => xid,
        XidError::Unknown => UNKNOWN_XID,
    };
    (0..XIDS_PER_LOOK).map_while(next).map(number).collect()
}
