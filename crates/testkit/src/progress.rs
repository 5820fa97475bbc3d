//! What a long start is doing, told to whoever waits for it: a progress bar in `xtask`, nothing in a test.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// One thing that happened while tools were obtained or a cluster was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A step began.
    Started {
        /// What is being done, as a phrase: `building helm v3.19.5`.
        step: &'a str,
    },
    /// The step's program printed a line (a package compiled, a module downloaded).
    Detail {
        /// The step this belongs to.
        step: &'a str,
        /// The line, without its newline.
        line: &'a str,
    },
    /// The step ended well. A step that fails ends in the caller's error instead.
    Finished {
        /// The step that ended.
        step: &'a str,
        /// How long it took.
        elapsed: Duration,
    },
}

/// Where events go. Cheap to clone; may be called from several threads.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Event<'_>) + Send + Sync>);

impl Progress {
    /// Sends every event to `listener`.
    pub fn new(listener: impl Fn(Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(listener))
    }

    /// Drops every event.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    /// Passes one line of a step's output on.
    pub fn detail(&self, step: &str, line: &str) {
        (self.0)(Event::Detail { step, line });
    }

    /// Runs `work` between a `Started` and, when it succeeds, a `Finished` event.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn step<T, E>(&self, step: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let started = self.start(step);
        let value = work()?;
        self.finish(step, started);
        Ok(value)
    }

    /// Announces a step whose end is told by [`Progress::finish`].
    pub fn start(&self, step: &str) -> Instant {
        (self.0)(Event::Started { step });
        Instant::now()
    }

    /// Announces the end of a step that began at `started`.
    pub fn finish(&self, step: &str, started: Instant) {
        let elapsed = started.elapsed();
        (self.0)(Event::Finished { step, elapsed });
    }
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Progress")
    }
}
