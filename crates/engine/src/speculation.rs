//! Guessing a sequence's next tokens, so that one step can yield several.
//!
//! A sequence with `k` drafts gets `1 + k` rows of a step, and logits of them all. Token i is drawn from row i as if
//! nothing had been drafted: through the whole sampling pipeline, with the number that its seed and i give. A draft is
//! accepted if it is the token that was drawn, and the first that is not ends the step. For a draft that is certain of
//! itself this is rejection sampling, exactly: it is accepted with the probability the model gives it, and what is drawn
//! in its place follows the model's distribution without it. Unlike the usual form, which throws a second die, it also
//! leaves every text bit for bit what it is without drafts, whatever the seed, the batch and the drafts; penalties and
//! grammars see tokens one by one and never go back.

mod lookup;
mod pace;

pub use lookup::PromptLookup;
pub(crate) use pace::{Acceptance, StepTimes, worthwhile};

/// Drafts of a step of one sequence at most: as many as a plan takes.
pub const MOST_DRAFTS: usize = 15;

/// Where drafts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftSource {
    /// What followed the same tokens earlier in the sequence.
    PromptLookup(PromptLookup),
    /// The model's own multi-token-prediction layer, greedily; it is given its own rows for every draft after the first.
    PredictionLayer,
}

impl DraftSource {
    /// Tokens past a block's end that its content depends on. The prediction layer's row of a token is made of that token
    /// and the one that follows it.
    pub(crate) fn lookahead(self) -> usize {
        usize::from(self == Self::PredictionLayer)
    }
}

/// How many of the drafts that a step may have it gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DraftDepth {
    /// As many as pay, by what steps took and how drafts fared lately.
    #[default]
    Adaptive,
    /// As many as there are, so that steps are the same whatever they take.
    Fixed,
}

/// Whether and how an engine drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    source: DraftSource,
    tokens: usize,
    depth: DraftDepth,
}

/// Drafts that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpeculationError {
    /// None, or too many.
    #[error("{tokens} drafted tokens per step, expected 1 to {MOST_DRAFTS}")]
    Tokens {
        /// What was asked for.
        tokens: usize,
    },
    /// Lengths that no n-gram has.
    #[error(
        "n-grams of {min} to {max} tokens, expected at least 1, at most {}, and no more at least than at most",
        PromptLookup::LONGEST
    )]
    NGrams {
        /// The shortest.
        min: usize,
        /// The longest.
        max: usize,
    },
}

/// The model cannot draft for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the checkpoint has no multi-token-prediction layer (num_nextn_predict_layers is 0 in its config): draft without \
     one, or serve a checkpoint that kept the layer"
)]
pub struct NoDraftLayer;

impl Speculation {
    /// Drafts at most `tokens` tokens per step and sequence, 1 to [`MOST_DRAFTS`]; fewer where they would cost more
    /// than they give, unless [`Self::with_depth`] says otherwise.
    ///
    /// # Errors
    /// [`SpeculationError::Tokens`] outside that range.
    pub fn new(source: DraftSource, tokens: usize) -> Result<Self, SpeculationError> {
        match tokens {
            1..=MOST_DRAFTS => Ok(Self { source, tokens, depth: DraftDepth::default() }),
            _ => Err(SpeculationError::Tokens { tokens }),
        }
    }

    /// The same, of which a step gets so many.
    #[must_use]
    pub fn with_depth(self, depth: DraftDepth) -> Self {
        Self { depth, ..self }
    }

    /// Where drafts come from.
    pub fn source(&self) -> DraftSource {
        self.source
    }

    /// Drafts per step and sequence at most.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// How many of them a step gets.
    pub fn depth(&self) -> DraftDepth {
        self.depth
    }
}

/// Rows of a step of up to `rows` that logits are wanted of, at most: the last of each of `sequences` and its drafts.
pub(crate) fn drawn_rows(speculation: Option<Speculation>, sequences: usize, rows: usize) -> usize {
    let each = 1 + speculation.map_or(0, |speculation| speculation.tokens());
    sequences.saturating_mul(each).min(rows)
}

/// What became of drafts; ever growing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpeculationStats {
    /// Steps of single sequences that verified drafts.
    pub drafts: u64,
    /// Drafted tokens.
    pub draft_tokens: u64,
    /// Drafted tokens that were drawn and delivered.
    pub accepted_tokens: u64,
    /// The same by their place among the drafts of a step.
    pub accepted_per_position: [u64; MOST_DRAFTS],
}

impl SpeculationStats {
    /// Counts a step of one sequence.
    pub(crate) fn add(&mut self, drafted: usize, accepted: usize) {
        self.drafts += u64::from(drafted > 0);
        self.draft_tokens += drafted as u64;
        self.accepted_tokens += accepted as u64;
        self.accepted_per_position.iter_mut().take(accepted).for_each(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_kept_by_position() {
        let mut stats = SpeculationStats::default();
        for (drafted, accepted) in [(3, 2), (2, 0), (0, 0), (1, 1)] {
            stats.add(drafted, accepted);
        }
        assert_eq!((stats.drafts, stats.draft_tokens, stats.accepted_tokens), (3, 6, 3));
        assert_eq!(stats.accepted_per_position[..3], [2, 1, 0]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let source = DraftSource::PromptLookup(PromptLookup::default());
        for tokens in [0, MOST_DRAFTS + 1] {
            let error = Speculation::new(source, tokens).unwrap_err().to_string();
            assert_eq!(error, format!("{tokens} drafted tokens per step, expected 1 to 15"));
        }
        for (min, max) in [(0, 3), (4, 3), (2, PromptLookup::LONGEST + 1)] {
            assert_eq!(PromptLookup::new(min, max), Err(SpeculationError::NGrams { min, max }));
        }
    }
}
