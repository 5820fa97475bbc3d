//! What probes are told.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use gqla_telemetry::{Health, Probe};
use parking_lot::Mutex;

use crate::publish::PublishError;

/// Whether the agent lives, and whether the Node holds what it knows. A driver that hangs is no reason to restart: a
/// restart cannot cure it, and that it hangs is a fact like others.
pub struct State {
    facts: Mutex<Facts>,
    start: Instant,
    beat_milliseconds: AtomicU64,
    silence: Duration,
}

/// Where the newest inventory is.
#[derive(Default)]
struct Facts {
    known: bool,
    published: bool,
    /// Why the last request failed, unless one succeeded since.
    failure: Option<String>,
}

impl State {
    /// A process that counts as dead after this much silence.
    pub fn new(silence: Duration) -> Self {
        Self { facts: Mutex::default(), start: Instant::now(), beat_milliseconds: AtomicU64::new(0), silence }
    }

    pub(crate) fn beat(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_milliseconds.store(now, Ordering::Relaxed);
    }

    /// There is an inventory that the Node does not hold yet.
    pub(crate) fn changed(&self) {
        let mut facts = self.facts.lock();
        (facts.known, facts.published) = (true, false);
    }

    /// A request succeeded; `published` says whether the Node holds the newest inventory now.
    pub(crate) fn reached(&self, published: bool) {
        let mut facts = self.facts.lock();
        (facts.published, facts.failure) = (published, None);
    }

    /// A request failed.
    pub(crate) fn failed(&self, error: &PublishError) {
        self.facts.lock().failure = Some(error.to_string());
    }
}

impl Health for State {
    fn live(&self) -> Probe {
        let last = Duration::from_millis(self.beat_milliseconds.load(Ordering::Relaxed));
        match self.start.elapsed().checked_sub(last) {
            Some(silent) if silent > self.silence => {
                Probe::NotOk(format!("the publishing loop has been silent for {} s", silent.as_secs()))
            }
            _ => Probe::Ok,
        }
    }

    fn ready(&self) -> Probe {
        let facts = self.facts.lock();
        match &facts.failure {
            Some(failure) => Probe::NotOk(format!("the Node is not up to date: {failure}")),
            None if !facts.known => {
                Probe::NotOk("NVML has neither answered nor been given up on yet".to_owned())
            }
            None if !facts.published => {
                Probe::NotOk("the newest inventory is not on the Node yet".to_owned())
            }
            None => Probe::Ok,
        }
    }

    fn started(&self) -> Probe {
        Probe::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_loop_is_dead_and_a_beating_one_is_not() {
        let state = State::new(Duration::from_millis(20));
        assert_eq!(state.live(), Probe::Ok);
        std::thread::sleep(Duration::from_millis(60));
        assert!(matches!(state.live(), Probe::NotOk(_)));
        state.beat();
        assert_eq!(state.live(), Probe::Ok);
    }

    #[test]
    fn ready_is_who_has_the_newest_inventory_on_the_node() {
        let state = State::new(Duration::from_secs(1));
        let says = |words: &str| matches!(state.ready(), Probe::NotOk(why) if why.contains(words));
        assert!(says("NVML has neither answered"));
        state.reached(false);
        assert!(says("NVML has neither answered"), "the Node was only read");
        state.changed();
        assert!(says("not on the Node yet"));
        state.failed(&PublishError::Late { node: "n".to_owned(), what: "written" });
        state.changed();
        assert!(says("Node `n` cannot be written"));
        state.reached(false);
        assert!(says("not on the Node yet"), "an older one was written");
        state.reached(true);
        assert_eq!(state.ready(), Probe::Ok);
        state.failed(&PublishError::Late { node: "n".to_owned(), what: "read" });
        assert!(says("Node `n` cannot be read"));
    }
}
