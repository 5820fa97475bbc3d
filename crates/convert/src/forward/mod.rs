//! The f32 forward pass of calibration: one decoder layer over one sample at a time.
//!
//! Conversion sees activations of two models, the source and its partial-RoPE form, so the layer is generic over
//! how a token's queries, keys and values are projected ([`Projection`]); attention, norms and MLP are the same.
//! There is no cache and no batching: a sample is short, causal and complete.

mod attention;
mod layer;
mod linear;
mod projection;
mod rope;

pub use attention::{AttentionInputs, causal_attention};
pub use layer::{LayerTail, Mlp, add_attention, add_mlp, rms_norm};
pub use linear::Linear;
pub use projection::{LatentProjection, PlainProjection, Projected, Projection};
pub use rope::RopeTable;
