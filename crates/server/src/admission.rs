//! Whether a request may come in. A pure decision, so that probes, routes and tests agree on it.

use gqla_protocol::{ApiError, ErrorKind};

use crate::drain::DrainState;

/// How far the model has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading weights.
    Loading,
    /// Answering.
    Serving {
        /// Sequences in the queue.
        waiting: usize,
    },
}

/// Why a request is turned away; the variant is the `reason` label of `gqla_queue_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The model is not loaded yet.
    Loading,
    /// The pod is about to stop.
    Draining,
    /// The queue is full.
    QueueFull {
        /// Its limit.
        limit: usize,
    },
}

impl Refusal {
    /// All label values.
    pub const REASONS: [&'static str; 3] = ["loading", "draining", "queue_full"];

    /// The label value.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Draining => "draining",
            Self::QueueFull { .. } => "queue_full",
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Loading => Self::new(ErrorKind::Loading, "the model is still loading; try again later"),
            Refusal::Draining => Self::new(ErrorKind::Draining, "this server is about to stop; try again"),
            Refusal::QueueFull { limit } => Self::new(
                ErrorKind::QueueFull,
                format!("the queue holds {limit} requests, its limit; try again later"),
            ),
        }
    }
}

/// Turns requests away that could not be answered, before their body is read.
pub fn admit(stage: Stage, drain: DrainState, queue_limit: usize) -> Result<(), Refusal> {
    match (drain, stage) {
        (DrainState::Draining, _) => Err(Refusal::Draining),
        (_, Stage::Loading) => Err(Refusal::Loading),
        (_, Stage::Serving { waiting }) if waiting >= queue_limit => {
            Err(Refusal::QueueFull { limit: queue_limit })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination() {
        use DrainState::{Draining, LameDuck, Serving};
        let serving = |waiting| Stage::Serving { waiting };
        for (stage, drain, expected) in [
            (Stage::Loading, Serving, Err(Refusal::Loading)),
            (Stage::Loading, LameDuck, Err(Refusal::Loading)),
            (Stage::Loading, Draining, Err(Refusal::Draining)),
            (serving(0), Serving, Ok(())),
            (serving(1), LameDuck, Ok(())),
            (serving(2), Serving, Err(Refusal::QueueFull { limit: 2 })),
            (serving(0), Draining, Err(Refusal::Draining)),
        ] {
            assert_eq!(admit(stage, drain, 2), expected, "{stage:?} {drain:?}");
        }
    }
}
