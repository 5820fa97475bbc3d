//! What bias and penalties do to the logits of single tokens.

use std::collections::{BTreeMap, HashMap};

use gqla_kernels::sample::Edit;

use crate::SamplingParams;

/// Edits of tokens with a bias, and where a penalty asks for it of those that were seen.
#[derive(Debug)]
pub(super) struct Edits {
    edits: BTreeMap<u32, Edit>,
    /// How often each token was drawn; `None` where no penalty looks at it.
    times: Option<HashMap<u32, u32>>,
    repetition: f32,
    frequency: f32,
    presence: f32,
}

impl Edits {
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let SamplingParams {
            repetition_penalty: repetition,
            frequency_penalty: frequency,
            presence_penalty: presence,
            ..
        } = *params;
        let repeats = repetition != 1.0;
        let mut edits = BTreeMap::new();
        let mut edit = |id: u32, change: &dyn Fn(&mut Edit)| {
            change(edits.entry(id).or_insert(Edit::new(id)));
        };
        params.logit_bias.iter().for_each(|(id, bias)| edit(*id, &|edit| edit.bias += bias));
        if repeats {
            prompt.iter().for_each(|id| edit(*id, &|edit| edit.repetition = repetition));
        }
        let penalises = repeats || frequency != 0.0 || presence != 0.0;
        Self { edits, times: penalises.then(HashMap::new), repetition, frequency, presence }
    }

    /// Notes that a token was drawn.
    pub fn add(&mut self, id: u32) {
        let Some(times) = &mut self.times else { return };
        let times = times.entry(id).or_default();
        *times += 1;
        let edit = self.edits.entry(id).or_insert(Edit::new(id));
        edit.repetition = self.repetition;
        edit.less = self.frequency * *times as f32 + self.presence;
    }

    /// All of them, by ascending id.
    pub fn all(&self) -> Vec<Edit> {
        self.edits.values().copied().collect()
    }
}
