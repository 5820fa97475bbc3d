//! What a path keeps between steps, shown on the small converted model.

use std::path::{Path, PathBuf};

use gqla_kernels::attention::BLOCK_TOKENS;
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::*;
use crate::cpu::{Precision, shard::Shard};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn model(path: DecodePath) -> Model {
    let checkpoint = Checkpoint::open(&fixture("llama_a/llama_gqla_a")).unwrap();
    Model::load_with_threads(&checkpoint, Some(path), Some(2)).unwrap()
}

impl Workspace {
    /// Overwrites everything but the caches, the latents of earlier tokens among it.
    fn poison(&mut self) {
        let a = &mut self.activations;
        for buffer in [
            &mut a.residual,
            &mut a.hidden,
            &mut a.joined,
            &mut a.normed,
            &mut a.projected,
            &mut a.attended,
            &mut a.logits,
            &mut a.partial,
        ] {
            buffer.fill(f32::NAN);
        }
        a.projection.poison();
        a.attention.poison();
        a.feed_forward.poison();
    }
}

/// Logits of every step of a prompt and ten greedy tokens.
fn decode(model: &mut Model, poison: bool) -> Vec<Vec<f32>> {
    let between = |_: &mut Model, workspace: &mut Workspace, _| {
        if poison {
            workspace.poison();
        }
    };
    decode_with(model, CacheFormat::F32, between)
}

/// As [`decode`], with something done after every step.
fn decode_with(
    model: &mut Model,
    format: CacheFormat,
    between: impl Fn(&mut Model, &mut Workspace, usize),
) -> Vec<Vec<f32>> {
    let mut workspace = Workspace::new(model, 3, format);
    let blocks = [2, 0, 1];
    let mut tokens: Vec<u32> = (0..100).map(|i| i * 37 % 512).collect();
    let mut start = 0;
    let mut steps = Vec::new();
    for step in 0..10 {
        let segment = Segment { first_row: 0, rows: tokens.len() - start, start, blocks: &blocks };
        let last = segment.rows - 1;
        let logits = model.forward(&mut workspace, &tokens[start..], &[segment], &[last]).unwrap().to_vec();
        start = tokens.len();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        tokens.push(best as u32);
        steps.push(logits);
        between(model, &mut workspace, step);
    }
    steps
}

/// Largest difference over the largest magnitude.
fn relative_error(ours: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    ours.iter().zip(expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

#[test]
fn a_sequence_changes_path_in_mid_answer_and_goes_on() {
    let checkpoint = Checkpoint::open(&fixture("llama_a/llama_gqla_a")).unwrap();
    let all_absorb = decode(&mut model(DecodePath::MqaAbsorb), false);
    let all_gqa = decode(&mut model(DecodePath::Gqa), false);
    let mut changing = model(DecodePath::MqaAbsorb);
    changing.make_expandable(&Shard::whole(&checkpoint), Precision::default()).unwrap();
    assert_eq!(changing.largest_kv_bytes_per_token(CacheFormat::F32), 3 * 4 * (2 * (16 + 16) + 16));
    let steps = decode_with(&mut changing, CacheFormat::F32, |model, workspace, step| {
        if step == 4 {
            model.expand(workspace, &[0, 1, 2]);
            workspace.poison();
            assert_eq!(workspace.cache_bytes(), 3 * 3 * BLOCK_TOKENS * 4 * (2 * (16 + 16) + 16));
        }
    });
    assert_eq!(changing.path(), Some(DecodePath::Gqa));
    assert_eq!(steps[..5], all_absorb[..5], "before the change");
    for (step, (ours, gqa)) in steps.iter().zip(&all_gqa).enumerate() {
        let error = relative_error(ours, gqa);
        assert!(error < 1e-4, "step {step}: {error:e}");
    }
}

#[test]
fn a_cache_that_rounds_costs_little_accuracy() {
    for path in DecodePath::ALL {
        let exact = decode(&mut model(path), false);
        for format in [CacheFormat::Bf16, CacheFormat::Int8] {
            let rounded = decode_with(&mut model(path), format, |_, _, _| {});
            let error = relative_error(&rounded[0], &exact[0]);
            assert!(error > 0.0 && error < 2e-2, "{path}, {format}: {error:e}");
        }
    }
}

#[test]
fn a_rounded_sequence_changes_path_and_goes_on() {
    let checkpoint = Checkpoint::open(&fixture("llama_a/llama_gqla_a")).unwrap();
    let absorb = decode_with(&mut model(DecodePath::MqaAbsorb), CacheFormat::Int8, |_, _, _| {});
    let mut changing = model(DecodePath::MqaAbsorb);
    changing.make_expandable(&Shard::whole(&checkpoint), Precision::default()).unwrap();
    let steps = decode_with(&mut changing, CacheFormat::Int8, |model, workspace, step| {
        if step == 4 {
            model.expand(workspace, &[0, 1, 2]);
            workspace.poison();
            assert_eq!(workspace.cache_bytes(), 3 * 3 * BLOCK_TOKENS * (2 * (16 + 16) + 16 + 4 * 5));
        }
    });
    assert_eq!(steps[..5], absorb[..5], "before the change");
    let error = relative_error(&steps[5], &absorb[5]);
    assert!(error > 0.0 && error < 2e-2, "{error:e}");
}

#[test]
fn nothing_but_the_cache_outlives_a_step() {
    for path in DecodePath::ALL {
        let mut model = model(path);
        assert_eq!(decode(&mut model, true), decode(&mut model, false), "{path}");
    }
}

#[test]
fn the_cache_is_as_large_as_the_path_says_and_no_larger() {
    for (path, elements, parts) in
        [(DecodePath::MqaAbsorb, 36 + 16, 2), (DecodePath::Gqa, 2 * (16 + 16) + 16, 2 * 2 + 1)]
    {
        let model = model(path);
        let tokens = 5 * BLOCK_TOKENS;
        let scaled = elements + 4 * parts;
        for (format, bytes) in CacheFormat::ALL.into_iter().zip([4 * elements, 2 * elements, scaled]) {
            let workspace = Workspace::new(&model, 5, format);
            assert_eq!(workspace.cache_bytes(), 3 * tokens * bytes, "{path}, {format}");
            assert_eq!(model.kv_bytes_per_token(format), 3 * bytes, "{path}, {format}");
        }
        assert_eq!(model.kv_elements_per_token_layer(), elements, "{path}");
    }
}
