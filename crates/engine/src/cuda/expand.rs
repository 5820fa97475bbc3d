//! From the absorb path to the GQA path while sequences run.

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
        self.grouped = None;
        let Workspace { caches, pages, tables, rows, longest, activations, .. } = workspace;
        activations.grouped = None;
        let (device, shape, gqa) = (&self.device, &self.shape, DecodePath::Gqa);
        activations.scratch = AttentionScratch::new(device, shape, gqa, Splits::ENGINE, [*rows, *longest])?;
        *tables = Tables::room(device, decode.tiling(Splits::ENGINE), [*rows, *longest])?;
        let runs = PageRun::ranges(live, *rows / BLOCK_TOKENS)
            .map(|run| PageRun::new(device, run.clone(), run.start, *pages));
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
