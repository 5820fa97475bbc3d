//! Causal attention of one sample, with grouped keys and values.

use faer::{Accum, Mat, MatMut, MatRef, Par, linalg::matmul::matmul};

/// Queries, keys and values of one sample, rotated and ready.
#[derive(Clone, Debug)]
pub struct AttentionInputs {
    /// `[tokens, H, key_dim]`.
    pub queries: Vec<f32>,
    /// `[tokens, G, key_dim]`.
    pub keys: Vec<f32>,
    /// `[tokens, G, value_dim]`.
    pub values: Vec<f32>,
    /// Query heads, H.
    pub heads: usize,
    /// Key/value groups, G.
    pub groups: usize,
    /// Dimension of a query and of a key.
    pub key_dim: usize,
    /// Dimension of a value.
    pub value_dim: usize,
}

/// Outputs `[tokens, H, value_dim]` of softmax attention with scale `key_dim^-1/2`; token `i` sees tokens `0..=i`.
pub fn causal_attention(inputs: &AttentionInputs) -> Vec<f32> {
    let &AttentionInputs { heads, groups, key_dim, value_dim, .. } = inputs;
    let tokens = inputs.queries.len() / (heads * key_dim);
    let scale = (key_dim as f32).sqrt().recip();
    let queries = MatRef::from_column_major_slice(&inputs.queries, heads * key_dim, tokens);
    let keys = MatRef::from_column_major_slice(&inputs.keys, groups * key_dim, tokens);
    let values = MatRef::from_column_major_slice(&inputs.values, groups * value_dim, tokens);
    let mut outputs = vec![0.0; tokens * heads * value_dim];
    let mut out = MatMut::from_column_major_slice_mut(&mut outputs, heads * value_dim, tokens);
    let mut scores = Mat::<f32>::zeros(tokens, tokens);
    for head in 0..heads {
        let group = head / (heads / groups);
        let (key, query) = (keys.subrows(group * key_dim, key_dim), queries.subrows(head * key_dim, key_dim));
        matmul(scores.as_mut(), Accum::Replace, key.transpose(), query, scale, Par::Seq);
        for token in 0..tokens {
            causal_softmax(scores.col_as_slice_mut(token), token);
        }
        let value = values.subrows(group * value_dim, value_dim);
        let head_out = out.as_mut().subrows_mut(head * value_dim, value_dim);
        matmul(head_out, Accum::Replace, value, scores.as_ref(), 1.0, Par::Seq);
    }
    outputs
}

/// Softmax over keys `0..=token`; later keys get weight 0.
fn causal_softmax(scores: &mut [f32], token: usize) {
    let (seen, hidden) = scores.split_at_mut(token + 1);
    let max = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in seen.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    seen.iter_mut().for_each(|weight| *weight /= sum);
    hidden.fill(0.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_does_not_see_later_tokens() {
        let mut inputs = AttentionInputs {
            queries: vec![1.0, 0.0, 0.5, 1.0],
            keys: vec![1.0, 2.0],
            values: vec![3.0, 5.0],
            heads: 2,
            groups: 1,
            key_dim: 1,
            value_dim: 1,
        };
        let outputs = causal_attention(&inputs);
        assert_eq!(outputs[..2], [3.0, 3.0]);
        let weight = 1.0 / (1.0 + (-1.0f32).exp());
        assert!((outputs[3] - (3.0 + 2.0 * weight)).abs() < 1e-6);
        inputs.values[1] = 100.0;
        assert_eq!(causal_attention(&inputs)[..2], [3.0, 3.0]);
    }
}
