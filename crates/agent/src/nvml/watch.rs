//! The one thread that talks to the driver. A call may never come back, so nobody waits for it but here.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use nvml_wrapper::{
    EventSet, Nvml, bitmasks::event::EventTypes, enums::event::XidError, error::NvmlError,
    struct_wrappers::event::EventData,
};
use tokio::sync::mpsc::Sender;

use super::{
    Search,
    read::{LinkEnds, read},
};
use crate::facts::{Event, Facts, GpuError, GpuReading, Reading, Refusal};

/// Events taken in before the GPUs are read again, so that a flood of them does not keep the thread from it.
const MOST_EVENTS: usize = 64;
/// The driver's number for an XID it has no number for.
const UNKNOWN_XID: u32 = 999;

/// What the thread says.
#[derive(Clone, Debug)]
pub enum Message {
    /// It calls the driver now.
    Asking,
    /// The driver answered, or refused.
    Answered(Answer),
}

/// The outcome of one pass.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was read.
    pub reading: Reading,
    /// What GPUs reported since the pass before.
    pub events: Vec<Event>,
    /// How long the driver took.
    pub took: Duration,
}

/// Reads the GPUs every `period`, and at once when one reports an error, until nobody listens any more.
///
/// # Errors
/// When no thread can be started.
pub fn watch(search: Search, period: Duration, messages: Sender<Message>) -> std::io::Result<()> {
    thread::Builder::new().name("nvml".to_owned()).spawn(move || {
        let mut ended = false;
        while !ended {
            ended = session(&search, period, &messages).is_none();
        }
    })?;
    Ok(())
}

/// From opening the driver to its refusal. `None` when nobody listens any more.
fn session(search: &Search, period: Duration, messages: &Sender<Message>) -> Option<()> {
    messages.blocking_send(Message::Asking).ok()?;
    let start = Instant::now();
    let (refused, events) = match search.open() {
        Ok(nvml) => passes(&nvml, period, messages)?,
        Err(refused) => (refused, Vec::new()),
    };
    send(messages, Reading::Refused(refused), events, start)?;
    thread::sleep(period);
    Some(())
}

/// Passes until the driver refuses one; with the refusal come the events before it.
fn passes(nvml: &Nvml, period: Duration, messages: &Sender<Message>) -> Option<(Refusal, Vec<Event>)> {
    let (mut links, mut events, mut lost) = (LinkEnds::new(), Vec::new(), BTreeSet::new());
    let mut set = listen(nvml);
    loop {
        messages.blocking_send(Message::Asking).ok()?;
        let start = Instant::now();
        let facts = match read(nvml, &mut links) {
            Ok(facts) => facts,
            Err(refused) => return Some((refused, events)),
        };
        let lost_now = lost_gpus(&facts);
        // The driver tells an event set nothing of a GPU that was gone since it registered.
        let regained = !lost.is_subset(&lost_now);
        lost = lost_now;
        send(messages, Reading::Answered(facts), events, start)?;
        events = Vec::new();
        if regained {
            drain(set.as_ref(), &mut events);
            set = listen(nvml);
        }
        events.extend(rest(set.as_ref(), period));
    }
}

fn lost_gpus(facts: &Facts) -> BTreeSet<usize> {
    let lost = facts.gpus.iter().enumerate().filter(|(_, gpu)| **gpu == GpuReading::Lost);
    lost.map(|(index, _)| index).collect()
}

fn send(messages: &Sender<Message>, reading: Reading, events: Vec<Event>, start: Instant) -> Option<()> {
    let answer = Answer { reading, events, took: start.elapsed() };
    messages.blocking_send(Message::Answered(answer)).ok()
}

/// An event set of all GPUs that report errors. Registering one that cannot costs the whole set, so it starts anew without.
fn listen(nvml: &Nvml) -> Option<EventSet<'_>> {
    let mut gpus: Vec<u32> = (0..nvml.device_count().ok()?).collect();
    loop {
        match register(nvml, &gpus) {
            Ok(set) => return Some(set),
            Err((Some(gpu), error)) => {
                tracing::warn!(gpu, %error, "this GPU's errors are seen only as often as it is read");
                gpus.retain(|other| *other != gpu);
            }
            Err((None, error)) => {
                tracing::warn!(%error, "the driver has no events; errors are seen only as often as GPUs are read");
                return None;
            }
        }
    }
}

/// Registers these GPUs. An error comes with the GPU it is about.
fn register<'nvml>(nvml: &'nvml Nvml, gpus: &[u32]) -> Result<EventSet<'nvml>, (Option<u32>, NvmlError)> {
    let wanted = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    let mut set = nvml.create_event_set().map_err(|error| (None, error))?;
    for gpu in gpus {
        let of_gpu = |error| (Some(*gpu), error);
        let device = nvml.device_by_index(*gpu).map_err(of_gpu)?;
        let types = device.supported_event_types().map_err(of_gpu)? & wanted;
        if !types.is_empty() {
            set = device.register_events(types, set).map_err(|error| of_gpu(error.error))?;
        }
    }
    Ok(set)
}

/// Waits out the period, or less when a GPU reports an error.
fn rest(set: Option<&EventSet>, period: Duration) -> Vec<Event> {
    let start = Instant::now();
    // Errors come in bursts; reading after each one would do nothing else.
    thread::sleep(period / 20);
    let left = period.saturating_sub(start.elapsed());
    let mut events = Vec::new();
    match set.map(|set| set.wait(u32::try_from(left.as_millis()).unwrap_or(u32::MAX))) {
        Some(Ok(first)) => events.extend(event(&first)),
        // Also when the wait itself fails, which a lost GPU makes it do at once, again and again.
        Some(Err(_)) | None => thread::sleep(period.saturating_sub(start.elapsed())),
    }
    if !events.is_empty() {
        drain(set, &mut events);
    }
    events
}

/// Takes in what is waiting.
fn drain(set: Option<&EventSet>, events: &mut Vec<Event>) {
    while let Some(Ok(next)) = set.map(|set| set.wait(0)) {
        events.extend(event(&next));
        if events.len() >= MOST_EVENTS {
            break;
        }
    }
}

fn event(told: &EventData) -> Option<Event> {
    let error = match told.event_data {
        Some(XidError::Value(xid)) => GpuError::Xid(u32::try_from(xid).unwrap_or(UNKNOWN_XID)),
        Some(XidError::Unknown) => GpuError::Xid(UNKNOWN_XID),
        None if told.event_type.contains(EventTypes::DOUBLE_BIT_ECC_ERROR) => GpuError::DoubleBit,
        None => return None,
    };
    Some(Event { gpu: told.device.index().ok(), error })
}
