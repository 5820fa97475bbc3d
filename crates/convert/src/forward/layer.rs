//! The parts of a LLaMA decoder layer that conversion leaves alone.

use super::{AttentionInputs, Linear, causal_attention};

/// Gated MLP: `down(silu(gate x) * up x)`.
#[derive(Clone, Debug)]
pub struct Mlp {
    /// `[I, D]`.
    pub gate: Linear,
    /// `[I, D]`.
    pub up: Linear,
    /// `[D, I]`.
    pub down: Linear,
}

/// What follows attention's softmax in a layer.
#[derive(Clone, Debug)]
pub struct LayerTail {
    /// Attention's output projection `[D, H d_v]`.
    pub o: Linear,
    /// Weight of the norm before the MLP, `[D]`.
    pub post_attention_layernorm: Vec<f32>,
    /// The MLP.
    pub mlp: Mlp,
}

/// `x / rms(x) * weight` for each token of `x` `[tokens, D]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for token in x.chunks_exact(weight.len()) {
        let mean = token.iter().map(|v| v * v).sum::<f32>() / weight.len() as f32;
        let scale = (mean + eps).sqrt().recip();
        out.extend(token.iter().zip(weight).map(|(v, w)| v * scale * w));
    }
    out
}

/// Adds attention's output to the residual stream `hidden` `[tokens, D]`.
pub fn add_attention(hidden: &mut [f32], inputs: &AttentionInputs, tail: &LayerTail) {
    tail.o.add_to(&causal_attention(inputs), hidden);
}

/// Adds the MLP's output to the residual stream `hidden` `[tokens, D]`.
pub fn add_mlp(hidden: &mut [f32], tail: &LayerTail, eps: f32) {
    let x = rms_norm(hidden, &tail.post_attention_layernorm, eps);
    let mut gate = tail.mlp.gate.apply(&x);
    let up = tail.mlp.up.apply(&x);
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + (-*gate).exp()) * up;
    }
    tail.mlp.down.add_to(&gate, hidden);
}
