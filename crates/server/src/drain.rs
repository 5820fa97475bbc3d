//! The end of a pod's life. A Service keeps sending requests for a while after a pod is told to stop, and requests take
//! minutes: so first only readiness fails (lame duck), then new requests are refused, then running ones are cut.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use crate::state::App;

/// Time for the last chunks to reach their clients once the engine has stopped.
const LAST_CHUNKS: Duration = Duration::from_secs(5);

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DrainState {
    /// Taking requests.
    Serving = 0,
    /// Not ready any more, still taking requests.
    LameDuck = 1,
    /// Refusing new requests, finishing the running ones.
    Draining = 2,
}

/// The current [`DrainState`], shared.
#[derive(Debug, Default)]
pub struct Drain(AtomicU8);

impl Drain {
    /// The state now.
    pub fn state(&self) -> DrainState {
        match self.0.load(Ordering::Acquire) {
            0 => DrainState::Serving,
            1 => DrainState::LameDuck,
            _ => DrainState::Draining,
        }
    }

    /// Moves on; never back.
    pub fn advance(&self, to: DrainState) {
        self.0.fetch_max(to as u8, Ordering::AcqRel);
    }
}

/// Runs the end from the signal until nothing is left to answer.
pub async fn drain(app: Arc<App>, lame_duck: Duration, deadline: Duration) {
    app.advance_drain(DrainState::LameDuck);
    let Some(model) = app.model() else {
        app.advance_drain(DrainState::Draining);
        return;
    };
    tracing::info!(?lame_duck, "not ready any more; still taking requests");
    tokio::time::sleep(lame_duck).await;
    app.advance_drain(DrainState::Draining);
    app.requests.close();
    tracing::info!(
        requests = app.requests.len(),
        ?deadline,
        "refusing new requests, finishing the running ones"
    );
    if tokio::time::timeout(deadline, app.requests.wait()).await.is_err() {
        tracing::warn!(requests = app.requests.len(), "aborting requests that did not finish in time");
    }
    let engine = Arc::clone(&model.engine);
    let stopped = tokio::task::spawn_blocking(move || engine.shutdown(Duration::ZERO));
    if tokio::time::timeout(LAST_CHUNKS, async { tokio::join!(stopped, app.requests.wait()) }).await.is_err()
    {
        tracing::warn!("clients did not read their last chunks in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_never_taken_back() {
        let drain = Drain::default();
        assert_eq!(drain.state(), DrainState::Serving);
        drain.advance(DrainState::Draining);
        drain.advance(DrainState::LameDuck);
        assert_eq!(drain.state(), DrainState::Draining);
    }
}
