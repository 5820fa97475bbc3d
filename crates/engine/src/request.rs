//! What goes into an engine and what comes out: token ids only, text belongs to the server.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// How the next token is drawn from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: keep the smallest set of tokens whose probability reaches this. 1 keeps all.
    pub top_p: f32,
    /// Keep the k most likely tokens. 0 keeps all.
    pub top_k: u32,
    /// Draws depend on this and the position alone, never on what else is in the batch.
    pub seed: u64,
    /// Generation ends when one of these is drawn; it is not delivered.
    pub stop_token_ids: Vec<u32>,
    /// Report this many most likely tokens beside each drawn one; `None` reports no log-probability at all.
    pub logprobs: Option<u32>,
}

/// One sequence to continue.
pub struct Request {
    /// Prompt tokens; never empty.
    pub prompt: Vec<u32>,
    /// How to draw.
    pub sampling: SamplingParams,
    /// Called by the engine's thread for every event, in order. It must not block; answering
    /// [`ControlFlow::Break`] cancels the sequence at the next step (the client left, or a stop string was seen).
    pub sink: Sink,
    /// Lets go of the sequence before it has anything to tell its sink: queued, in mid-prompt or preempted.
    pub cancel: Cancel,
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

/// Log-probability of a drawn token and of the most likely ones, before temperature and truncation.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Of the drawn token.
    pub logprob: f32,
    /// Most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was drawn.
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
