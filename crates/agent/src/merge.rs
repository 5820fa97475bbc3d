//! What the node is now, from what it was and what NVML said: pure, so that every way a driver can misbehave is a row
//! of a table.

use std::collections::{BTreeMap, BTreeSet};

use gqla_api::inventory::{DriverState, GpuFacts, GpuHealth, MAX_GPUS, MigSlices, NodeInventory};

use crate::facts::{
    Event, Facts, GpuError, GpuReading, OLDEST_CUDA, Reading, Refusal, Seen, cuda_version, multiprocessors,
    nvlink_peers,
};

/// XIDs that a program causes to itself: the GPU goes on. The list is that of NVIDIA's device plugin.
const APPLICATION_XIDS: [u32; 6] = [13, 31, 43, 45, 68, 109];
/// Longest text that readers of an inventory accept.
const LONGEST_TEXT: usize = 512;

/// Errors that GPUs reported since the driver was loaded and that only a reset ends, by index.
///
/// A reset needs every user of the driver stopped, this agent too. So an agent that starts knows of no errors, and one
/// that saw the driver gone, or sees a lost GPU answer again, forgets them. A driver that only refused goes on with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    xids: BTreeMap<u32, u32>,
    memory: BTreeSet<u32>,
}

impl Faults {
    /// Takes in what GPUs `reported` until `reading`, and forgets what a reset ended.
    pub fn follow(&mut self, before: &NodeInventory, reading: &Reading, reported: &[(u32, GpuError)]) {
        match reading {
            Reading::Refused(Refusal { state: DriverState::Missing, .. }) => return *self = Self::default(),
            Reading::Refused(_) => {}
            Reading::Answered(facts) => self.forget_reset(before, facts),
        }
        reported.iter().for_each(|(gpu, error)| self.note(*gpu, *error));
    }

    /// Notes one event. The first XID stays: those that follow are mostly its consequence, and each change is a write.
    fn note(&mut self, gpu: u32, error: GpuError) {
        match error {
            GpuError::Xid(xid) if APPLICATION_XIDS.contains(&xid) => {}
            GpuError::Xid(xid) => {
                self.xids.entry(gpu).or_insert(xid);
            }
            GpuError::DoubleBit => {
                self.memory.insert(gpu);
            }
        }
    }

    /// Forgets the errors of GPUs that were lost in `before` and answer now: something reset them.
    fn forget_reset(&mut self, before: &NodeInventory, facts: &Facts) {
        for (index, gpu) in (0..).zip(&facts.gpus) {
            let was_lost = |old: &&GpuFacts| old.index == index && old.health == GpuHealth::Lost;
            if matches!(gpu, GpuReading::Seen(_)) && before.gpus.iter().any(|old| was_lost(&old)) {
                self.xids.remove(&index);
                self.memory.remove(&index);
            }
        }
    }

    fn health(&self, index: u32, bad_memory: bool) -> GpuHealth {
        match self.xids.get(&index) {
            Some(xid) => GpuHealth::Xid(*xid),
            None if bad_memory || self.memory.contains(&index) => GpuHealth::Ecc,
            None => GpuHealth::Healthy,
        }
    }
}

/// The GPU of every event. One that could not be asked who it is belongs to the GPUs that `reading` finds newly lost; when
/// there are none, it is nobody's.
pub fn attribute(
    events: &[Event],
    before: &NodeInventory,
    reading: &Reading,
) -> Vec<(Option<u32>, GpuError)> {
    let was_lost =
        |index: u32| before.gpus.iter().any(|old| old.index == index && old.health == GpuHealth::Lost);
    let gpus = match reading {
        Reading::Answered(facts) => &facts.gpus[..],
        Reading::Refused(_) => &[],
    };
    let lost = (0..).zip(gpus).filter(|(_, gpu)| matches!(gpu, GpuReading::Lost));
    let newly_lost: Vec<Option<u32>> =
        lost.map(|(index, _)| index).filter(|index| !was_lost(*index)).map(Some).collect();
    let owners = |event: &Event| match event.gpu {
        None if !newly_lost.is_empty() => newly_lost.clone(),
        gpu => vec![gpu],
    };
    events.iter().flat_map(|event| owners(event).into_iter().map(|gpu| (gpu, event.error))).collect()
}

/// What the node is at `now` (RFC 3339), given what it was.
///
/// A driver that does not answer leaves the GPUs as they were last seen; a GPU that does not answer keeps its details and
/// is `Lost`. A GPU the driver no longer lists is `Lost` as well, listed last, unless another one took its place, or the
/// driver lists GPUs of other kinds only: the machine was rebuilt.
pub fn merge(before: &NodeInventory, reading: &Reading, faults: &Faults, now: &str) -> NodeInventory {
    let mut merged = match reading {
        Reading::Answered(facts) => answered(before, facts, faults),
        Reading::Refused(Refusal { state, message }) => {
            NodeInventory { driver: *state, message: Some(bounded(message)), ..before.clone() }
        }
    };
    let lasts = merged.driver == before.driver && !before.since.is_empty();
    merged.since = if lasts { before.since.clone() } else { now.to_owned() };
    merged
}

/// `current`, with what only the Node still knew: `stored` was written by an agent before this one.
pub fn adopt(stored: &NodeInventory, current: NodeInventory) -> NodeInventory {
    let lasts = stored.driver == current.driver && !stored.since.is_empty();
    let answers = matches!(current.driver, DriverState::Ready | DriverState::TooOld);
    let unseen = !answers && current.gpus.is_empty();
    NodeInventory {
        since: if lasts { stored.since.clone() } else { current.since },
        driver_version: current.driver_version.or_else(|| stored.driver_version.clone()),
        cuda_version: current.cuda_version.or_else(|| stored.cuda_version.clone()),
        gpus: if unseen {
            stored.gpus.clone()
        } else {
            with_absent(&stored.gpus, identified(&stored.gpus, current.gpus))
        },
        ..current
    }
}

fn answered(before: &NodeInventory, facts: &Facts, faults: &Faults) -> NodeInventory {
    let too_old = facts.cuda_driver < OLDEST_CUDA;
    let cuda = cuda_version(facts.cuda_driver);
    let message = too_old.then(|| {
        format!(
            "driver {} runs CUDA {cuda}, at least {} is needed; upgrade the NVIDIA driver",
            facts.driver_version,
            cuda_version(OLDEST_CUDA)
        )
    });
    let driver = if too_old { DriverState::TooOld } else { DriverState::Ready };
    let listed = (0..).zip(&facts.gpus).take(MAX_GPUS);
    let mut gpus: Vec<GpuFacts> = listed
        .map(|(index, gpu)| match gpu {
            GpuReading::Seen(seen) => concluded(seen, index, faults),
            GpuReading::Lost => GpuFacts { index, health: GpuHealth::Lost, ..GpuFacts::default() },
        })
        .collect();
    connect(&mut gpus, &facts.gpus);
    NodeInventory {
        driver,
        since: String::new(),
        message: message.as_deref().map(bounded),
        driver_version: Some(bounded(&facts.driver_version)),
        cuda_version: Some(cuda),
        gpus: with_absent(&before.gpus, identified(&before.gpus, gpus)),
    }
}

fn concluded(seen: &Seen, index: u32, faults: &Faults) -> GpuFacts {
    let facts = &seen.facts;
    let of_capability = seen
        .cuda_cores
        .zip(seen.capability)
        .and_then(|(cores, capability)| multiprocessors(cores, capability));
    GpuFacts {
        index,
        product: bounded(&facts.product),
        uuid: bounded(&facts.uuid),
        pci_bus_id: bounded(&facts.pci_bus_id),
        multiprocessors: of_capability,
        compute_capability: seen.capability.map(|(major, minor)| format!("{major}.{minor}")),
        nvlinks: u32::try_from(seen.link_ends.len()).unwrap_or(u32::MAX),
        nvlink_peers: Vec::new(),
        mig: facts.mig.as_ref().map(|slices| slices.iter().map(bounded_slices).collect()),
        health: faults.health(index, seen.bad_memory),
        ..facts.clone()
    }
}

fn bounded_slices(slices: &MigSlices) -> MigSlices {
    MigSlices { profile: bounded(&slices.profile), ..slices.clone() }
}

/// `gpus`, where lost ones that nobody could ask get the details of `before`: those of their index, unless a GPU that
/// answers proves that the indices changed meanwhile, else those of a GPU that is not among them.
fn identified(before: &[GpuFacts], mut gpus: Vec<GpuFacts>) -> Vec<GpuFacts> {
    for same_index in [true, false] {
        for place in 0..gpus.len() {
            let index = gpus[place].index;
            let fits = |old: &&GpuFacts| {
                (old.index == index || !same_index)
                    && !old.is_unidentified()
                    && gpus.iter().all(|gpu| gpu.uuid != old.uuid)
            };
            if gpus[place].is_unidentified()
                && let Some(old) = before.iter().find(fits)
            {
                gpus[place] = GpuFacts { index, health: GpuHealth::Lost, ..old.clone() };
            }
        }
    }
    gpus
}

/// Sets the peers of GPUs that answer. A lost one reaches nobody, and keeps the peers it had for the record.
fn connect(gpus: &mut [GpuFacts], readings: &[GpuReading]) {
    let links: Vec<(u32, String, &[String])> = gpus
        .iter()
        .zip(readings)
        .filter_map(|(gpu, reading)| match reading {
            GpuReading::Seen(seen) => Some((gpu.index, gpu.pci_bus_id.clone(), &seen.link_ends[..])),
            GpuReading::Lost => None,
        })
        .collect();
    let ends: Vec<(u32, &str, &[String])> =
        links.iter().map(|(index, address, ends)| (*index, address.as_str(), *ends)).collect();
    for ((index, ..), peers) in ends.iter().zip(nvlink_peers(&ends)) {
        if let Some(gpu) = gpus.iter_mut().find(|gpu| gpu.index == *index) {
            gpu.nvlink_peers = peers;
        }
    }
}

/// `gpus`, and as `Lost` those of `before` that are missing from it, unless as many others took their place or none of
/// their kind is left.
fn with_absent(before: &[GpuFacts], mut gpus: Vec<GpuFacts>) -> Vec<GpuFacts> {
    let mut listed: Vec<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    let is_absent = |old: &&GpuFacts| match listed.iter().position(|uuid| *uuid == old.uuid) {
        Some(found) => {
            listed.swap_remove(found);
            false
        }
        None => true,
    };
    let kinds: BTreeSet<u16> =
        gpus.iter().filter(|gpu| !gpu.is_unidentified()).map(|gpu| gpu.pci_device_id).collect();
    let of_kind = |old: &&GpuFacts| kinds.is_empty() || kinds.contains(&old.pci_device_id);
    let absent: Vec<GpuFacts> = before.iter().filter(is_absent).filter(of_kind).cloned().collect();
    let missing = before.len().saturating_sub(gpus.len());
    for old in absent.into_iter().take(missing) {
        let index = u32::try_from(gpus.len()).unwrap_or(u32::MAX);
        gpus.push(GpuFacts { index, health: GpuHealth::Lost, ..old });
    }
    gpus
}

/// What readers of an inventory accept of a driver's text: no control characters, and not too long.
fn bounded(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=LONGEST_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
