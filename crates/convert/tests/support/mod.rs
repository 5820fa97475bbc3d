//! Conversions of the tiny fixtures, and the logits of what comes out, by calibration's own forward pass.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::{Path, PathBuf};

use gqla_convert::{
    Calibration, Conversion, Report, Request, Silent, Target,
    forward::{
        LatentProjection, LayerTail, Linear, Mlp, PlainProjection, Projection, RopeTable, add_attention,
        add_mlp, rms_norm,
    },
};
use gqla_weights::{AttentionConfig, Checkpoint, Dtype};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// A directory of `tests/fixtures/llama_a`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a").join(name)
}

/// The tensors of a `golden.safetensors`.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Self {
        Self(std::fs::read(fixture(name).join("golden.safetensors")).unwrap())
    }

    fn data(&self, tensor: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(tensor).unwrap().data().to_vec()
    }

    pub fn f64(&self, tensor: &str) -> Vec<f64> {
        self.data(tensor).chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn f32(&self, tensor: &str) -> Vec<f32> {
        self.data(tensor).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn ids(&self, tensor: &str) -> Vec<u32> {
        self.data(tensor).chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// The published conversions: freqfold, collapse and rank of `info.json`.
pub fn target(variant: char) -> Target {
    match variant {
        'a' => Target { qk_rope_head_dim: 16, kv_lora_rank: 36, freqfold: 2, collapse: None },
        'b' => Target { qk_rope_head_dim: 8, kv_lora_rank: 24, freqfold: 4, collapse: None },
        other => panic!("no variant {other}"),
    }
}

/// Converts a fixture in f32; `ids` are samples of 96 tokens.
pub fn convert(source: &str, target: Target, ids: Vec<u32>) -> (TempDir, Report) {
    let checkpoint = Checkpoint::open(&fixture(source)).unwrap();
    let calibration = Calibration::new(ids, 24, 96, checkpoint.config().vocab_size).unwrap();
    let request =
        Request { target, balance_kv_ratio: 1.0, dtype: Dtype::F32, source_name: source.to_owned() };
    let directory = tempfile::tempdir().unwrap();
    let conversion = Conversion::new(&checkpoint, request, calibration).unwrap();
    let report = conversion.run(directory.path(), &Silent).unwrap();
    (directory, report)
}

/// Logits `[ids, vocabulary]` of any LLaMA checkpoint, plain or latent.
pub fn logits(directory: &Path, ids: &[u32]) -> Vec<f32> {
    let checkpoint = Checkpoint::open(directory).unwrap();
    let config = checkpoint.config();
    let table = vector(&checkpoint, "model.embed_tokens");
    let width = config.hidden_size;
    let mut hidden: Vec<f32> =
        ids.iter().flat_map(|id| &table[*id as usize * width..][..width]).copied().collect();
    for layer in 0..config.num_hidden_layers {
        run_layer(&checkpoint, layer, ids.len(), &mut hidden);
    }
    let hidden = rms_norm(&hidden, &vector(&checkpoint, "model.norm"), config.rms_norm_eps);
    let head = if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
    linear(&checkpoint, head).apply(&hidden)
}

fn run_layer(checkpoint: &Checkpoint, layer: usize, tokens: usize, hidden: &mut [f32]) {
    let config = checkpoint.config();
    let name = |suffix: &str| format!("model.layers.{layer}.{suffix}");
    let attention = |suffix: &str| linear(checkpoint, &name(&format!("self_attn.{suffix}")));
    let x = rms_norm(hidden, &vector(checkpoint, &name("input_layernorm")), config.rms_norm_eps);
    let projected = match config.attention {
        AttentionConfig::Plain { num_attention_heads: heads, num_key_value_heads: groups, head_dim } => {
            let (q, k, v) = (attention("q_proj"), attention("k_proj"), attention("v_proj"));
            let rope = RopeTable::new(tokens, head_dim, config.rope_theta);
            PlainProjection { q, k, v, heads, groups }.project(&x, &rope)
        }
        AttentionConfig::Latent { shape, .. } => {
            let rope_dim = shape.qk_rope_head_dim as usize;
            let rope = RopeTable::new(tokens, rope_dim, config.rope_theta);
            let projection = LatentProjection {
                q: attention("q_proj"),
                kv_a: attention("kv_a_proj_with_mqa"),
                kv_b: attention("kv_b_proj"),
                heads: shape.num_attention_heads as usize,
                groups: shape.num_key_value_heads as usize,
                rope_dim,
            };
            projection.project(&x, &rope)
        }
    };
    let tail = LayerTail {
        o: attention("o_proj"),
        post_attention_layernorm: vector(checkpoint, &name("post_attention_layernorm")),
        mlp: Mlp {
            gate: linear(checkpoint, &name("mlp.gate_proj")),
            up: linear(checkpoint, &name("mlp.up_proj")),
            down: linear(checkpoint, &name("mlp.down_proj")),
        },
    };
    add_attention(hidden, &projected.attention, &tail);
    add_mlp(hidden, &tail, config.rms_norm_eps);
}

fn vector(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    checkpoint.tensor(&format!("{name}.weight")).unwrap().to_f32()
}

fn linear(checkpoint: &Checkpoint, name: &str) -> Linear {
    let tensor = checkpoint.tensor(&format!("{name}.weight")).unwrap();
    let (rows, columns) = (tensor.shape[0], tensor.shape[1]);
    Linear::from_tensor(tensor, rows, columns).unwrap()
}

/// What a layer does between hidden states and per-group keys and values, `kv_b kv_a[..r]`: unlike the factors, it
/// does not depend on the signs of eigenvectors.
pub fn key_value_map(directory: &Path, layer: usize) -> Vec<f64> {
    let checkpoint = Checkpoint::open(directory).unwrap();
    let weight =
        |suffix: &str| linear(&checkpoint, &format!("model.layers.{layer}.self_attn.{suffix}")).to_f64();
    let (down, up) = (weight("kv_a_proj_with_mqa"), weight("kv_b_proj"));
    let product = &up * down.subrows(0, up.ncols());
    (0..product.nrows() * product.ncols())
        .map(|i| product[(i / product.ncols(), i % product.ncols())])
        .collect()
}

pub fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `|left - right| / |right|` in the Frobenius norm.
pub fn relative_distance(left: &[f64], right: &[f64]) -> f64 {
    assert_eq!(left.len(), right.len());
    let distance: f64 = left.iter().zip(right).map(|(a, b)| (a - b).powi(2)).sum();
    (distance / right.iter().map(|b| b * b).sum::<f64>()).sqrt()
}
