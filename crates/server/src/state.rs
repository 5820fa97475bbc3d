//! What all requests share.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    thread::available_parallelism,
    time::{SystemTime, UNIX_EPOCH},
};

use gqla_engine::Engine;
use gqla_protocol::{ApiError, ChatTemplate, ErrorKind, ResponseFormat};
use gqla_weights::Tokenizer;
use parking_lot::RwLock;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{
    admission::{Refusal, Stage, admit},
    args::Limits,
    constraint::{Grammar, Grammars},
    drain::{Drain, DrainState},
    metrics::{Metrics, SequenceMetrics},
};

/// A loaded model with what turns its tokens into text.
pub struct Model {
    /// Runs it.
    pub engine: Arc<dyn Engine>,
    /// `None` for a checkpoint without `tokenizer.json`: prompts are then token ids, and answers their decimal ids.
    pub tokenizer: Option<Tokenizer>,
    /// `None` for a model that is not made for chat.
    pub template: Option<ChatTemplate>,
    /// Compiles schemas; indexed when the first one comes.
    pub grammars: OnceLock<Result<Grammars, String>>,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// What its sequences are counted by.
    pub metrics: SequenceMetrics,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("info", self.engine.info()).finish_non_exhaustive()
    }
}

impl Model {
    /// Token ids of `text`, which came from the request field `field`. Text that spells a special token becomes it, as
    /// chat templates and hand-written prompts need.
    pub fn encode(&self, text: &str, field: &str) -> Result<Vec<u32>, ApiError> {
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| {
            ApiError::field(field, "this model has no tokenizer; send token ids to /v1/completions")
        })?;
        tokenizer.encode(text, true).map_err(|error| ApiError::field(field, error))
    }

    /// What an answer of this form follows; `None` where anything goes.
    pub fn grammar(&self, format: &ResponseFormat) -> Result<Option<Grammar>, ApiError> {
        if *format == ResponseFormat::Text {
            return Ok(None);
        }
        let unusable = |why: &str| ApiError::field("response_format", format!("not for this model: {why}"));
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| unusable("it has no tokenizer"))?;
        let grammars = self
            .grammars
            .get_or_init(|| Grammars::new(tokenizer, &self.eos_token_ids).map_err(|error| error.to_string()));
        grammars.as_ref().map_err(|why| unusable(why))?.compile(format)
    }

    /// Refuses `text` that spells a special token: in a chat, only the template may say where a turn begins and ends.
    pub fn check_plain(&self, text: &str, field: &str) -> Result<(), ApiError> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(()) };
        let encode = |special| tokenizer.encode(text, special).map_err(|error| ApiError::field(field, error));
        let ids = encode(true)?;
        if ids == encode(false)? {
            return Ok(());
        }
        let special = tokenizer.special_ids();
        let spelled = ids.into_iter().find(|id| special.binary_search(id).is_ok());
        let spelled = spelled.map(|id| format!(" `{}`", tokenizer.decode(&[id], false))).unwrap_or_default();
        Err(ApiError::field(
            field,
            format!("contains the control token{spelled}, which only the chat template may write; remove it"),
        ))
    }
}

/// How far the model has come.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Still loading; the text says what is being done.
    Loading(String),
    /// Answering.
    Ready(Arc<Model>),
    /// It will never answer; the text says why.
    Failed(String),
}

/// The state behind every route.
#[derive(Debug)]
pub struct App {
    /// The name clients ask for.
    pub served_name: String,
    /// Unix seconds of the start.
    pub created: u64,
    /// Admission bounds.
    pub limits: Limits,
    /// How far the end has come.
    pub drain: Drain,
    /// Counters and histograms.
    pub metrics: Metrics,
    /// Requests being answered, to the last byte.
    pub requests: TaskTracker,
    /// Tokenising is arithmetic: more at once than there are cores would only slow decoding down.
    tokenizing: Arc<Semaphore>,
    /// Bodies being read. The queue does not count them yet, and each may be as large as `limits.body_bytes`.
    bodies: Semaphore,
    phase: RwLock<Phase>,
}

impl App {
    /// A server whose model is still to be loaded.
    pub fn new(served_name: String, created: u64, limits: Limits, metrics: Metrics) -> Self {
        Self {
            served_name,
            created,
            limits,
            metrics,
            bodies: Semaphore::new(limits.queued),
            drain: Drain::default(),
            requests: TaskTracker::new(),
            tokenizing: Arc::new(Semaphore::new(available_parallelism().map_or(1, |cores| cores.get()))),
            phase: RwLock::new(Phase::Loading("starting".to_owned())),
        }
    }

    /// How far the model has come.
    pub fn phase(&self) -> Phase {
        self.phase.read().clone()
    }

    /// Moves to another phase.
    pub fn set_phase(&self, phase: Phase) {
        *self.phase.write() = phase;
    }

    /// The model, once loaded.
    pub fn model(&self) -> Option<Arc<Model>> {
        match &*self.phase.read() {
            Phase::Ready(model) => Some(Arc::clone(model)),
            Phase::Loading(_) | Phase::Failed(_) => None,
        }
    }

    /// Comes closer to the end.
    pub fn advance_drain(&self, to: DrainState) {
        self.drain.advance(to);
        self.metrics.drain_state(self.drain.state());
    }

    /// What admission looks at.
    pub fn stage(&self) -> Stage {
        self.model().map_or(Stage::Loading, |model| Stage::Serving { waiting: model.engine.stats().waiting })
    }

    /// Lets a request in. Hold the token until the last byte of the answer is written.
    pub fn admit(&self) -> Result<(Arc<Model>, TaskTrackerToken), ApiError> {
        let token = self.requests.token();
        let refuse = |refusal: Refusal| {
            self.metrics.rejected(refusal);
            ApiError::from(refusal)
        };
        admit(self.stage(), self.drain.state(), self.limits.queued).map_err(refuse)?;
        Ok((self.loaded()?, token))
    }

    /// Lets a body be read: no more at once than requests may wait.
    pub fn place_for_body(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.bodies.try_acquire().map_err(|_| {
            let refusal = Refusal::QueueFull { limit: self.limits.queued };
            self.metrics.rejected(refusal);
            refusal.into()
        })
    }

    /// The model, or 503 while there is none.
    pub fn loaded(&self) -> Result<Arc<Model>, ApiError> {
        self.model().ok_or_else(|| Refusal::Loading.into())
    }

    /// Runs `work` off the event loop.
    pub async fn tokenize<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = |error: &dyn fmt::Display| {
            ApiError::new(ErrorKind::Internal, format!("the prompt could not be tokenised: {error}"))
        };
        let permit = Arc::clone(&self.tokenizing).acquire_owned().await.map_err(|error| failed(&error))?;
        // The work runs on when the client leaves, and holds its permit until it ends.
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| failed(&error))?
    }

    /// 404 unless `name` is what is served here.
    pub fn check_name(&self, name: &str) -> Result<(), ApiError> {
        if name == self.served_name {
            return Ok(());
        }
        let asked: String = name.chars().take(64).collect();
        Err(ApiError {
            kind: ErrorKind::ModelNotFound,
            message: format!("model `{asked}` is not served here, expected `{}`", self.served_name),
            param: Some("model".to_owned()),
        })
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
