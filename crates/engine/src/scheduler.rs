//! What the next step computes: continuous batching as a synchronous state machine.
//!
//! Running sequences get their next token first; what is left of the token budget goes to prompts, in chunks, so a
//! long prompt delays others by one step's budget at most. When blocks run out the sequence that came last gives its
//! own back and is computed again later; draws depend on the position alone, so it continues with the same text.

use std::{cmp::Reverse, collections::VecDeque, ops::ControlFlow};

use gqla_kernels::attention::BLOCK_TOKENS;

use crate::{Cancel, Event, Finish, Request, SamplingParams, Sink, blocks::BlockPool};

/// Bounds on what runs at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens of a sequence.
    pub context: usize,
}

/// A sequence being continued.
pub(crate) struct Sequence {
    /// Prompt and what was drawn.
    pub tokens: Vec<u32>,
    pub sampling: SamplingParams,
    pub blocks: Vec<u32>,
    sink: Sink,
    cancel: Cancel,
    prompt: usize,
    /// Tokens whose keys are in the cache.
    computed: usize,
    arrival: u64,
    finish: Option<Finish>,
}

impl Sequence {
    fn new(request: Request, arrival: u64) -> Self {
        let prompt = request.prompt.len();
        Self {
            tokens: request.prompt,
            sampling: request.sampling,
            blocks: Vec::new(),
            sink: request.sink,
            cancel: request.cancel,
            prompt,
            computed: 0,
            arrival,
            finish: None,
        }
    }

    /// Takes a drawn token; true when it was delivered.
    pub fn accept(&mut self, id: u32, logprob: Option<crate::TokenLogprob>, context: usize) -> bool {
        if self.sampling.stop_token_ids.contains(&id) {
            self.finish = Some(Finish::Stop);
            return false;
        }
        self.tokens.push(id);
        if (self.sink)(Event::Token { id, logprob }) == ControlFlow::Break(()) {
            self.finish = Some(Finish::Aborted);
        } else if self.tokens.len() - self.prompt >= self.sampling.max_tokens as usize
            || self.tokens.len() >= context
        {
            self.finish = Some(Finish::Length);
        }
        true
    }

    /// Ends the sequence after this step.
    pub fn fail(&mut self, why: String) {
        self.finish = Some(Finish::Error(why));
    }

    fn report(&mut self, finish: Finish) {
        // It is over either way.
        let _ = (self.sink)(Event::Finished(finish));
    }
}

/// A part of a sequence that a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// Index among the running sequences.
    pub sequence: usize,
    /// First token.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// Whether the sequence's next token can be drawn afterwards.
    pub draws: bool,
}

/// Sequences, their blocks and their order.
pub(crate) struct Scheduler {
    pub running: Vec<Sequence>,
    preempted: VecDeque<Sequence>,
    blocks: BlockPool,
    limits: Limits,
    arrivals: u64,
    preemptions: u64,
}

impl Scheduler {
    pub fn new(blocks: usize, limits: Limits) -> Self {
        Self {
            running: Vec::new(),
            preempted: VecDeque::new(),
            blocks: BlockPool::new(blocks),
            limits,
            arrivals: 0,
            preemptions: 0,
        }
    }

    pub fn context(&self) -> usize {
        self.limits.context
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.preempted.is_empty()
    }

    pub fn preempted(&self) -> usize {
        self.preempted.len()
    }

    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub fn blocks_used(&self) -> usize {
        self.blocks.used()
    }

    /// Lets go of sequences that nobody waits for any more.
    pub fn dismiss(&mut self) {
        for sequence in self.running.iter_mut().filter(|sequence| sequence.cancel.is_cancelled()) {
            sequence.finish = Some(Finish::Aborted);
        }
        self.retire();
        let (gone, kept): (VecDeque<_>, _) =
            self.preempted.drain(..).partition(|sequence| sequence.cancel.is_cancelled());
        self.preempted = kept;
        for sequence in gone {
            sequence.end(Finish::Aborted);
        }
    }

    /// Lets sequences in while there is room for their tokens and one more: preempted ones first, then `next`, which
    /// hands over the oldest waiting request if the given predicate likes its prompt's length.
    pub fn admit(&mut self, mut next: impl FnMut(&dyn Fn(usize) -> bool) -> Option<Request>) {
        // Blocks that sequences let in before will need when their prompts are computed.
        let mut promised: usize =
            self.running.iter().map(|s| blocks_of(s.tokens.len() + 1).saturating_sub(s.blocks.len())).sum();
        while self.running.len() < self.limits.sequences {
            let free = self.blocks.free();
            let fits = |tokens: usize| promised + blocks_of((tokens + 1).min(self.limits.context)) <= free;
            let sequence = match self.preempted.front() {
                Some(sequence) if !fits(sequence.tokens.len()) => return,
                Some(_) => self.preempted.pop_front(),
                None => next(&fits).map(|request| {
                    self.arrivals += 1;
                    Sequence::new(request, self.arrivals)
                }),
            };
            let Some(sequence) = sequence else { return };
            promised += blocks_of((sequence.tokens.len() + 1).min(self.limits.context));
            self.running.push(sequence);
        }
    }

    /// Decides the next step and gives its sequences their blocks.
    pub fn plan(&mut self) -> Vec<Slice> {
        self.running.sort_by_key(|sequence| sequence.arrival);
        // Those that need one token come first.
        let mut order: Vec<u64> = self.running.iter().map(|sequence| sequence.arrival).collect();
        order.sort_by_key(|arrival| {
            (self.find(*arrival).is_some_and(|s| !self.running[s].decodes()), *arrival)
        });
        let mut budget = self.limits.tokens;
        let mut slices = Vec::new();
        for arrival in order {
            let Some(index) = self.find(arrival).filter(|_| budget > 0) else { continue };
            let len = (self.running[index].tokens.len() - self.running[index].computed).min(budget);
            if self.make_room(arrival, len, &mut slices) {
                budget -= len;
                slices.push((arrival, len));
            }
        }
        slices.into_iter().filter_map(|(arrival, len)| self.slice(arrival, len)).collect()
    }

    fn slice(&self, arrival: u64, len: usize) -> Option<Slice> {
        let sequence = self.find(arrival)?;
        let Sequence { computed, tokens, .. } = &self.running[sequence];
        Some(Slice { sequence, start: *computed, len, draws: computed + len == tokens.len() })
    }

    fn find(&self, arrival: u64) -> Option<usize> {
        self.running.iter().position(|sequence| sequence.arrival == arrival)
    }

    /// Gives a sequence blocks for `len` more tokens, taking them from those that came later; false when it had to
    /// go itself.
    fn make_room(&mut self, arrival: u64, len: usize, slices: &mut Vec<(u64, usize)>) -> bool {
        loop {
            let Some(index) = self.find(arrival) else { return false };
            let sequence = &mut self.running[index];
            if self.blocks.grow(&mut sequence.blocks, blocks_of(sequence.computed + len)) {
                return true;
            }
            let Some(last) = self.running.iter().map(|sequence| sequence.arrival).max() else { return false };
            slices.retain(|(planned, _)| *planned != last);
            self.preempt(last);
            if last == arrival {
                return false;
            }
        }
    }

    fn preempt(&mut self, arrival: u64) {
        let Some(index) = self.find(arrival) else { return };
        let mut sequence = self.running.remove(index);
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        self.preemptions += 1;
        self.preempted.push_back(sequence);
        self.preempted.make_contiguous().sort_by_key(|sequence| sequence.arrival);
    }

    /// Notes that a slice is in the cache.
    pub fn computed(&mut self, slice: &Slice) {
        self.running[slice.sequence].computed += slice.len;
    }

    /// Prompt tokens of a slice that were computed for the first time or again.
    pub fn prompt_tokens(&self, slice: &Slice) -> usize {
        let end = (slice.start + slice.len).min(self.running[slice.sequence].prompt);
        end.saturating_sub(slice.start)
    }

    /// Lets go of sequences that ended.
    pub fn retire(&mut self) {
        let mut ended: Vec<usize> =
            (0..self.running.len()).filter(|i| self.running[*i].finish.is_some()).collect();
        ended.sort_by_key(|index| Reverse(*index));
        for index in ended {
            let mut sequence = self.running.remove(index);
            self.blocks.release(&mut sequence.blocks);
            if let Some(finish) = sequence.finish.take() {
                sequence.report(finish);
            }
        }
    }

    /// All sequences, to be ended from outside; their blocks are not given back.
    pub fn drain(&mut self) -> impl Iterator<Item = Sequence> + '_ {
        self.running.drain(..).chain(self.preempted.drain(..))
    }
}

impl Sequence {
    fn decodes(&self) -> bool {
        self.tokens.len() - self.computed == 1
    }

    /// Ends a drained sequence.
    pub fn end(mut self, finish: Finish) {
        self.report(finish);
    }
}

fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}
