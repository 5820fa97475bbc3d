//! Draft logits of a model's own prediction layer, as [`Model::draft_logits`](crate::cpu::Model::draft_logits) has them.

use gqla_kernels::{
    attention::Segment,
    device::{Destination, DeviceError, Heads, Norm, NormInput, Weights},
};

use super::{
    CudaLoadError, CudaModel,
    forward::{Stream, Workspace},
    model::Layer,
    step::Step,
};

/// The multi-token-prediction layer: from what the decoder made of a token, and the token that follows it, the token
/// after that. It shares the decoder's embedding and output head and has a cache of its own.
pub(super) struct DraftLayer {
    pub embedding_norm: Norm,
    pub hidden_norm: Norm,
    /// `[hidden, 2 hidden]`, of the embedding's half first.
    pub projection: Weights,
    pub layer: Layer,
    pub norm: Norm,
}

impl CudaModel {
    /// Draft logits of every position of one sequence, `[tokens, vocab]`: row i is of the token after `next[i]`, the token
    /// that follows token i.
    ///
    /// # Errors
    /// As [`Self::logits`], and when the model was not prepared to draft or some token has no next one.
    pub fn draft_logits(&self, tokens: &[u32], next: &[u32]) -> Result<Vec<f32>, CudaLoadError> {
        if tokens.len() != next.len() {
            let reason =
                format!("{} tokens and {} next tokens, expected as many of either", tokens.len(), next.len());
            return Err(DeviceError::Arguments { kernel: "draft", reason }.into());
        }
        self.in_chunks(tokens, |workspace, chunk, segment| {
            let (rows, next) = ((0..chunk.len()).collect::<Vec<_>>(), &next[segment.start..][..chunk.len()]);
            self.forward(workspace, chunk, &[segment], &[])?;
            self.draft(workspace, &rows, next, &[segment], &rows)
        })
    }

    /// Keeps draft logits, `[wanted.len(), vocab]`, of the rows `wanted` of this call.
    ///
    /// Row i of this call continues row `rows[i]` of the last call of [`Self::forward`] or of this function on the same
    /// workspace, and `next[i]` is the token that follows it; its logits are of the token after `next[i]`. `segments`
    /// describe the rows of this call in the layer's own cache, as the CPU backend's are described. Every position of a
    /// sequence has to be given once; what is given again overwrites.
    ///
    /// # Errors
    /// When the model was not prepared to draft, rows or tokens are not there, or the device refuses.
    pub(super) fn draft(
        &self,
        workspace: &mut Workspace,
        rows: &[usize],
        next: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<(), DeviceError> {
        let Workspace { caches, pages, tables, activations: a, stream, .. } = workspace;
        let wrong = |reason: String| DeviceError::Arguments { kernel: "draft", reason };
        let (Some(draft), Some(cache)) =
            (&self.parameters.draft, caches.get_mut(self.parameters.layers.len()))
        else {
            return Err(wrong(
                "the model was not prepared to draft: its prediction layer is not loaded".to_owned(),
            ));
        };
        if rows.len() != next.len() {
            return Err(wrong(format!("{} rows and {} tokens that follow them", rows.len(), next.len())));
        }
        let (device, kernels, hidden) = (&self.device, &self.attention.rows, draft.norm.weight.len());
        let half = |offset| Heads { offset, stride: 2 * hidden, head_stride: 0 };
        tables.set(device, segments, *pages)?;
        let tokens: Vec<usize> = next.iter().map(|id| *id as usize).collect();
        let embedding = NormInput::Bf16(self.parameters.embedding.numbers());
        kernels.norm_into(
            device,
            &draft.embedding_norm,
            embedding,
            Err(&tokens),
            (&mut a.joined, half(0)),
        )?;
        let (from, rows) = match stream {
            Stream::OfDecoder => {
                kernels.norm(device, &self.parameters.norm, &a.residual, Err(rows), &mut a.normed)?;
                (NormInput::Bf16(&a.normed), Ok(rows.len()))
            }
            Stream::OfPredictionLayer => (NormInput::F32(&a.residual), Err(rows)),
        };
        kernels.norm_into(device, &draft.hidden_norm, from, rows, (&mut a.joined, half(hidden)))?;
        self.multiply(&draft.projection, tokens.len(), &a.joined, Destination::F32(&mut a.residual))?;
        *stream = Stream::OfPredictionLayer;
        let index = self.parameters.layers.len();
        self.layer((index, &draft.layer), cache, &Step::alike(tables), a)?;
        self.head(&draft.norm, wanted, a)
    }
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
