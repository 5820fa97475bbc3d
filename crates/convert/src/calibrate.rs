//! Streams calibration tokens through one layer at a time.
//!
//! Only the residual stream of all tokens is held (`tokens * D` floats); a layer's weights are read once, and its
//! activations survive only as second moments. The source and the partial-RoPE model each have a stream of their
//! own: after the first layer their activations differ, and a layer's latent must be observed in the model whose
//! earlier layers have lost their rope too.

use faer::Mat;
use rayon::prelude::*;

use crate::{
    forward::{LayerTail, Projection, RopeTable, add_attention, add_mlp, rms_norm},
    gram::Gram,
    progress::Observer,
};

/// Samples run side by side between two updates of the moments. A constant, so that sums do not depend on the
/// number of threads.
const BATCH: usize = 32;

/// The residual stream of every calibration token.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    hidden: Vec<f32>,
    /// Floats per sample.
    sample: usize,
}

/// What one step of a stream needs of a layer.
pub(crate) struct Step<'a, P> {
    pub(crate) input_layernorm: &'a [f32],
    pub(crate) projection: &'a P,
    /// `None` for the last layer, whose output nothing observes.
    pub(crate) tail: Option<&'a LayerTail>,
    pub(crate) rope: &'a RopeTable,
    pub(crate) eps: f32,
}

impl Stream {
    /// `hidden` is `[samples, length, width]`.
    pub(crate) fn new(hidden: Vec<f32>, length: usize, width: usize) -> Self {
        Self { hidden, sample: length * width }
    }

    /// Moves every token through a layer and returns the second moments of what its projection observes.
    pub(crate) fn advance<P: Projection>(&mut self, step: &Step<'_, P>, observer: &dyn Observer) -> Mat<f64> {
        let tokens = (self.sample / step.input_layernorm.len()) as u64;
        let mut gram = Gram::new(step.projection.observed_width());
        for batch in self.hidden.chunks_mut(BATCH * self.sample) {
            let samples = batch.par_chunks_mut(self.sample);
            let observed: Vec<Vec<f32>> = samples
                .map(|hidden| {
                    let observed = step.apply(hidden);
                    observer.advanced(tokens);
                    observed
                })
                .collect();
            observed.iter().for_each(|sample| gram.add(sample));
        }
        gram.symmetric()
    }
}

impl<P: Projection> Step<'_, P> {
    /// One layer over one sample, in place; returns the observed activations.
    fn apply(&self, hidden: &mut [f32]) -> Vec<f32> {
        let projected = self.projection.project(&rms_norm(hidden, self.input_layernorm, self.eps), self.rope);
        if let Some(tail) = self.tail {
            add_attention(hidden, &projected.attention, tail);
            add_mlp(hidden, tail, self.eps);
        }
        projected.observed
    }
}
