//! What goes into an engine and what comes out: token ids only, text belongs to the server.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use gqla_kernels::sample::{TokenLogprob, TokenMask};

/// How the next token is drawn from the logits. The default draws greedily, up to 16 tokens, and changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// Stop tokens are not drawn before this many others were, unless nothing else may be.
    pub min_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: keep the smallest set of tokens whose probability reaches this. 1 keeps all.
    pub top_p: f32,
    /// Keep the k most likely tokens. 0 keeps all.
    pub top_k: u32,
    /// Keep tokens at least this many times as likely as the most likely one. 0 keeps all.
    pub min_p: f32,
    /// Taken from the logits of tokens that were drawn.
    pub presence_penalty: f32,
    /// Taken from a token's logit once for every time it was drawn.
    pub frequency_penalty: f32,
    /// Logits of tokens in the prompt or drawn are divided by this when positive, multiplied when negative. 1 changes
    /// nothing.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Draw i depends on this, i and the logits alone, never on what else is in the batch.
    pub seed: u64,
    /// Generation ends when one of these is drawn; it is not delivered.
    pub stop_token_ids: Vec<u32>,
    /// Report this many most likely tokens beside each drawn one; `None` reports no log-probability at all.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            min_tokens: 0,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
        }
    }
}

/// Says which tokens may come next, so that an answer is of a given form. It follows one sequence.
pub trait Constraint: Send {
    /// Forbids all tokens that may not come next.
    ///
    /// # Errors
    /// A sentence for the client; the sequence then ends.
    fn forbid(&mut self, allowed: &mut TokenMask) -> Result<(), String>;

    /// Follows a drawn token; true when nothing may come after it.
    ///
    /// # Errors
    /// As above.
    fn accept(&mut self, id: u32) -> Result<bool, String>;
}

/// One sequence to continue.
pub struct Request {
    /// Prompt tokens; never empty.
    pub prompt: Vec<u32>,
    /// How to draw.
    pub sampling: SamplingParams,
    /// What form the answer must have.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Called by the engine's thread for every event, in order. It must not block; answering
    /// [`ControlFlow::Break`] cancels the sequence at the next step (the client left, or a stop string was seen).
    pub sink: Sink,
    /// Lets go of the sequence before it has anything to tell its sink: queued, in mid-prompt or preempted.
    pub cancel: Cancel,
    /// Requests of a smaller number go first, by a bounded number of places for each step between them.
    pub priority: i32,
    /// Only sequences with the same salt share what the cache holds of their common beginning.
    pub cache_salt: String,
}

impl Request {
    /// A request of no particular form, priority or salt.
    pub fn new(prompt: Vec<u32>, sampling: SamplingParams, sink: Sink) -> Self {
        Self {
            prompt,
            sampling,
            constraint: None,
            sink,
            cancel: Cancel::default(),
            priority: 0,
            cache_salt: String::new(),
        }
    }
}

/// Says that nobody waits for a sequence any more. Clones share one flag, so one flag can cancel many sequences.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the sequences before their next step, with [`Finish::Aborted`]. Can't be taken back.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether they are to end.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Receives a sequence's events.
pub type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

/// What happens to a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was drawn.
    Token {
        /// Its id.
        id: u32,
        /// Natural-log probabilities of the raw distribution, when asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The last event of a sequence.
    Finished(Finish),
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn, or the constraint is fulfilled.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
    /// The sink or [`Request::cancel`] cancelled, or the engine is shutting down.
    Aborted,
    /// The engine failed; the text says how, in words fit for a client.
    Error(String),
}

/// Why a request was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full; try later.
    #[error("the queue holds {limit} requests, its limit")]
    QueueFull {
        /// Requests the queue may hold.
        limit: usize,
    },
    /// Prompt and answer can never fit.
    #[error(
        "prompt_tokens={prompt} + max_tokens={max_tokens} exceed the context of {context} tokens by {}",
        prompt + max_tokens - context
    )]
    TooLong {
        /// Prompt tokens.
        prompt: usize,
        /// Tokens asked for.
        max_tokens: usize,
        /// The limit.
        context: usize,
    },
    /// A prompt token is outside the vocabulary.
    #[error("prompt token {id} at position {position} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Where it stands.
        position: usize,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// A bias on a token outside the vocabulary.
    #[error("no token has id {id}, expected less than the vocabulary's {vocab_size}")]
    UnknownBias {
        /// The id.
        id: u32,
        /// The vocabulary's size.
        vocab_size: usize,
    },
    /// The prompt is empty.
    #[error("the prompt is empty, expected at least 1 token")]
    EmptyPrompt,
    /// The engine stopped.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine failed earlier.
    #[error("the engine failed and takes no more requests; the server's log says why, a restart is needed")]
    Dead,
}
