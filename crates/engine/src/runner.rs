//! The engine's thread: admits, steps, draws and delivers until told to stop.
//!
//! Generic over what computes and chooses ([`StepModel`]), so that its behaviour under errors and cancellation is tested
//! without a model. Whatever goes wrong in a step, a panic included, ends every sequence with
//! [`Finish::Error`] and leaves the engine dead: it takes nothing more and says why ([`Runner::failure`]), for
//! the log, the probes and whoever ends the process; clients only learn that something did.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gqla_kernels::{
    attention::Segment,
    sample::{Choice, Draw, NoToken},
};

use crate::{
    EngineStats, Event, Finish, Request, Speculation, SpeculationStats, SubmitError,
    blocks::BlockCopy,
    scheduler::{Limits, Plan, Scheduler, Slice},
    sequence::{Extension, Progress, Rank},
};

/// How often an idle engine shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// What clients learn of a failed step: its error or panic may quote what is not theirs.
const STEP_FAILED: &str = "a step failed; the server's log says why";

/// Computes the tokens of a step and chooses those that follow.
pub(crate) trait StepModel: Send + 'static {
    /// Copies whole blocks of the cache, in this order.
    fn copy(&mut self, copies: &[BlockCopy]);

    /// Goes on along the GQA path, with the content of these blocks.
    fn expand(&mut self, blocks: &[u32]);

    /// Runs `tokens`, which `segments` describe, and keeps `[wanted.len(), vocab]` logits of the rows `wanted`.
    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<(), String>;

    /// Chooses a token for each of `draws`, whose rows are among those that the last call of [`Self::step`] or
    /// [`Self::draft`] kept.
    fn choose(&mut self, draws: &[Draw]) -> Result<Vec<Result<Choice, NoToken>>, String>;

    /// Runs the prediction layer: row i continues row `rows[i]` of the last step or of the last call of this, and `next[i]`
    /// is the token that follows it. `segments` describe the rows of this call. Keeps `[wanted.len(), vocab]` logits, of the
    /// token after `next`, of the rows `wanted`.
    fn draft(
        &mut self,
        rows: &[usize],
        next: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<(), String>;
}

/// Bounds of a running engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub limits: Limits,
    pub blocks: usize,
    pub queued: usize,
    pub vocab: usize,
    pub speculation: Option<Speculation>,
}

#[derive(Default)]
struct Inbox {
    queue: BTreeMap<Rank, Request>,
    arrivals: u64,
    /// The path is to change before the next step.
    expand: bool,
    /// When to abort what still runs; set once.
    deadline: Option<Instant>,
    /// Why nothing more is taken, once the thread has ended.
    ended: Option<Ended>,
}

enum Ended {
    Stopped,
    /// Of this, which is also in the log.
    Failed(String),
}

struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    bounds: Bounds,
    started: Instant,
    /// Milliseconds after `started`.
    heartbeat: AtomicU64,
    running: AtomicUsize,
    preempted: AtomicUsize,
    blocks_used: AtomicUsize,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    steps: AtomicU64,
    preemptions: AtomicU64,
    prefix_queries: AtomicU64,
    prefix_hits: AtomicU64,
    speculation: Mutex<SpeculationStats>,
}

/// A handle on the engine's thread; dropping it aborts what runs.
pub(crate) struct Runner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Runner {
    pub fn start(model: impl StepModel, bounds: Bounds) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            bounds,
            started: Instant::now(),
            heartbeat: AtomicU64::new(0),
            running: AtomicUsize::new(0),
            preempted: AtomicUsize::new(0),
            blocks_used: AtomicUsize::new(0),
            prompt_tokens: AtomicU64::new(0),
            generated_tokens: AtomicU64::new(0),
            steps: AtomicU64::new(0),
            preemptions: AtomicU64::new(0),
            prefix_queries: AtomicU64::new(0),
            prefix_hits: AtomicU64::new(0),
            speculation: Mutex::default(),
        });
        let body = Arc::clone(&shared);
        let thread = thread::Builder::new().name("engine".to_owned()).spawn(move || body.run(model))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    pub fn submit(&self, request: Request) -> Result<(), SubmitError> {
        self.shared.bounds.check(&request)?;
        let mut inbox = self.shared.inbox();
        match inbox.ended {
            Some(Ended::Failed(_)) => return Err(SubmitError::Dead),
            Some(Ended::Stopped) => return Err(SubmitError::ShuttingDown),
            None if inbox.deadline.is_some() => return Err(SubmitError::ShuttingDown),
            None => {}
        }
        if inbox.queue.len() >= self.shared.bounds.queued {
            return Err(SubmitError::QueueFull { limit: self.shared.bounds.queued });
        }
        inbox.arrivals += 1;
        let rank = Rank::new(inbox.arrivals, request.priority);
        inbox.queue.insert(rank, request);
        self.shared.arrived.notify_one();
        Ok(())
    }

    /// Has the model go on along the GQA path from the next step on.
    pub fn expand(&self) {
        self.shared.inbox().expand = true;
        self.shared.arrived.notify_one();
    }

    pub fn stats(&self) -> EngineStats {
        let shared = &*self.shared;
        let heartbeat = Duration::from_millis(shared.heartbeat.load(Ordering::Relaxed));
        let queued = shared.inbox().queue.len();
        EngineStats {
            running: shared.running.load(Ordering::Relaxed),
            waiting: queued + shared.preempted.load(Ordering::Relaxed),
            blocks_used: shared.blocks_used.load(Ordering::Relaxed),
            prompt_tokens: shared.prompt_tokens.load(Ordering::Relaxed),
            generated_tokens: shared.generated_tokens.load(Ordering::Relaxed),
            steps: shared.steps.load(Ordering::Relaxed),
            preemptions: shared.preemptions.load(Ordering::Relaxed),
            prefix_queries: shared.prefix_queries.load(Ordering::Relaxed),
            prefix_hits: shared.prefix_hits.load(Ordering::Relaxed),
            speculation: *shared.speculation(),
            since_last_heartbeat: shared.started.elapsed().saturating_sub(heartbeat),
        }
    }

    /// Why a step failed, once one did.
    pub fn failure(&self) -> Option<String> {
        match &self.shared.inbox().ended {
            Some(Ended::Failed(why)) => Some(why.clone()),
            Some(Ended::Stopped) | None => None,
        }
    }

    pub fn shutdown(&self, deadline: Duration) {
        let at = Instant::now() + deadline;
        let mut inbox = self.shared.inbox();
        inbox.deadline = Some(inbox.deadline.map_or(at, |earlier| earlier.min(at)));
        drop(inbox);
        self.shared.arrived.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic was caught in the thread and told to every sequence.
            let _ = thread.join();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

impl Bounds {
    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let (prompt, max_tokens) = (request.prompt.len(), request.sampling.max_tokens as usize);
        let context = self.limits.context;
        let known = |id: &u32| (*id as usize) < self.vocab;
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt + max_tokens > context {
            return Err(SubmitError::TooLong { prompt, max_tokens, context });
        }
        if let Some(position) = request.prompt.iter().position(|id| !known(id)) {
            let id = request.prompt[position];
            return Err(SubmitError::UnknownToken { id, position, vocab_size: self.vocab });
        }
        match request.sampling.logit_bias.iter().find(|(id, _)| !known(id)) {
            Some((id, _)) => Err(SubmitError::UnknownBias { id: *id, vocab_size: self.vocab }),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn speculation(&self) -> MutexGuard<'_, SpeculationStats> {
        self.speculation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut model: impl StepModel) {
        let Bounds { blocks, limits, speculation, .. } = self.bounds;
        let mut scheduler = Scheduler::new(blocks, limits, speculation);
        let outcome = loop {
            self.beat();
            let round = catch_unwind(AssertUnwindSafe(|| self.round(&mut model, &mut scheduler)));
            match round.unwrap_or_else(|panic| Err(message_of(panic.as_ref()))) {
                Ok(true) => {}
                Ok(false) => break Ended::Stopped,
                Err(why) => {
                    tracing::error!(why, "the engine stops: a step failed");
                    break Ended::Failed(why);
                }
            }
        };
        self.end(scheduler, outcome);
    }

    /// Waits for work and does a step of it; false when it is time to end.
    fn round(&self, model: &mut impl StepModel, scheduler: &mut Scheduler) -> Result<bool, String> {
        if !self.wait(scheduler) {
            return Ok(false);
        }
        self.dismiss(scheduler);
        if std::mem::take(&mut self.inbox().expand) {
            model.expand(&scheduler.live_blocks());
        }
        self.admit(scheduler);
        if !scheduler.running.is_empty() {
            self.step(model, scheduler)?;
        }
        self.publish(scheduler);
        Ok(true)
    }

    fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heartbeat.store(now, Ordering::Relaxed);
    }

    /// Waits until there is something to do; false when it is time to end.
    fn wait(&self, scheduler: &Scheduler) -> bool {
        let mut inbox = self.inbox();
        while scheduler.is_idle() && inbox.queue.is_empty() && !inbox.expand {
            if inbox.deadline.is_some() {
                return false;
            }
            let waited = self.arrived.wait_timeout(inbox, HEARTBEAT);
            inbox = waited.unwrap_or_else(PoisonError::into_inner).0;
            self.beat();
        }
        inbox.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }

    /// Drops what nobody waits for any more, wherever it has come.
    fn dismiss(&self, scheduler: &mut Scheduler) {
        scheduler.dismiss();
        let cancelled = |_: &Rank, request: &mut Request| request.cancel.is_cancelled();
        let gone: Vec<_> = self.inbox().queue.extract_if(.., cancelled).collect();
        for (_, request) in gone {
            report(request, Finish::Aborted);
        }
    }

    fn admit(&self, scheduler: &mut Scheduler) {
        scheduler.admit(&mut self.inbox().queue);
        self.publish(scheduler);
    }

    fn step(&self, model: &mut impl StepModel, scheduler: &mut Scheduler) -> Result<(), String> {
        let Plan { slices, copies } = scheduler.plan();
        model.copy(&copies);
        let (mut tokens, mut wanted, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        for slice in &slices {
            let Slice { start, len, .. } = *slice;
            let sequence = &scheduler.running[slice.sequence];
            let (first_row, rows) = (tokens.len(), slice.rows());
            segments.push(Segment { first_row, rows, start, blocks: &sequence.blocks });
            tokens.extend(&sequence.tokens[start..start + len]);
            tokens.extend(&sequence.drafts);
            wanted.extend(first_row + rows - slice.wanted()..first_row + rows);
        }
        let began = Instant::now();
        model.step(&tokens, &segments, &wanted)?;
        let mut stepped = began.elapsed();
        let extended = draw(model, scheduler, &slices, self.bounds.vocab, &mut stepped)?;
        let (mut prompt, mut generated) = (0, 0);
        for (slice, progress) in slices.iter().zip(extended) {
            prompt += scheduler.prompt_tokens(slice) as u64;
            scheduler.computed(slice, progress);
            generated += progress.delivered as u64;
        }
        self.prompt_tokens.fetch_add(prompt, Ordering::Relaxed);
        self.generated_tokens.fetch_add(generated, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        draft(model, scheduler, &slices)?;
        scheduler.took(&slices, (stepped + began.elapsed()).as_secs_f64());
        scheduler.retire();
        Ok(())
    }

    fn publish(&self, scheduler: &Scheduler) {
        self.running.store(scheduler.running.len(), Ordering::Relaxed);
        self.preempted.store(scheduler.preempted(), Ordering::Relaxed);
        self.blocks_used.store(scheduler.blocks_used(), Ordering::Relaxed);
        self.preemptions.store(scheduler.preemptions(), Ordering::Relaxed);
        self.prefix_queries.store(scheduler.prefixes().queries, Ordering::Relaxed);
        self.prefix_hits.store(scheduler.prefixes().hits, Ordering::Relaxed);
        *self.speculation() = scheduler.speculated();
    }

    /// Ends everything, accepted or running, and refuses what comes later.
    fn end(&self, mut scheduler: Scheduler, ended: Ended) {
        let finish = match ended {
            Ended::Stopped => Finish::Aborted,
            Ended::Failed(_) => Finish::Error(STEP_FAILED.to_owned()),
        };
        let queue = {
            let mut inbox = self.inbox();
            inbox.ended = Some(ended);
            std::mem::take(&mut inbox.queue)
        };
        for sequence in scheduler.drain() {
            // The sink may be what panicked; the others must hear all the same.
            let _ = catch_unwind(AssertUnwindSafe(|| sequence.end(finish.clone())));
        }
        for request in queue.into_values() {
            let _ = catch_unwind(AssertUnwindSafe(|| report(request, finish.clone())));
        }
        self.running.store(0, Ordering::Relaxed);
        self.preempted.store(0, Ordering::Relaxed);
        self.blocks_used.store(0, Ordering::Relaxed);
    }
}

/// Ends a request that never ran.
fn report(mut request: Request, finish: Finish) {
    // It is over either way.
    let _ = (request.sink)(Event::Finished(finish));
}

/// Draws and delivers the next tokens of the sequences whose slices have a row to draw from: of all at once, and again of
/// those whose draft was drawn. Adds to `spent` what the model took.
fn draw(
    model: &mut impl StepModel,
    scheduler: &mut Scheduler,
    slices: &[Slice],
    vocab: usize,
    spent: &mut Duration,
) -> Result<Vec<Progress>, String> {
    let (context, mut first_row) = (scheduler.context(), 0);
    let mut extensions: Vec<Extension> = slices.iter().map(|_| Extension::default()).collect();
    let mut drawing = Vec::new();
    for (index, slice) in slices.iter().enumerate().filter(|(_, slice)| slice.draws) {
        extensions[index] = scheduler.running[slice.sequence].begin();
        drawing.push((index, first_row));
        first_row += slice.wanted();
    }
    while !drawing.is_empty() {
        let (mut asked, mut draws) = (Vec::new(), Vec::new());
        for (index, first_row) in drawing {
            let (sequence, extension) =
                (&mut scheduler.running[slices[index].sequence], &mut extensions[index]);
            match sequence.sampler.ask(first_row + extension.progress.accepted, vocab) {
                Ok(draw) => {
                    asked.push((index, first_row));
                    draws.push(draw);
                }
                Err(error) => {
                    sequence.extend(extension, Err(error), context);
                }
            }
        }
        let began = Instant::now();
        let choices = choose(model, &draws)?;
        *spent += began.elapsed();
        drawing = Vec::new();
        for ((index, first_row), choice) in asked.into_iter().zip(choices) {
            let sequence = &mut scheduler.running[slices[index].sequence];
            let drawn = sequence.sampler.take(choice);
            if sequence.extend(&mut extensions[index], drawn, context) {
                drawing.push((index, first_row));
            }
        }
    }
    Ok(extensions.into_iter().map(|extension| extension.progress).collect())
}

/// Gives the prediction layer, if drafts come from one, what the step computed, and takes its drafts for the next.
fn draft(model: &mut impl StepModel, scheduler: &mut Scheduler, slices: &[Slice]) -> Result<(), String> {
    let mut round = scheduler.after(slices);
    while !round.is_empty() {
        let segments = round.segments(&scheduler.running);
        model.draft(&round.rows, &round.next, &segments, &round.wanted)?;
        let draws: Vec<Draw> = (0..round.wanted.len()).map(Draw::greedy).collect();
        // Any token will do for a layer that has no best one: drafts are verified.
        let id = |choice: Result<Choice, NoToken>| choice.map_or(0, |choice| choice.id);
        let drafts: Vec<u32> = choose(model, &draws)?.into_iter().map(id).collect();
        round = scheduler.drafted(&round, &drafts);
    }
    Ok(())
}

/// One choice for each draw.
fn choose(model: &mut impl StepModel, draws: &[Draw]) -> Result<Vec<Result<Choice, NoToken>>, String> {
    let choices = model.choose(draws)?;
    if choices.len() != draws.len() {
        return Err("the model chose too few tokens or too many".to_owned());
    }
    Ok(choices)
}

/// What a panic said.
pub(crate) fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}

#[cfg(test)]
mod tests;
