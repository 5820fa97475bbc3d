//! Runs the sequences of one request and brings their pieces together.
//!
//! Text is decoded and stop strings are looked for in the engine's own callback: only there can a sequence be ended on
//! the very token that completes a stop string, so that no later one is computed, shown or billed. The callback takes
//! microseconds and never waits: the channel behind it is unbounded, its content bounded by the context length.

mod sequence;

use gqla_engine::{Cancel, Request, SamplingParams, SubmitError};
use gqla_protocol::{ApiError, ErrorKind, FinishReason, Sampling};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::{
    admission::Refusal,
    constraint::Grammar,
    state::{App, Model},
    stream::{Piece, TextStream},
};
use sequence::SequenceSink;

/// News of one choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Which choice.
    pub index: usize,
    /// What to append.
    pub piece: Piece,
    /// Why it ended, with its last piece.
    pub finish: Option<FinishReason>,
}

/// What to generate: every prompt `sampling.n` times.
#[derive(Clone, Debug)]
pub struct Job {
    /// Token ids, none empty.
    pub prompts: Vec<Vec<u32>>,
    /// How to draw; `max_tokens` is what the client asked for.
    pub sampling: Sampling,
    /// As in [`SamplingParams::logprobs`].
    pub logprobs: Option<u32>,
    /// What every answer follows.
    pub grammar: Option<Grammar>,
    /// Tokens to generate when the client did not say, as far as the context has room; `None` fills the context.
    pub default_max_tokens: Option<u32>,
}

/// Cancels the sequences of a request when it is dropped.
#[derive(Debug, Default)]
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// A request under way. Dropping it cancels its sequences.
#[derive(Debug)]
pub struct Generation {
    updates: UnboundedReceiver<Result<Update, String>>,
    unfinished: usize,
    _cancel: CancelOnDrop,
    /// Choices in all.
    pub choices: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens billed so far.
    pub completion_tokens: u64,
}

impl Generation {
    /// Submits all sequences or none.
    pub fn start(app: &App, model: &Model, job: Job) -> Result<Self, ApiError> {
        let choices = job.prompts.len() * job.sampling.n as usize;
        check_count(choices, app)?;
        let (sender, updates) = unbounded_channel();
        let seed = job.sampling.seed.unwrap_or_else(rand::random);
        let prompt_tokens = job.prompts.iter().map(|prompt| prompt.len() as u64).sum();
        // Also cancels what was submitted when a later sequence is refused.
        let cancel = CancelOnDrop::default();
        let mut index = 0;
        for prompt in &job.prompts {
            for sample in 0..job.sampling.n {
                let sampling = params(model, &job, prompt.len(), seed.wrapping_add(u64::from(sample)));
                let text = TextStream::new(model.tokenizer.as_ref(), job.sampling.stop.clone());
                let billed_prompt = if sample == 0 { prompt.len() } else { 0 };
                let max_tokens = sampling.max_tokens;
                let mut sink =
                    SequenceSink::new(index, text, sender.clone(), model.metrics.clone(), billed_prompt);
                let request = Request {
                    prompt: prompt.clone(),
                    sampling,
                    constraint: job.grammar.as_ref().map(Grammar::follow),
                    sink: Box::new(move |event| sink.on_event(event)),
                    cancel: cancel.0.clone(),
                    priority: job.sampling.priority,
                    cache_salt: job.sampling.cache_salt.clone(),
                };
                model.engine.submit(request).map_err(|error| refused(app, error))?;
                model.metrics.submitted(prompt.len(), max_tokens);
                index += 1;
            }
        }
        Ok(Self {
            updates,
            unfinished: choices,
            _cancel: cancel,
            choices,
            prompt_tokens,
            completion_tokens: 0,
        })
    }

    /// The next news, or `None` when all choices are finished.
    pub async fn next(&mut self) -> Option<Result<Update, ApiError>> {
        if self.unfinished == 0 {
            return None;
        }
        let failed = |reason: String| ApiError::new(ErrorKind::Internal, reason);
        match self.updates.recv().await {
            Some(Ok(update)) => {
                self.completion_tokens += update.piece.tokens;
                self.unfinished -= usize::from(update.finish.is_some());
                Some(Ok(update))
            }
            Some(Err(reason)) => Some(Err(failed(format!("the engine failed: {reason}")))),
            None => Some(Err(failed("the engine stopped before the answer was complete".to_owned()))),
        }
    }
}

/// A request that could never be admitted must not be told to try again: its sequences are submitted at one go, so
/// all of them have to fit the queue.
fn check_count(choices: usize, app: &App) -> Result<(), ApiError> {
    let room = app.limits.queued;
    if choices <= room {
        return Ok(());
    }
    Err(ApiError::field(
        "n",
        format!("prompts times n is {choices} sequences, but this server takes at most {room} at once"),
    ))
}

fn params(model: &Model, job: &Job, prompt_tokens: usize, seed: u64) -> SamplingParams {
    let Sampling { temperature, top_p, top_k, min_p, min_tokens, ignore_eos, .. } = job.sampling;
    let Sampling { presence_penalty, frequency_penalty, repetition_penalty, .. } = job.sampling;
    let room = model.engine.info().context_length.saturating_sub(prompt_tokens);
    let rest = u32::try_from(room).unwrap_or(u32::MAX).max(1);
    let default = job.default_max_tokens.map_or(rest, |tokens| tokens.min(rest));
    let max_tokens = job.sampling.max_tokens.unwrap_or(default);
    let mut stop_token_ids = job.sampling.stop_token_ids.clone();
    if !ignore_eos {
        stop_token_ids.extend(&model.eos_token_ids);
    }
    SamplingParams {
        max_tokens,
        min_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
        logit_bias: job.sampling.logit_bias.clone(),
        seed,
        stop_token_ids,
        logprobs: job.logprobs,
    }
}

fn refused(app: &App, error: SubmitError) -> ApiError {
    let message = error.to_string();
    match error {
        SubmitError::QueueFull { limit } => {
            let refusal = Refusal::QueueFull { limit };
            app.metrics.rejected(refusal);
            refusal.into()
        }
        SubmitError::ShuttingDown => {
            app.metrics.rejected(Refusal::Draining);
            Refusal::Draining.into()
        }
        SubmitError::Dead => ApiError::new(ErrorKind::Internal, message),
        SubmitError::TooLong { .. } => ApiError::new(ErrorKind::ContextLengthExceeded, message),
        SubmitError::UnknownBias { .. } => ApiError::field("logit_bias", message),
        SubmitError::UnknownToken { .. } | SubmitError::EmptyPrompt => ApiError::field("prompt", message),
    }
}
