//! What is done to logits before a token is drawn from them.

use std::collections::HashMap;

use crate::SamplingParams;

/// Adds to the logits of single tokens; ids were checked when the request came.
pub(super) fn bias(logits: &mut [f32], biases: &[(u32, f32)]) {
    for (id, bias) in biases {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
}

/// Forbids the stop tokens, unless nothing else is allowed.
pub(super) fn withhold(logits: &mut [f32], stops: &[u32]) {
    let other = |(id, logit): (usize, &f32)| *logit > f32::NEG_INFINITY && !stops.contains(&(id as u32));
    if !logits.iter().enumerate().any(other) {
        return;
    }
    for id in stops {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Tokens that penalties look at. Nothing is kept where no penalty asks for it.
#[derive(Debug)]
pub(super) struct Seen {
    /// How often each was drawn; 0 for tokens of the prompt alone.
    times: Option<HashMap<u32, u32>>,
}

impl Seen {
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let repetition = params.repetition_penalty != 1.0;
        let penalised = repetition || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        let prompt = if repetition { prompt } else { &[] };
        Self { times: penalised.then(|| prompt.iter().map(|id| (*id, 0)).collect()) }
    }

    /// Whether any penalty is in force.
    pub fn counts(&self) -> bool {
        self.times.is_some()
    }

    pub fn add(&mut self, id: u32) {
        if let Some(times) = &mut self.times {
            *times.entry(id).or_default() += 1;
        }
    }

    /// `logit ← logit / r` (or `· r` when negative) `− f · times − p · [times > 0]`
    pub fn penalise(&self, logits: &mut [f32], params: &SamplingParams) {
        for (id, times) in self.times.iter().flatten() {
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            let r = params.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
            *logit -= params.frequency_penalty * *times as f32;
            if *times > 0 {
                *logit -= params.presence_penalty;
            }
        }
    }
}
