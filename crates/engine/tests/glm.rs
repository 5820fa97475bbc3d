//! What only models with experts, and layers with groups of their own, can get wrong.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod support;

use gqla_engine::{
    Checkpoint, Engine,
    cpu::{CacheFormat, CpuEngine, CpuEngineConfig, LoadError, Model},
};
use gqla_model::{
    DecodePath::{self, Gqa, MqaAbsorb},
    RopeScaling, Yarn,
};
use gqla_weights::{AttentionConfig, Dtype, Tensor};
use serde_json::json;
use support::{
    Golden, collect, config, fixture, ids, relative_error,
    rewrite::{Tensors, rewritten},
    submit,
};
use tempfile::TempDir;

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture(name)).unwrap()
}

/// Gives every head of some layers a group of its own, with the weights of its old group: the same function.
fn one_group_per_head(tensors: &mut Tensors, layers: &[usize]) {
    for layer in layers {
        let name = format!("model.layers.{layer}.self_attn.kv_b_proj.weight");
        let (shape, rows) = tensors.get_mut(&name).unwrap();
        let group = rows.len() / 4;
        *rows = rows.chunks(group).flat_map(|group| [group, group].concat()).collect();
        shape[0] *= 2;
    }
}

fn mixed_groups() -> (TempDir, Checkpoint) {
    rewritten(&open("glm_a/gqla"), Dtype::F32, |tensors, config| {
        one_group_per_head(tensors, &[1, 3]);
        let AttentionConfig::Latent { shape, .. } = &mut config.attention else { panic!("latent") };
        shape.num_key_value_heads = 8;
        config.num_key_value_heads_per_layer = Some(vec![4, 8, 4, 8]);
    })
}

fn logits(checkpoint: &Checkpoint, path: DecodePath, tokens: &[u32]) -> Vec<f32> {
    Model::load_with_threads(checkpoint, Some(path), Some(2))
        .unwrap()
        .logits(tokens, CacheFormat::F32)
        .unwrap()
}

#[test]
fn layers_with_groups_of_their_own_answer_alike_and_take_their_own_bytes() {
    let golden = Golden::open("glm_a/gqla");
    let (_dir, checkpoint) = mixed_groups();
    let gqa = [4, 8, 4, 8].map(|groups| groups * (32 + 32) + 16);
    for (path, elements) in [(Gqa, gqa), (MqaAbsorb, [64 + 16; 4])] {
        let error =
            relative_error(&logits(&checkpoint, path, &golden.ids("ids_2")), &golden.floats("logits_2"));
        assert!(error < 1e-4, "{path}: {error:e}");
        let kv_cache_format = CacheFormat::Bf16;
        let engine = CpuEngine::start(&checkpoint, CpuEngineConfig { kv_cache_format, ..config(Some(path)) });
        let info = engine.unwrap().info().clone();
        assert_eq!(info.kv_bytes_per_token, elements.iter().sum::<usize>() * 2, "{path}");
        assert_eq!(info.kv_elements_per_token_layer, elements[1], "{path}");
        let engine = CpuEngine::start(&checkpoint, config(Some(path))).unwrap();
        let text = collect(&submit(&engine, &golden.ids("ids_1"), 0.0, 0));
        assert_eq!(ids(&text), golden.ids("greedy_1"), "{path}");
    }
}

#[test]
fn layers_with_groups_of_their_own_change_path_together() {
    let golden = Golden::open("glm_a/gqla");
    let (_dir, checkpoint) = mixed_groups();
    let expandable = CpuEngineConfig { expandable: true, ..config(Some(MqaAbsorb)) };
    let engine = CpuEngine::start(&checkpoint, expandable).unwrap();
    let before = collect(&submit(&engine, &golden.ids("ids_2"), 0.0, 0));
    engine.switch_to_gqa().unwrap();
    let after = collect(&submit(&engine, &golden.ids("ids_2"), 0.0, 0));
    assert_eq!(ids(&before), golden.ids("greedy_2"));
    assert_eq!(ids(&after), golden.ids("greedy_2"), "from latents that were turned into keys and values");
    assert!(engine.stats().prefix_hits > 0);
}

#[test]
fn packed_experts_compute_the_same_bits() {
    let source = open("glm_a/gqla");
    let (_dir, packed) = rewritten(&source, Dtype::F32, |tensors, _| {
        tensors.retain(|name, _| !name.contains(".experts."));
        for layer in 1..5 {
            let experts: Vec<_> = (0..8).map(|expert| source.expert(layer, expert).unwrap()).collect();
            let gate_up = experts.iter().flat_map(|expert| expert.gate_up.iter().flat_map(Tensor::to_f32));
            let down = experts.iter().flat_map(|expert| expert.down.to_f32());
            let name = |suffix| format!("model.layers.{layer}.mlp.experts.{suffix}");
            tensors.insert(name("gate_up_proj"), (vec![8, 2 * 24, 128], gate_up.collect()));
            tensors.insert(name("down_proj"), (vec![8, 128, 24], down.collect()));
        }
    });
    let tokens = Golden::open("glm_a/gqla").ids("ids_1");
    assert_eq!(logits(&packed, Gqa, &tokens), logits(&source, Gqa, &tokens));
}

/// f16 is widened, not rounded to bf16: such a checkpoint computes what its numbers say in f32.
#[test]
fn f16_weights_lose_nothing() {
    let (_dir, narrow) = rewritten(&open("glm_a/gqla"), Dtype::F16, |_, _| {});
    let (_dir, wide) = rewritten(&narrow, Dtype::F32, |_, _| {});
    assert_eq!(narrow.tensor("model.norm.weight").unwrap().dtype, Dtype::F16);
    let tokens = Golden::open("glm_a/gqla").ids("ids_1");
    assert_eq!(logits(&narrow, Gqa, &tokens), logits(&wide, Gqa, &tokens));
}

/// Losses of 16 samples of 95 predictions each, by their ratio to the sample's mean: every expert has its say.
#[test]
fn losses_of_many_tokens_are_the_golden_ones() {
    let golden = Golden::open("glm_a/mla_to_gqla");
    let (tokens, weights) = (golden.ids("calib_ids"), golden.floats("token_weights"));
    let model = Model::load_with_threads(&open("glm_a/mla"), Some(Gqa), Some(2)).unwrap();
    for (sample, (tokens, weights)) in tokens.chunks(96).zip(weights.chunks(96)).enumerate() {
        let logits = model.logits(tokens, CacheFormat::F32).unwrap();
        let losses: Vec<f32> =
            logits.chunks(512).zip(&tokens[1..]).map(|(logits, next)| loss(logits, *next)).collect();
        let mean = losses.iter().sum::<f32>() / 95.0;
        let ours: Vec<f32> = losses.iter().map(|loss| loss / mean).chain([0.0]).collect();
        let error = relative_error(&ours, weights);
        assert!(error < 1e-4, "sample {sample}: {error:e}");
    }
}

fn loss(logits: &[f32], next: u32) -> f32 {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    (sum.ln() - f64::from(logits[next as usize] - largest)) as f32
}

#[test]
fn compressed_weights_and_other_families_are_refused() {
    let refusal = |field: &str, value: serde_json::Value| {
        let (dir, source) = (tempfile::tempdir().unwrap(), fixture("glm_a/gqla"));
        std::fs::copy(source.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
        let text = std::fs::read_to_string(source.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config[field] = value;
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        Model::load(&Checkpoint::open(dir.path()).unwrap(), None).err().unwrap()
    };
    let error = refusal("quantization_config", json!({ "quant_method": "awq" }));
    assert!(error.to_string().contains("does not run weights that were compressed (`awq`)"), "{error}");
    let error = refusal("model_type", json!("deepseek_v2"));
    assert!(matches!(&error, LoadError::UnsupportedModel { model_type } if model_type == "deepseek_v2"));
    assert!(error.to_string().contains("`glm4_moe_lite`, this checkpoint's config says `deepseek_v2`"));
}

/// YaRN over a context so long that every channel counts as fast: only its factors are left.
const SHARPER: Yarn = Yarn {
    factor: 40.0,
    original_max_position_embeddings: 1 << 30,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: true,
    attention_factor: None,
    mscale: Some(1.0),
    mscale_all_dim: Some(1.0),
};

/// Multiplies rows `from ..` of each head of `height` rows.
fn scale_rows(tensors: &mut Tensors, suffix: &str, height: usize, from: usize, factor: f32) {
    for (_, (shape, values)) in tensors.iter_mut().filter(|(name, _)| name.ends_with(suffix)) {
        let width = shape[1];
        for (row, values) in values.chunks_mut(width).enumerate().filter(|(row, _)| row % height >= from) {
            assert!(row < shape[0]);
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// What a checkpoint's scaling says of scores and of turned channels is the same as larger weights before them.
#[test]
fn factors_of_scaled_ropes_are_those_of_larger_weights() {
    let source = open("glm_a/gqla");
    let tokens = Golden::open("glm_a/gqla").ids("ids_1");
    let sharp = (0.1 * 40f64.ln() + 1.0).powi(2) as f32;
    let turned = Yarn { attention_factor: Some(1.5), mscale: None, mscale_all_dim: None, ..SHARPER };
    for path in DecodePath::ALL {
        let plain = logits(&source, path, &tokens);
        let scaled = |yarn: Yarn| {
            let (_dir, checkpoint) = rewritten(&source, Dtype::F32, |_, config| {
                config.rope_scaling = Some(RopeScaling::Yarn(yarn));
            });
            logits(&checkpoint, path, &tokens)
        };
        let (_dir, larger) = rewritten(&source, Dtype::F32, |tensors, _| {
            scale_rows(tensors, "q_b_proj.weight", 48, 0, sharp);
        });
        let scores = scaled(SHARPER);
        let error = relative_error(&scores, &logits(&larger, path, &tokens));
        assert!(error < 1e-4, "{path} scores: {error:e}");
        let (_dir, larger) = rewritten(&source, Dtype::F32, |tensors, _| {
            scale_rows(tensors, "q_b_proj.weight", 48, 32, 1.5);
            scale_rows(tensors, "kv_a_proj_with_mqa.weight", 80, 64, 1.5);
        });
        let channels = scaled(turned.clone());
        let error = relative_error(&channels, &logits(&larger, path, &tokens));
        assert!(error < 1e-4, "{path} channels: {error:e}");
        assert!(relative_error(&scores, &plain) > 1e-3 && relative_error(&channels, &plain) > 1e-3);
    }
}

/// The prediction layer of a checkpoint whose conversion left it alone has one group per head.
#[test]
fn a_grafted_prediction_layer_drafts_alike() {
    let golden = Golden::open("glm_a/gqla");
    let (_dir, grafted) =
        rewritten(&open("glm_a/gqla"), Dtype::F32, |tensors, _| one_group_per_head(tensors, &[4]));
    assert_eq!((grafted.groups_of_layer(3), grafted.groups_of_layer(4)), (Some(4), Some(8)));
    for path in DecodePath::ALL {
        let mut model = Model::load_with_threads(&grafted, Some(path), Some(2)).unwrap();
        model.make_drafting(&grafted).unwrap();
        let drafts = model
            .draft_logits(&golden.ids("ids_2"), &golden.ids("mtp_next_ids_2"), CacheFormat::F32)
            .unwrap();
        let error = relative_error(&drafts, &golden.floats("mtp_logits_2"));
        assert!(error < 1e-4, "{path}: {error:e}");
    }
}
