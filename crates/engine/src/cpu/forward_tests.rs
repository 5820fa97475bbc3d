//! What a path keeps between steps, shown on the small converted model.

use std::path::{Path, PathBuf};

use gqla_kernels::attention::BLOCK_TOKENS;
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a").join(name)
}

fn model(path: DecodePath) -> Model {
    let checkpoint = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    Model::load_with_threads(&checkpoint, Some(path), Some(2)).unwrap()
}

impl Workspace {
    fn allocated_elements(&self) -> usize {
        self.caches.iter().map(LayerCache::allocated_elements).sum()
    }

    /// Overwrites everything but the caches, the latents of earlier tokens among it.
    fn poison(&mut self) {
        let a = &mut self.activations;
        for buffer in [
            &mut a.residual,
            &mut a.normed,
            &mut a.projected,
            &mut a.attended,
            &mut a.gate_up,
            &mut a.activated,
            &mut a.logits,
        ] {
            buffer.fill(f32::NAN);
        }
        a.scratch.poison();
    }
}

/// Logits of every step of a prompt and ten greedy tokens.
fn decode(model: &Model, poison: bool) -> Vec<Vec<f32>> {
    let mut workspace = Workspace::new(model, 3);
    let blocks = [2, 0, 1];
    let mut tokens: Vec<u32> = (0..100).map(|i| i * 37 % 512).collect();
    let mut start = 0;
    let mut steps = Vec::new();
    for _ in 0..10 {
        let segment = Segment { first_row: 0, rows: tokens.len() - start, start, blocks: &blocks };
        let last = segment.rows - 1;
        let logits = model.forward(&mut workspace, &tokens[start..], &[segment], &[last]).to_vec();
        start = tokens.len();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        tokens.push(best as u32);
        steps.push(logits);
        if poison {
            workspace.poison();
        }
    }
    steps
}

#[test]
fn nothing_but_the_cache_outlives_a_step() {
    for path in DecodePath::ALL {
        let model = model(path);
        assert_eq!(decode(&model, true), decode(&model, false), "{path}");
    }
}

#[test]
fn the_cache_is_as_large_as_the_path_says_and_no_larger() {
    for (path, elements) in [(DecodePath::MqaAbsorb, 36 + 16), (DecodePath::Gqa, 2 * (16 + 16) + 16)] {
        let model = model(path);
        let workspace = Workspace::new(&model, 5);
        let tokens = 5 * BLOCK_TOKENS;
        assert_eq!(workspace.allocated_elements(), 3 * tokens * elements, "{path}");
        assert_eq!(model.kv_elements_per_token_layer(), elements, "{path}");
    }
}
