//! What the next step computes: continuous batching as a synchronous state machine.
//!
//! Running sequences get their next token first; what is left of the token budget goes to prompts, in chunks, so a
//! long prompt delays others by one step's budget at most. Beginnings that are in the cache already are taken from
//! there. What is then left of budget and blocks goes to drafts. When blocks run out the sequence that is last in line
//! gives its own back and is computed again later; draws depend on the seed and their number alone, so it continues with
//! the same text.

mod drafting;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use gqla_kernels::attention::BLOCK_TOKENS;

use crate::{
    DraftSource, Finish, Request, Speculation, SpeculationStats,
    blocks::{BlockCopy, BlockPool, Full},
    sequence::{Progress, Rank, Sequence},
    speculation::StepTimes,
};

/// Bounds on what runs at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of a step; more than `sequences`, so that a prompt moves on however many sequences decode.
    pub tokens: usize,
    /// Tokens of a sequence; all of them fit the cache.
    pub context: usize,
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
    /// Rows of drafts that follow.
    pub drafts: usize,
}

impl Slice {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.len + self.drafts
    }

    /// Rows that logits are wanted of: the last ones.
    pub fn wanted(&self) -> usize {
        if self.draws { 1 + self.drafts } else { 0 }
    }
}

/// What a step does.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub slices: Vec<Slice>,
    /// Blocks to copy, in this order, before anything is written.
    pub copies: Vec<BlockCopy>,
}

/// Tokens of beginnings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PrefixCounts {
    /// Looked for in the cache.
    pub queries: u64,
    /// Found there.
    pub hits: u64,
}

/// Sequences, their blocks and their order.
pub(crate) struct Scheduler {
    pub running: Vec<Sequence>,
    preempted: BTreeMap<Rank, Sequence>,
    blocks: BlockPool,
    limits: Limits,
    preemptions: u64,
    prefixes: PrefixCounts,
    speculation: Option<Speculation>,
    speculated: SpeculationStats,
    times: StepTimes,
}

impl Scheduler {
    pub fn new(blocks: usize, limits: Limits, speculation: Option<Speculation>) -> Self {
        Self {
            running: Vec::new(),
            preempted: BTreeMap::new(),
            blocks: BlockPool::new(blocks),
            limits,
            preemptions: 0,
            prefixes: PrefixCounts::default(),
            speculation,
            speculated: SpeculationStats::default(),
            times: StepTimes::default(),
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

    /// Blocks whose content matters.
    pub fn live_blocks(&self) -> Vec<u32> {
        self.blocks.live()
    }

    pub fn prefixes(&self) -> PrefixCounts {
        self.prefixes
    }

    pub fn speculated(&self) -> SpeculationStats {
        self.speculated
    }

    /// Lets go of sequences that nobody waits for any more.
    pub fn dismiss(&mut self) {
        for sequence in self.running.iter_mut().filter(|sequence| sequence.is_cancelled()) {
            sequence.finish = Some(Finish::Aborted);
        }
        self.retire();
        let gone: Vec<_> =
            self.preempted.extract_if(.., |_, sequence| sequence.is_cancelled()).map(|(_, s)| s).collect();
        for sequence in gone {
            sequence.end(Finish::Aborted);
        }
    }

    /// Lets sequences in, in their order, while there is room for their tokens and one more. The first in line is
    /// waited for, so that many small requests cannot keep a large one out.
    pub fn admit(&mut self, queue: &mut BTreeMap<Rank, Request>) {
        // Blocks that sequences let in before will need when their prompts are computed.
        let needs = |s: &Sequence| blocks_of(s.tokens.len() + 1).saturating_sub(s.blocks.len());
        let mut promised: usize = self.running.iter().map(needs).sum();
        while self.running.len() < self.limits.sequences {
            let fresh = queue.first_key_value().map(|(rank, request)| (*rank, request.prompt.len()));
            let back = self.preempted.first_key_value().map(|(rank, s)| (*rank, s.tokens.len()));
            let Some((rank, tokens)) = fresh.into_iter().chain(back).min() else { return };
            promised += blocks_of((tokens + 1).min(self.limits.context));
            if promised > self.blocks.free() {
                return;
            }
            let lookahead = self.speculation.map_or(0, |speculation| speculation.source().lookahead());
            let new = queue.remove(&rank).map(|request| Sequence::new(request, rank, lookahead));
            self.running.extend(new.or_else(|| self.preempted.remove(&rank)));
        }
    }

    /// Decides the next step and gives its sequences their blocks.
    pub fn plan(&mut self) -> Plan {
        self.running.sort_by_key(|sequence| sequence.rank);
        // Those that need one token come first.
        let mut order: Vec<(bool, Rank)> = self.running.iter().map(|s| (!s.decodes(), s.rank)).collect();
        order.sort();
        let mut budget = self.limits.tokens;
        let (mut planned, mut copies) = (Vec::new(), Vec::new());
        for (prompt, rank) in order {
            let Some(index) = self.find(rank).filter(|_| budget > 0) else { continue };
            if prompt {
                self.adopt(index);
            }
            let len = (self.running[index].tokens.len() - self.running[index].computed).min(budget);
            if self.make_room(rank, len, &mut planned, &mut copies) {
                budget -= len;
                planned.push((rank, len));
            }
        }
        let mut slices: Vec<_> =
            planned.into_iter().filter_map(|(rank, len)| self.slice(rank, len)).collect();
        if let Some(speculation) = self.speculation {
            self.speculate(speculation, &mut slices, budget);
        }
        Plan { slices, copies }
    }

    /// Adds rows of drafts to the slices of sequences that decode, `budget` at most. They come last and preempt nobody.
    fn speculate(&mut self, speculation: Speculation, slices: &mut [Slice], mut budget: usize) {
        let rows = slices.iter().map(|slice| slice.len).sum();
        for slice in slices.iter_mut().filter(|slice| slice.draws && slice.len == 1) {
            let most = self.depth(speculation, slice.sequence, budget, rows);
            let sequence = &mut self.running[slice.sequence];
            match speculation.source() {
                DraftSource::PromptLookup(lookup) => sequence.drafts = lookup.draft(&sequence.tokens, most),
                // Made after the last step, before it was known what this one is.
                DraftSource::PredictionLayer => sequence.drafts.truncate(most),
            }
            slice.drafts =
                self.make_room_for_drafts(slice.sequence, self.running[slice.sequence].drafts.len());
            self.running[slice.sequence].drafts.truncate(slice.drafts);
            budget -= slice.drafts;
        }
    }

    fn slice(&self, rank: Rank, len: usize) -> Option<Slice> {
        let sequence = self.find(rank)?;
        let Sequence { computed, tokens, .. } = &self.running[sequence];
        Some(Slice { sequence, start: *computed, len, draws: computed + len == tokens.len(), drafts: 0 })
    }

    fn find(&self, rank: Rank) -> Option<usize> {
        self.running.iter().position(|sequence| sequence.rank == rank)
    }

    /// Takes blocks that hold the sequence's next tokens already. Asked before every chunk, so that sequences with
    /// one beginning that came together compute it once.
    fn adopt(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        let tokens = sequence.tokens.len();
        if sequence.blocks.is_empty() {
            self.prefixes.queries += tokens as u64;
        }
        while sequence.computed == sequence.blocks.len() * BLOCK_TOKENS {
            let Some(name) = sequence.prefix(sequence.blocks.len() + 1) else { return };
            let Some(block) = self.blocks.share(&name) else { return };
            sequence.blocks.push(block);
            // The last token is computed in any case: the next one is drawn from its logits.
            let found = BLOCK_TOKENS.min(tokens - 1 - sequence.computed);
            sequence.computed += found;
            self.prefixes.hits += found as u64;
        }
    }

    /// Gives a sequence blocks for `len` more tokens, taking them from those that are behind it in line; false when
    /// it had to go itself.
    fn make_room(
        &mut self,
        rank: Rank,
        len: usize,
        planned: &mut Vec<(Rank, usize)>,
        copies: &mut Vec<BlockCopy>,
    ) -> bool {
        loop {
            let Some(index) = self.find(rank) else { return false };
            if let Ok(copy) = self.claim(index, len) {
                copies.extend(copy);
                return true;
            }
            let Some(last) = self.running.iter().map(|sequence| sequence.rank).max() else { return false };
            planned.retain(|(planned, _)| *planned != last);
            self.preempt(last);
            if last == rank {
                return false;
            }
        }
    }

    /// Blocks that the sequence can write its next `len` tokens to. Only the first of them may hold tokens already.
    fn claim(&mut self, index: usize, len: usize) -> Result<Option<BlockCopy>, Full> {
        let Sequence { blocks, computed, .. } = &mut self.running[index];
        self.blocks.grow(blocks, blocks_of(*computed + len))?;
        self.blocks.own(&mut blocks[*computed / BLOCK_TOKENS])
    }

    fn preempt(&mut self, rank: Rank) {
        let Some(index) = self.find(rank) else { return };
        let mut sequence = self.running.remove(index);
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        sequence.drafts.clear();
        self.preemptions += 1;
        self.preempted.insert(rank, sequence);
    }

    /// Notes that a slice and the drafts that were accepted are in the cache, and lets others find the blocks they
    /// filled. Keys of other drafts are there too, where the next step writes.
    pub fn computed(&mut self, slice: &Slice, progress: Progress) {
        if slice.draws {
            self.speculated.add(slice.drafts, progress.accepted);
        }
        let sequence = &mut self.running[slice.sequence];
        let first = sequence.computed / BLOCK_TOKENS;
        sequence.computed += slice.len + progress.accepted;
        for block in first..sequence.computed / BLOCK_TOKENS {
            let Some(name) = sequence.prefix(block + 1) else { return };
            self.blocks.name(sequence.blocks[block], name);
        }
    }

    /// Notes how long a step took; drafts are weighed by steps that computed nothing of a prompt.
    pub fn took(&mut self, slices: &[Slice], seconds: f64) {
        if self.speculation.is_some() && slices.iter().all(|slice| slice.draws && slice.len == 1) {
            self.times.add(slices.iter().map(Slice::rows).sum(), seconds);
        }
    }

    /// Prompt tokens of a slice that were computed for the first time or again.
    pub fn prompt_tokens(&self, slice: &Slice) -> usize {
        self.running[slice.sequence].prompt_tokens(slice.start, slice.len)
    }

    /// Lets go of sequences that ended, and of blocks that only drafts needed.
    pub fn retire(&mut self) {
        let ended: Vec<Sequence> = self.running.extract_if(.., |s| s.finish.is_some()).collect();
        for mut sequence in ended {
            self.blocks.release(&mut sequence.blocks);
            if let Some(finish) = sequence.finish.take() {
                sequence.end(finish);
            }
        }
        for sequence in &mut self.running {
            self.blocks.shrink(&mut sequence.blocks, blocks_of(sequence.tokens.len()));
        }
    }

    /// All sequences, to be ended from outside; their blocks are not given back.
    pub fn drain(&mut self) -> impl Iterator<Item = Sequence> + '_ {
        self.running.drain(..).chain(std::mem::take(&mut self.preempted).into_values())
    }
}

fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}
