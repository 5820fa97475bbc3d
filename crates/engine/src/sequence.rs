//! One sequence as the scheduler sees it, and its place in line.

#[cfg(test)]
mod tests;

use std::ops::ControlFlow;

use gqla_kernels::attention::BLOCK_TOKENS;

use crate::{
    Cancel, Event, Finish, Request, Sink,
    blocks::Prefix,
    sampling::{DrawError, Drawn, Sampler},
    speculation::Acceptance,
};

/// Later requests that may go before an earlier one for each step of priority between them.
const PRIORITY_STEP: i64 = 64;

/// Place in line, the first smallest. A request goes in its turn of arrival, moved by its priority: so priority is an
/// advantage of a bounded number of places, and nobody waits for ever, however many more important requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    turn: i64,
    /// Makes ranks unique.
    arrival: u64,
}

impl Rank {
    pub fn new(arrival: u64, priority: i32) -> Self {
        let turn = i64::try_from(arrival).unwrap_or(i64::MAX);
        Self { turn: turn.saturating_add(PRIORITY_STEP * i64::from(priority)), arrival }
    }
}

/// What a step brought a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Tokens delivered.
    pub delivered: usize,
    /// Of these drafted: their keys are in the cache.
    pub accepted: usize,
}

/// Tokens that a step brings a sequence, as they are drawn one after another.
#[derive(Debug, Default)]
pub(crate) struct Extension {
    drafts: Vec<u32>,
    pub progress: Progress,
}

/// A sequence being continued.
pub(crate) struct Sequence {
    /// Prompt and what was drawn.
    pub tokens: Vec<u32>,
    pub sampler: Sampler,
    pub blocks: Vec<u32>,
    /// Tokens whose keys are in the cache.
    pub computed: usize,
    pub rank: Rank,
    pub finish: Option<Finish>,
    /// Guesses at its next tokens that the step verifies.
    pub drafts: Vec<u32>,
    /// How its guesses fare.
    pub acceptance: Acceptance,
    sink: Sink,
    cancel: Cancel,
    prompt: usize,
    /// Names of the content of the first 0, 1, 2, … blocks, as far as they were asked for.
    prefixes: Vec<Prefix>,
    /// Tokens past a block's end that are part of its name.
    lookahead: usize,
}

impl Sequence {
    /// A block's content depends on `lookahead` tokens past its end.
    pub fn new(request: Request, rank: Rank, lookahead: usize) -> Self {
        Self {
            sampler: Sampler::new(request.sampling, request.constraint, &request.prompt),
            prompt: request.prompt.len(),
            tokens: request.prompt,
            blocks: Vec::new(),
            computed: 0,
            rank,
            finish: None,
            drafts: Vec::new(),
            acceptance: Acceptance::default(),
            sink: request.sink,
            cancel: request.cancel,
            prefixes: vec![Prefix::start(&request.cache_salt)],
            lookahead,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Whether only its last token is missing from the cache.
    pub fn decodes(&self) -> bool {
        self.tokens.len() - self.computed == 1
    }

    /// Prompt tokens among `len` tokens from `start`.
    pub fn prompt_tokens(&self, start: usize, len: usize) -> usize {
        (start + len).min(self.prompt).saturating_sub(start)
    }

    /// Names the content of the first `blocks` blocks; `None` while not all tokens it depends on are known.
    pub fn prefix(&mut self, blocks: usize) -> Option<Prefix> {
        while self.prefixes.len() <= blocks {
            let index = self.prefixes.len() - 1;
            let end = |blocks| blocks * BLOCK_TOKENS + self.lookahead;
            let start = if index == 0 { 0 } else { end(index) };
            let next = self.prefixes[index].after(self.tokens.get(start..end(index + 1))?);
            self.prefixes.push(next);
        }
        Some(self.prefixes[blocks])
    }

    /// Tokens it may still get; at least 1 while it runs.
    pub fn remaining(&self) -> usize {
        (self.sampler.params().max_tokens as usize + self.prompt).saturating_sub(self.tokens.len())
    }

    /// Begins to take the step's tokens: one, and another after every one that was drafted.
    pub fn begin(&mut self) -> Extension {
        Extension { drafts: std::mem::take(&mut self.drafts), progress: Progress::default() }
    }

    /// Takes the token that was drawn from the next of the sequence's last `1 + drafts` rows; true when another follows in
    /// this step, of row `progress.accepted`.
    pub fn extend(
        &mut self,
        extension: &mut Extension,
        drawn: Result<Drawn, DrawError>,
        context: usize,
    ) -> bool {
        let Extension { drafts, progress } = extension;
        let was_drafted = match drawn {
            Ok(drawn) => {
                let was_drafted = drafts.get(progress.accepted) == Some(&drawn.id);
                let was_delivered = self.accept(drawn, context);
                progress.delivered += usize::from(was_delivered);
                progress.accepted += usize::from(was_delivered && was_drafted);
                was_drafted
            }
            Err(error) => {
                self.finish = Some(Finish::Error(error.to_string()));
                false
            }
        };
        let goes_on = was_drafted && self.finish.is_none();
        if !goes_on {
            self.acceptance.add(drafts.len(), progress.accepted);
        }
        goes_on
    }

    /// Takes all of a step's tokens; `draw` answers the token that follows the given ones, from the row of that number.
    #[cfg(test)]
    pub fn extend_by(
        &mut self,
        context: usize,
        mut draw: impl FnMut(&mut Sampler, &[u32], usize) -> Result<Drawn, DrawError>,
    ) -> Progress {
        let mut extension = self.begin();
        loop {
            let drawn = draw(&mut self.sampler, &self.tokens, extension.progress.accepted);
            if !self.extend(&mut extension, drawn, context) {
                return extension.progress;
            }
        }
    }

    /// Takes a drawn token; true when it was delivered.
    fn accept(&mut self, drawn: Drawn, context: usize) -> bool {
        let Drawn { id, logprob, last } = drawn;
        let params = self.sampler.params();
        let (stops, max_tokens) = (params.stop_token_ids.contains(&id), params.max_tokens as usize);
        if stops {
            self.finish = Some(Finish::Stop);
            return false;
        }
        self.tokens.push(id);
        if (self.sink)(Event::Token { id, logprob }) == ControlFlow::Break(()) {
            self.finish = Some(Finish::Aborted);
        } else if last {
            self.finish = Some(Finish::Stop);
        } else if self.tokens.len() - self.prompt >= max_tokens || self.tokens.len() >= context {
            self.finish = Some(Finish::Length);
        }
        true
    }

    /// Ends it.
    pub fn end(mut self, finish: Finish) {
        // It is over either way.
        let _ = (self.sink)(Event::Finished(finish));
    }
}
