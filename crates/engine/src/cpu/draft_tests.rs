//! The prediction layer against independent numbers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gqla_kernels::attention::CacheFormat;
use gqla_model::DecodePath;
use safetensors::SafeTensors;

use super::*;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/glm_a/gqla")
}

struct Golden(Vec<u8>);

impl Golden {
    fn words<T>(&self, name: &str, convert: impl Fn([u8; 4]) -> T) -> Vec<T> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let data = tensors.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|word| convert(word.try_into().unwrap())).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name, u32::from_le_bytes)
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, f32::from_le_bytes)
    }
}

fn golden() -> Golden {
    Golden(fs::read(fixture().join("golden.safetensors")).unwrap())
}

fn model(path: DecodePath) -> Model {
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let mut model = Model::load_with_threads(&checkpoint, Some(path), Some(2)).unwrap();
    model.make_drafting(&checkpoint).unwrap();
    model
}

/// Largest difference over the largest expected magnitude.
fn relative_error(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    ours.iter().zip(expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

const BLOCKS: [u32; 3] = [2, 0, 1];

/// Runs tokens `from .. to` through the decoder and then through the prediction layer, and returns the latter's logits.
fn run(
    model: &Model,
    workspace: &mut Workspace,
    tokens: &[u32],
    next: &[u32],
    from: usize,
    to: usize,
) -> Vec<f32> {
    let segment = Segment { first_row: 0, rows: to - from, start: from, blocks: &BLOCKS };
    let rows: Vec<usize> = (0..to - from).collect();
    model.forward(workspace, &tokens[from..to], &[segment], &[]).unwrap();
    model.draft(workspace, &rows, &next[from..to], &[segment], &rows).unwrap().unwrap().to_vec()
}

#[test]
fn drafts_are_the_golden_ones_on_both_paths() {
    let golden = golden();
    for path in DecodePath::ALL {
        let model = model(path);
        for i in [1, 2] {
            let (tokens, next) = (golden.ids(&format!("ids_{i}")), golden.ids(&format!("mtp_next_ids_{i}")));
            let mut workspace = Workspace::new(&model, 3, CacheFormat::F32);
            let segment = Segment { first_row: 0, rows: tokens.len(), start: 0, blocks: &BLOCKS };
            let rows: Vec<usize> = (0..tokens.len()).collect();
            model.forward(&mut workspace, &tokens, &[segment], &[]).unwrap();
            let error =
                relative_error(&workspace.activations.hidden, &golden.floats(&format!("mtp_in_hidden_{i}")));
            assert!(error < 1e-4, "{path} in {i}: {error:e}");
            let drafts =
                model.draft(&mut workspace, &rows, &next, &[segment], &rows).unwrap().unwrap().to_vec();
            let error = relative_error(&drafts, &golden.floats(&format!("mtp_logits_{i}")));
            assert!(error < 1e-4, "{path} logits {i}: {error:e}");
            let error =
                relative_error(&workspace.activations.hidden, &golden.floats(&format!("mtp_out_hidden_{i}")));
            assert!(error < 1e-4, "{path} out {i}: {error:e}");
        }
    }
}

/// Chunks, and rows of which only some go on, as after a draft that was refused.
#[test]
fn a_draft_has_the_same_bits_however_its_past_came_in() {
    let golden = golden();
    let (tokens, next) = (golden.ids("ids_2"), golden.ids("mtp_next_ids_2"));
    for path in DecodePath::ALL {
        let model = model(path);
        let mut workspace = Workspace::new(&model, 3, CacheFormat::F32);
        let whole = run(&model, &mut workspace, &tokens, &next, 0, 130);
        let mut workspace = Workspace::new(&model, 3, CacheFormat::F32);
        let mut apart = run(&model, &mut workspace, &tokens, &next, 0, 70);
        apart.extend(run(&model, &mut workspace, &tokens, &next, 70, 128));
        let wrong = [tokens[128], tokens[129] ^ 1];
        let two = Segment { first_row: 0, rows: 2, start: 128, blocks: &BLOCKS };
        model.forward(&mut workspace, &wrong, &[two], &[0, 1]).unwrap();
        let one = Segment { rows: 1, ..two };
        apart.extend(model.draft(&mut workspace, &[0], &next[128..129], &[one], &[0]).unwrap().unwrap());
        apart.extend(run(&model, &mut workspace, &tokens, &next, 129, 130));
        assert_eq!(apart, whole, "{path}");
    }
}

/// A second draft continues the first one's row, as the decoder's would be continued.
#[test]
fn a_second_draft_continues_the_first() {
    let golden = golden();
    let (tokens, next) = (golden.ids("ids_1"), golden.ids("mtp_next_ids_1"));
    let model = model(DecodePath::Gqa);
    let mut workspace = Workspace::new(&model, 3, CacheFormat::F32);
    run(&model, &mut workspace, &tokens, &next, 0, 17);
    let first = workspace.activations.hidden[16 * 128..].to_vec();
    let segment = Segment { first_row: 0, rows: 1, start: 17, blocks: &BLOCKS };
    let second = model.draft(&mut workspace, &[16], &[5], &[segment], &[0]).unwrap().unwrap().to_vec();
    assert!(second.iter().all(|x| x.is_finite()));
    workspace.activations.hidden = first;
    let again = model.draft(&mut workspace, &[0], &[5], &[segment], &[0]).unwrap().unwrap();
    assert_eq!(again, second, "what is given again overwrites");
}

#[test]
fn the_prediction_layer_has_a_cache_of_its_own() {
    for (path, elements) in [(DecodePath::MqaAbsorb, 64 + 16), (DecodePath::Gqa, 4 * (32 + 32) + 16)] {
        let checkpoint = Checkpoint::open(&fixture()).unwrap();
        let mut model = Model::load_with_threads(&checkpoint, Some(path), Some(2)).unwrap();
        assert_eq!(model.kv_bytes_per_token(CacheFormat::F32), 4 * 4 * elements, "{path}");
        let mut workspace = Workspace::new(&model, 1, CacheFormat::F32);
        assert!(
            model.draft(&mut workspace, &[], &[], &[], &[]).unwrap().is_none(),
            "it was not asked to draft"
        );
        model.make_drafting(&checkpoint).unwrap();
        assert_eq!(model.kv_bytes_per_token(CacheFormat::F32), 5 * 4 * elements, "{path}");
        assert_eq!(Workspace::new(&model, 1, CacheFormat::F32).caches.len(), 5);
    }
}

#[test]
fn drafts_go_on_when_the_path_changes() {
    let golden = golden();
    let (tokens, next) = (golden.ids("ids_2"), golden.ids("mtp_next_ids_2"));
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let mut model = Model::load_with_threads(&checkpoint, Some(DecodePath::MqaAbsorb), Some(2)).unwrap();
    model.make_expandable(&Shard::whole(&checkpoint), Precision::default()).unwrap();
    model.make_drafting(&checkpoint).unwrap();
    let mut workspace = Workspace::new(&model, 3, CacheFormat::F32);
    let mut drafts = run(&model, &mut workspace, &tokens, &next, 0, 100);
    model.expand(&mut workspace, &BLOCKS);
    drafts.extend(run(&model, &mut workspace, &tokens, &next, 100, 130));
    let error = relative_error(&drafts, &golden.floats("mtp_logits_2"));
    assert!(error < 1e-4, "{error:e}");
}

#[test]
fn a_model_without_such_a_layer_says_so() {
    let checkpoint = Checkpoint::open(&fixture().join("../mla")).unwrap();
    let mut model = Model::load_with_threads(&checkpoint, None, Some(1)).unwrap();
    let error = model.make_drafting(&checkpoint).unwrap_err();
    assert!(matches!(error, LoadError::NoDraftLayer(_)), "{error}");
    assert_eq!(model.draft_logits(&[1], &[2], CacheFormat::F32), Err(LogitsError::NoDraftLayer));
    let lengths = model.draft_logits(&[1, 2], &[2], CacheFormat::F32);
    assert_eq!(lengths, Err(LogitsError::Next { tokens: 2, next: 1 }));
}
