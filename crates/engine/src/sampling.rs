//! What drawing one sequence's tokens depends on: its parameters, its constraint and what it has drawn.
//!
//! In this order: logit bias, penalties, the constraint, `min_tokens`, temperature, min-p, top-k, top-p, the draw.
//! [`gqla_kernels::sample`] defines the steps on logits, for processor and device alike; log-probabilities are of the model's
//! own distribution, before all of it, as in OpenAI's API.

mod adjust;
#[cfg(test)]
mod tests;

use adjust::Edits;
use gqla_kernels::sample::{Choice, Cuts, Draw, NoToken, TokenMask};

use crate::{Constraint, SamplingParams, TokenLogprob};

/// Why no token can be drawn.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DrawError {
    /// A model that computes NaN or infinity.
    #[error("the logits of token {index} are not finite: the weights or the arithmetic are broken")]
    NotFinite { index: u64 },
    /// The constraint forbids every token.
    #[error("no token may follow: the vocabulary cannot express what the request asks for")]
    NothingAllowed,
    /// What the constraint says.
    #[error("{0}")]
    Constraint(String),
}

/// A drawn token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub id: u32,
    pub logprob: Option<TokenLogprob>,
    /// Nothing may come after it.
    pub last: bool,
}

/// Draws the tokens of one sequence.
pub(crate) struct Sampler {
    params: SamplingParams,
    constraint: Option<Box<dyn Constraint>>,
    edits: Edits,
    drawn: u64,
}

impl Sampler {
    pub fn new(params: SamplingParams, constraint: Option<Box<dyn Constraint>>, prompt: &[u32]) -> Self {
        let edits = Edits::new(&params, prompt);
        Self { params, constraint, edits, drawn: 0 }
    }

    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// How the next token is drawn, from row `row` of logits of `vocab` tokens.
    pub fn ask(&mut self, row: usize, vocab: usize) -> Result<Draw, DrawError> {
        let SamplingParams { temperature, min_p, top_k, top_p, logprobs, seed, .. } = self.params;
        Ok(Draw {
            row,
            edits: self.edits.all(),
            allowed: self.allowed(vocab)?,
            cuts: Cuts { temperature, min_p, top_k, top_p },
            random: random(seed, self.drawn),
            logprobs,
        })
    }

    /// Takes what was chosen as asked for granted.
    pub fn take(&mut self, choice: Result<Choice, NoToken>) -> Result<Drawn, DrawError> {
        let Choice { id, logprob } = choice.map_err(|none| match none {
            NoToken::NotFinite => DrawError::NotFinite { index: self.drawn },
            NoToken::NothingAllowed => DrawError::NothingAllowed,
        })?;
        let last = match &mut self.constraint {
            Some(constraint) => constraint.accept(id).map_err(DrawError::Constraint)?,
            None => false,
        };
        self.edits.add(id);
        self.drawn += 1;
        Ok(Drawn { id, logprob, last })
    }

    /// Tokens that may come next; `None` allows all. Stop tokens that are to wait may come where nothing else may.
    fn allowed(&mut self, vocab: usize) -> Result<Option<TokenMask>, DrawError> {
        let withholds =
            self.drawn < u64::from(self.params.min_tokens) && !self.params.stop_token_ids.is_empty();
        if self.constraint.is_none() && !withholds {
            return Ok(None);
        }
        let mut allowed = TokenMask::all(vocab);
        if let Some(constraint) = &mut self.constraint {
            constraint.forbid(&mut allowed).map_err(DrawError::Constraint)?;
        }
        if withholds {
            let mut others = allowed.clone();
            self.params.stop_token_ids.iter().for_each(|id| others.forbid(*id as usize));
            if !others.is_empty() {
                allowed = others;
            }
        }
        Ok(Some(allowed))
    }

    /// Draws the next token from one row of logits.
    #[cfg(test)]
    pub fn draw(&mut self, logits: &[f32]) -> Result<Drawn, DrawError> {
        let draw = self.ask(0, logits.len())?;
        self.take(gqla_kernels::sample::choose(logits, &draw, &mut Vec::new()))
    }
}

/// A number in [0, 2^64) that depends on (seed, index) alone: splitmix64 of a counter.
fn random(seed: u64, index: u64) -> u64 {
    mix(mix(seed).wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)))
}

/// The splitmix64 finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
