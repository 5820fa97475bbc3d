//! The probes of a pod, from its state alone.

use std::{sync::Arc, time::Duration};

use gqla_engine::Engine;
use gqla_telemetry::{Health, Probe};

use crate::{
    admission::{Refusal, admit},
    drain::DrainState,
    state::{App, Phase},
};

/// Oldest scheduler heartbeat that counts as alive.
#[derive(Clone, Copy, Debug)]
pub struct Liveness(pub Duration);

/// Answers the kubelet.
#[derive(Debug)]
pub struct AppHealth {
    /// What is asked about.
    pub app: Arc<App>,
    /// When to call it dead.
    pub liveness: Liveness,
}

impl Health for AppHealth {
    fn live(&self) -> Probe {
        match self.app.phase() {
            Phase::Ready(model) => engine(&*model.engine, self.liveness),
            Phase::Loading(_) => Probe::Ok,
            Phase::Failed(reason) => Probe::NotOk(reason),
        }
    }

    fn ready(&self) -> Probe {
        if self.app.drain.state() != DrainState::Serving {
            return Probe::NotOk("draining: the server was told to stop".to_owned());
        }
        match self.app.phase() {
            Phase::Loading(progress) => Probe::NotOk(format!("loading: {progress}")),
            Phase::Failed(reason) => Probe::NotOk(reason),
            Phase::Ready(model) => match model.engine.failure() {
                Some(why) => dead(&why),
                None => match admit(self.app.stage(), DrainState::Serving, self.app.limits.queued) {
                    Err(Refusal::QueueFull { limit }) => {
                        Probe::NotOk(format!("queue: at its limit of {limit} requests"))
                    }
                    _ => Probe::Ok,
                },
            },
        }
    }

    fn started(&self) -> Probe {
        match self.app.phase() {
            Phase::Loading(progress) => Probe::NotOk(format!("loading: {progress}")),
            Phase::Failed(reason) => Probe::NotOk(reason),
            Phase::Ready(_) => Probe::Ok,
        }
    }
}

fn dead(why: &str) -> Probe {
    Probe::NotOk(format!("the engine failed and takes no more requests: {why}"))
}

fn engine(engine: &dyn Engine, liveness: Liveness) -> Probe {
    if let Some(why) = engine.failure() {
        return dead(&why);
    }
    let age = engine.stats().since_last_heartbeat;
    if age <= liveness.0 {
        return Probe::Ok;
    }
    let (age, limit) = (age.as_secs_f64(), liveness.0.as_secs_f64());
    Probe::NotOk(format!("the scheduler's last heartbeat is {age:.1} s old, expected at most {limit:.1} s"))
}
