//! From rotations and bases to the weights of the result.
//!
//! Two steps, both exact algebra. [`partial_rope`] writes the source as a GQLA layer of full rank
//! `2 G d - d_rope`, whose only loss is the rope taken from `G d - d_rope` key channels. [`compress`] then keeps `r`
//! latent directions of it. Up-projections depend on a head only through its group, so each group's block is written
//! once; TransMLA writes it once per head.

#[cfg(test)]
mod tests;

use faer::{Mat, MatRef};

use crate::{geometry::Geometry, kv_pca::LatentBasis};

/// Projections of a GQA layer, `[out, in]`, rows in Hugging Face order.
#[derive(Clone, Debug)]
pub struct PlainWeights {
    /// `[H d, D]`.
    pub q: Mat<f64>,
    /// `[G d, D]`.
    pub k: Mat<f64>,
    /// `[G d, D]`.
    pub v: Mat<f64>,
}

/// Projections of a GQLA layer, `[out, in]`; `n` is the width of its latent.
#[derive(Clone, Debug)]
pub struct LatentWeights {
    /// `[H (d + d_rope), D]`, per head the part without position, then the rotary part.
    pub q: Mat<f64>,
    /// `[n + d_rope, D]`: the latent, then the rotary key.
    pub kv_a: Mat<f64>,
    /// `[G 2d, n]`, per group keys, then values.
    pub kv_b: Mat<f64>,
}

/// The source as a GQLA layer of full rank, RoPE kept on the first `d_rope` channels of `rotation` `[G d, G d]`.
pub fn partial_rope(geometry: &Geometry, plain: &PlainWeights, rotation: MatRef<'_, f64>) -> LatentWeights {
    let keys = rotation * &plain.k;
    let (rope, nope) = (geometry.rope_dim(), geometry.nope_width());
    let kv_a = stack(&[keys.subrows(rope, nope), plain.v.as_ref(), keys.subrows(0, rope)]);
    LatentWeights {
        q: queries(geometry, plain.q.as_ref(), rotation),
        kv_a,
        kv_b: full_up(geometry, rotation),
    }
}

/// Keeps the directions of `basis` of a full-rank layer's latent.
pub fn compress(geometry: &Geometry, full: LatentWeights, basis: &LatentBasis) -> LatentWeights {
    let (nope, width) = (geometry.nope_width(), geometry.full_rank());
    let down = Mat::from_fn(width, geometry.rank(), |i, j| {
        basis.basis[(i, j)] / if i < nope { basis.ratio } else { 1.0 }
    });
    let up = Mat::from_fn(width, geometry.rank(), |i, j| {
        basis.basis[(i, j)] * if i < nope { basis.ratio } else { 1.0 }
    });
    let latent = down.transpose() * full.kv_a.subrows(0, width);
    LatentWeights {
        kv_a: stack(&[latent.as_ref(), full.kv_a.subrows(width, geometry.rope_dim())]),
        kv_b: &full.kv_b * &up,
        q: full.q,
    }
}

/// Query rows per head: the raw head, then its image on the rotary channels, times `sqrt((d + d_rope) / d)`, which
/// turns the source's softmax scale `d^-1/2` into the result's `(d + d_rope)^-1/2`.
fn queries(geometry: &Geometry, q: MatRef<'_, f64>, rotation: MatRef<'_, f64>) -> Mat<f64> {
    let (d, rope) = (geometry.head_dim(), geometry.rope_dim());
    let factor = ((d + rope) as f64 / d as f64).sqrt();
    let per_group = geometry.heads() / geometry.groups();
    let blocks: Vec<Mat<f64>> = (0..geometry.heads())
        .map(|head| {
            let raw = q.subrows(head * d, d);
            let rotary = rotation.submatrix(0, head / per_group * d, rope, d) * raw;
            stack(&[raw, rotary.as_ref()])
        })
        .collect();
    let views: Vec<MatRef<'_, f64>> = blocks.iter().map(Mat::as_ref).collect();
    let stacked = stack(&views);
    Mat::from_fn(stacked.nrows(), stacked.ncols(), |i, j| stacked[(i, j)] * factor)
}

/// `kv_b` of the full-rank layer: keys undo the rotation, values pick their own channels.
fn full_up(geometry: &Geometry, rotation: MatRef<'_, f64>) -> Mat<f64> {
    let (d, rope, nope) = (geometry.head_dim(), geometry.rope_dim(), geometry.nope_width());
    Mat::from_fn(geometry.groups() * 2 * d, geometry.full_rank(), |row, column| {
        let (group, within) = (row / (2 * d), row % (2 * d));
        let is_key = within < d;
        let channel = group * d + within % d;
        match (is_key, column < nope) {
            (true, true) => rotation[(rope + column, channel)],
            (false, false) if column - nope == channel => 1.0,
            _ => 0.0,
        }
    })
}

/// Stacks blocks of equal width on top of each other.
fn stack(blocks: &[MatRef<'_, f64>]) -> Mat<f64> {
    let columns = blocks.first().map_or(0, |block| block.ncols());
    let mut stacked = Mat::zeros(blocks.iter().map(|block| block.nrows()).sum(), columns);
    let mut row = 0;
    for block in blocks {
        stacked.as_mut().subrows_mut(row, block.nrows()).copy_from(block);
        row += block.nrows();
    }
    stacked
}
