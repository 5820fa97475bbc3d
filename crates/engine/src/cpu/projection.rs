//! What attention is given: queries, latent and rotary key, or queries, keys and values.

use gqla_kernels::{Matrix, Pool, ops::rms_norm_row};

use super::forward::sized;

/// Epsilon of latent norms: Hugging Face's implementation uses this whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f32 = 1e-6;

/// From a layer's normed rows to the rows its attention takes.
pub(super) struct Projection {
    /// All that attention needs, stacked; `[q_a | c | k_rope]` where queries are factored.
    pub stacked: Matrix,
    pub query: Option<FactoredQuery>,
    /// The norm of the latent before it is cached: where it starts in attention's rows, and its weights.
    pub latent_norm: Option<(usize, Vec<f32>)>,
}

/// `q_b norm(q_a x)`
pub(super) struct FactoredQuery {
    pub norm: Option<Vec<f32>>,
    /// `[H (d_nope + d_rope), q_lora_rank]`
    pub up: Matrix,
}

/// What a projection writes on its way; nothing of it outlives a step.
#[derive(Default)]
pub(super) struct Buffers {
    stacked: Vec<f32>,
    query_latent: Vec<f32>,
    queries: Vec<f32>,
}

impl Projection {
    /// Width of an output row.
    pub fn width(&self) -> usize {
        let factored = self.query.as_ref().map_or(0, |query| query.up.outputs() - query.up.inputs());
        self.stacked.outputs() + factored
    }

    /// Numbers a call keeps in its [`Buffers`] for each row.
    pub fn scratch_elements(&self) -> usize {
        let query = self.query.as_ref();
        query.map_or(0, |query| self.stacked.outputs() + query.up.inputs() + query.up.outputs())
    }

    /// Fills `out` `[rows, width]` from `x` `[rows, hidden]`; nothing is turned yet.
    pub fn forward(&self, pool: &Pool, x: &[f32], buffers: &mut Buffers, out: &mut [f32]) {
        match &self.query {
            None => self.stacked.multiply(pool, x, out),
            Some(query) => self.factored(query, pool, x, buffers, out),
        }
        if let Some((offset, weight)) = &self.latent_norm {
            let mut raw = vec![0.0; weight.len()];
            for row in out.chunks_exact_mut(self.width()) {
                let latent = &mut row[*offset..][..weight.len()];
                raw.copy_from_slice(latent);
                rms_norm_row(&raw, weight, LATENT_NORM_EPS, latent);
            }
        }
    }

    fn factored(
        &self,
        query: &FactoredQuery,
        pool: &Pool,
        x: &[f32],
        buffers: &mut Buffers,
        out: &mut [f32],
    ) {
        let rows = x.len() / self.stacked.inputs();
        let (width, rank, heads) = (self.stacked.outputs(), query.up.inputs(), query.up.outputs());
        let stacked = sized(&mut buffers.stacked, rows * width);
        self.stacked.multiply(pool, x, stacked);
        let latents = sized(&mut buffers.query_latent, rows * rank);
        for (row, latent) in stacked.chunks_exact(width).zip(latents.chunks_exact_mut(rank)) {
            match &query.norm {
                Some(weight) => rms_norm_row(&row[..rank], weight, LATENT_NORM_EPS, latent),
                None => latent.copy_from_slice(&row[..rank]),
            }
        }
        let queries = sized(&mut buffers.queries, rows * heads);
        query.up.multiply(pool, latents, queries);
        let parts = queries.chunks_exact(heads).zip(stacked.chunks_exact(width));
        for (out, (queries, stacked)) in out.chunks_exact_mut(self.width()).zip(parts) {
            let (left, right) = out.split_at_mut(heads);
            left.copy_from_slice(queries);
            right.copy_from_slice(&stacked[rank..]);
        }
    }
}

#[cfg(test)]
impl Buffers {
    pub fn poison(&mut self) {
        let Self { stacked, query_latent, queries } = self;
        [stacked, query_latent, queries].into_iter().for_each(|buffer| buffer.fill(f32::NAN));
    }
}
