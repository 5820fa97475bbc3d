//! Drawing the next token from logits.
//!
//! In this order: logit bias, penalties, the constraint, `min_tokens`, temperature, min-p, top-k, top-p, the draw.
//! Log-probabilities are of the model's own distribution, before all of it, as in OpenAI's API.

mod adjust;
#[cfg(test)]
mod tests;
mod truncate;

use adjust::Seen;
pub(crate) use truncate::argmax;
use truncate::{kept, most_likely};

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
    seen: Seen,
    drawn: u64,
}

impl Sampler {
    pub fn new(params: SamplingParams, constraint: Option<Box<dyn Constraint>>, prompt: &[u32]) -> Self {
        let seen = Seen::new(&params, prompt);
        Self { params, constraint, seen, drawn: 0 }
    }

    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Draws the next token and takes it for granted. `buffer` is scratch.
    pub fn draw(&mut self, logits: &[f32], buffer: &mut Vec<f32>) -> Result<Drawn, DrawError> {
        if !logits.get(argmax(logits) as usize).is_some_and(|logit| logit.is_finite()) {
            return Err(DrawError::NotFinite { index: self.drawn });
        }
        let id = if self.changes_logits() {
            buffer.clear();
            buffer.extend_from_slice(logits);
            self.adjust(buffer)?;
            choose(buffer, &self.params, self.drawn)
        } else {
            choose(logits, &self.params, self.drawn)
        };
        let last = match &mut self.constraint {
            Some(constraint) => constraint.accept(id).map_err(DrawError::Constraint)?,
            None => false,
        };
        self.seen.add(id);
        self.drawn += 1;
        Ok(Drawn { id, logprob: self.params.logprobs.map(|top| logprobs(logits, id, top)), last })
    }

    fn changes_logits(&self) -> bool {
        self.constraint.is_some()
            || self.seen.counts()
            || !self.params.logit_bias.is_empty()
            || self.withholds_stop()
    }

    fn withholds_stop(&self) -> bool {
        self.drawn < u64::from(self.params.min_tokens) && !self.params.stop_token_ids.is_empty()
    }

    fn adjust(&mut self, logits: &mut [f32]) -> Result<(), DrawError> {
        adjust::bias(logits, &self.params.logit_bias);
        self.seen.penalise(logits, &self.params);
        if let Some(constraint) = &mut self.constraint {
            constraint.forbid(logits).map_err(DrawError::Constraint)?;
        }
        if self.withholds_stop() {
            adjust::withhold(logits, &self.params.stop_token_ids);
        }
        let allowed = logits.iter().any(|logit| *logit > f32::NEG_INFINITY);
        if allowed { Ok(()) } else { Err(DrawError::NothingAllowed) }
    }
}

/// Draw number `index` from adjusted logits, of which at least one is finite.
fn choose(logits: &[f32], params: &SamplingParams, index: u64) -> u32 {
    let best = argmax(logits);
    if params.temperature <= 0.0 || params.top_k == 1 {
        return best;
    }
    let temperature = f64::from(params.temperature);
    let max = f64::from(logits[best as usize]);
    let weight = |id: u32| ((f64::from(logits[id as usize]) - max) / temperature).exp();
    let kept = kept(logits, params, weight);
    let total: f64 = kept.iter().map(|id| weight(*id)).sum();
    let mut left = uniform(params.seed, index) * total;
    for id in &kept {
        left -= weight(*id);
        if left < 0.0 {
            return *id;
        }
    }
    best
}

/// Log-probabilities of the raw distribution: of `drawn` and of the `top` most likely tokens.
fn logprobs(logits: &[f32], drawn: u32, top: u32) -> TokenLogprob {
    let max = f64::from(logits[argmax(logits) as usize]);
    let log_sum = max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln();
    let logprob = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    let top = most_likely(logits, top as usize).into_iter().map(|id| (id, logprob(id))).collect();
    TokenLogprob { logprob: logprob(drawn), top }
}

/// A number in [0, 1) that depends on (seed, index) alone: splitmix64 of a counter.
fn uniform(seed: u64, index: u64) -> f64 {
    let mut z = mix(seed).wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = mix(z);
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// The splitmix64 finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
