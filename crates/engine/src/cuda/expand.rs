//! From the absorb path to the GQA path while sequences run.

use std::ops::Range;

use gqla_kernels::{
    attention::BLOCK_TOKENS,
    device::{AttentionScratch, Decode, DecodeCache, DeviceError, PageRun, Splits, Tables, UpProjection},
};
use gqla_model::DecodePath;

use super::{forward::Workspace, model::CudaModel};

/// What the GQA path has and the absorb path has not.
pub(super) struct Expanded {
    pub decode: Decode,
    /// Of every layer, the prediction layer's last.
    pub up: Vec<UpProjection>,
}

impl CudaModel {
    /// Goes on along the GQA path: layer by layer, so that no more than one layer's cache exists twice. Pages keep their
    /// numbers, and those of `live`, which ascend, their content. A model that was not made for it stays as it is.
    pub(super) fn expand(&mut self, workspace: &mut Workspace, live: &[u32]) -> Result<(), DeviceError> {
        let Some(Expanded { decode, up }) = self.expanded.take() else { return Ok(()) };
        let Workspace { caches, pages, tables, rows, longest, activations, .. } = workspace;
        let (device, shape, gqa) = (&self.device, &self.shape, DecodePath::Gqa);
        activations.scratch = AttentionScratch::new(device, shape, gqa, Splits::ENGINE, [*rows, *longest])?;
        *tables = Tables::room(device, decode.tiling(Splits::ENGINE), [*rows, *longest])?;
        let runs = runs(live, *rows / BLOCK_TOKENS).into_iter().map(|run| PageRun::new(device, run, *pages));
        let runs: Vec<PageRun> = runs.collect::<Result<_, _>>()?;
        for ((layer, cache), up) in self.parameters.all_layers_mut().zip(caches).zip(up) {
            let mut expanded = DecodeCache::new(device, shape, gqa, *pages)?;
            for run in &runs {
                let caches = (&*cache, &mut expanded);
                self.attention.expand(device, &up, caches, run, &mut activations.scratch)?;
            }
            *cache = expanded;
            layer.up = up;
        }
        self.attention.decode = decode;
        self.path = gqa;
        Ok(())
    }
}

/// Ascending pages as runs of up to `most`.
fn runs(pages: &[u32], most: usize) -> Vec<Range<u32>> {
    let follows = |a: &u32, b: &u32| a + 1 == *b;
    let range = |run: &[u32]| run[0]..run[0] + run.len() as u32;
    pages.chunk_by(follows).flat_map(|run| run.chunks(most.max(1)).map(range)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_at_gaps_and_at_what_fits() {
        assert_eq!(runs(&[0, 1, 2, 4, 7, 8], 2), [0..2, 2..3, 4..5, 7..9]);
        assert!(runs(&[], 2).is_empty());
    }
}
