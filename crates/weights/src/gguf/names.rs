//! GGUF tensor names and their Hugging Face equivalents.

/// GGUF and Hugging Face stems of tensors outside the layers.
const OUTSIDE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// GGUF and Hugging Face stems inside `blk.i` and `model.layers.i`.
const INSIDE: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The Hugging Face name of a GGUF tensor, or `None` for one no LLaMA model has.
pub(super) fn hugging_face(gguf: &str) -> Option<String> {
    let stem = gguf.strip_suffix(".weight")?;
    let Some(inside) = stem.strip_prefix("blk.") else {
        let (_, name) = OUTSIDE.into_iter().find(|(from, _)| *from == stem)?;
        return Some(format!("{name}.weight"));
    };
    let (layer, stem) = inside.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (_, name) = INSIDE.into_iter().find(|(from, _)| *from == stem)?;
    Some(format!("model.layers.{layer}.{name}.weight"))
}
