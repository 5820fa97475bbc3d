//! How many drafts a sequence gets, and what the prediction layer is given to make them.
//!
//! After a step the layer is given every position that the step computed for good, with the token that follows it, of
//! prompts too: so its cache has what the decoder's has, and a block's name covers one token more. Where drafts pay, it is
//! then given its own rows, one position later for each further draft. What it writes there is overwritten once the
//! position is computed.

use gqla_kernels::attention::{BLOCK_TOKENS, Segment};

use super::{Scheduler, Slice, blocks_of};
use crate::{DraftDepth, DraftSource, Speculation, sequence::Sequence, speculation::worthwhile};

/// One call of the prediction layer; none is due where it is empty.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(super) parts: Vec<Part>,
    /// Rows of the step, or of the round before, that the call's rows continue.
    pub rows: Vec<usize>,
    /// The token that follows each.
    pub next: Vec<u32>,
    /// Rows of the call that drafts are wanted of.
    pub wanted: Vec<usize>,
}

/// The rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// Index among the running sequences.
    pub sequence: usize,
    /// Position of the first.
    pub start: usize,
    pub rows: usize,
    /// Drafts to make, of the last row and then of what it becomes.
    pub drafts: usize,
}

impl Round {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn segments<'a>(&self, running: &'a [Sequence]) -> Vec<Segment<'a>> {
        let mut first_row = 0;
        let segment = |part: &Part| {
            let Part { sequence, start, rows, .. } = *part;
            first_row += rows;
            Segment { first_row: first_row - rows, rows, start, blocks: &running[sequence].blocks }
        };
        self.parts.iter().map(segment).collect()
    }

    /// Adds rows that continue those from `first` on, one for each of the tokens that follow.
    fn give(&mut self, sequence: usize, start: usize, first: usize, next: &[u32], drafts: usize) {
        if next.is_empty() {
            return;
        }
        self.parts.push(Part { sequence, start, rows: next.len(), drafts });
        self.rows.extend(first..first + next.len());
        self.next.extend(next);
        if drafts > 0 {
            self.wanted.push(self.rows.len() - 1);
        }
    }
}

impl Scheduler {
    /// What the prediction layer, if drafts come from one, is given of a step whose tokens were drawn.
    pub fn after(&mut self, slices: &[Slice]) -> Round {
        let mut round = Round::default();
        let Some(speculation) = self.speculation else { return round };
        if speculation.source() != DraftSource::PredictionLayer {
            return round;
        }
        let (rows, mut first_row) = (self.next_rows(), 0);
        let mut budget = self.limits.tokens - rows;
        for slice in slices {
            let mut drafts = 0;
            if slice.draws && self.running[slice.sequence].finish.is_none() {
                drafts = self.depth(speculation, slice.sequence, budget, rows);
                drafts = self.make_room_for_drafts(slice.sequence, drafts);
                budget -= drafts;
            }
            let Sequence { tokens, computed, .. } = &self.running[slice.sequence];
            // Nothing follows the last token of a text that ended.
            let end = tokens.len().min(computed + 1);
            round.give(slice.sequence, slice.start, first_row, &tokens[slice.start + 1..end], drafts);
            first_row += slice.rows();
        }
        round
    }

    /// Takes a round's drafts, one for each row they were wanted of, and answers what the layer is given next.
    pub fn drafted(&mut self, round: &Round, drafts: &[u32]) -> Round {
        let mut next = Round::default();
        let drafting = round.parts.iter().filter(|part| part.drafts > 0);
        for ((part, row), draft) in drafting.zip(&round.wanted).zip(drafts) {
            self.running[part.sequence].drafts.push(*draft);
            if part.drafts > 1 {
                next.give(part.sequence, part.start + part.rows, *row, &[*draft], part.drafts - 1);
            }
        }
        next
    }

    /// Rows of the next step without drafts, and without those who may be let in until then.
    fn next_rows(&self) -> usize {
        let running = self.running.iter().filter(|sequence| sequence.finish.is_none());
        let rows: usize = running.map(|sequence| sequence.tokens.len() - sequence.computed).sum();
        rows.min(self.limits.tokens)
    }

    /// Drafts that a sequence gets, `budget` at most, in a step of `rows` rows without drafts.
    pub(super) fn depth(
        &self,
        speculation: Speculation,
        sequence: usize,
        budget: usize,
        rows: usize,
    ) -> usize {
        let sequence = &self.running[sequence];
        let most = speculation.tokens().min(budget).min(sequence.remaining().saturating_sub(1));
        match speculation.depth() {
            DraftDepth::Adaptive => {
                worthwhile(most, rows, sequence.acceptance.chance(), self.times.fixed_rows())
            }
            DraftDepth::Fixed => most,
        }
    }

    /// Gives a sequence blocks for `drafts` tokens after its last, or answers how many fit those it has.
    pub(super) fn make_room_for_drafts(&mut self, sequence: usize, drafts: usize) -> usize {
        let Sequence { blocks, tokens, .. } = &mut self.running[sequence];
        match self.blocks.grow(blocks, blocks_of(tokens.len() + drafts)) {
            Ok(()) => drafts,
            Err(_) => drafts.min((blocks.len() * BLOCK_TOKENS).saturating_sub(tokens.len())),
        }
    }
}
