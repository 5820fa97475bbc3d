//! The prediction layer on the stand-in for libcuda: what it is given, and that its cache has what the decoder's has. Its
//! logits are held to independent numbers in `tests/cuda`.

use std::path::Path;

use gqla_kernels::{device::Images, ops::rms_norm_row};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::*;
use crate::{
    DraftSource, Speculation,
    blocks::BlockCopy,
    cuda::{CudaEngineConfig, tests::on_stand_in},
    rewrite::leaning,
};

/// Rows of the longest text.
const ROWS: usize = 72;

/// Two decoder layers and a prediction layer.
fn model(path: DecodePath, expandable: bool) -> (Checkpoint, CudaModel) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a/llama_gqla_a");
    let (_folder, checkpoint) = leaning(&Checkpoint::open(&fixture).unwrap());
    let config = CudaEngineConfig {
        path: Some(path),
        speculation: Some(Speculation::new(DraftSource::PredictionLayer, 2).unwrap()),
        expandable,
        images: Images::default(),
        ..CudaEngineConfig::default()
    };
    let model = CudaModel::prepare(&checkpoint, &config).unwrap();
    (checkpoint, model)
}

fn workspace(model: &CudaModel) -> Workspace {
    Workspace::new(model, 4, [ROWS, 2 * ROWS], ROWS).unwrap()
}

fn text() -> (Vec<u32>, Vec<u32>) {
    let text: Vec<u32> = (0..=ROWS as u32).map(|i| i * 37 % 512).collect();
    (text[..ROWS].to_vec(), text[1..].to_vec())
}

/// Runs tokens `from .. to` through the decoder and then through the prediction layer, and returns the latter's logits.
fn run(model: &CudaModel, workspace: &mut Workspace, from: usize, to: usize, blocks: &[u32]) -> Vec<f32> {
    let (tokens, next) = text();
    let segment = Segment { first_row: 0, rows: to - from, start: from, blocks };
    let rows: Vec<usize> = (0..to - from).collect();
    model.forward(workspace, &tokens[from..to], &[segment], &[]).unwrap();
    model.draft(workspace, &rows, &next[from..to], &[segment], &rows).unwrap();
    model.kept_logits(workspace, rows.len()).unwrap()
}

/// Chunks, a block that was copied, rows of which only some go on, as after a draft that was refused, and guesses that
/// are overwritten.
#[test]
fn a_draft_has_the_same_bits_however_its_past_came_in() {
    on_stand_in("cuda::draft::tests::a_draft_has_the_same_bits_however_its_past_came_in", || {
        for path in DecodePath::ALL {
            let (_, model) = model(path, false);
            let (tokens, next) = text();
            let whole = model.draft_logits(&tokens, &next).unwrap();
            let mut workspace = workspace(&model);
            let mut apart = run(&model, &mut workspace, 0, 30, &[2]);
            apart.extend(run(&model, &mut workspace, 30, 64, &[2]));
            workspace.copy(&model.device, &[BlockCopy { from: 2, to: 1 }]).unwrap();
            run(&model, &mut workspace, 1, 20, &[2]);
            let blocks = [1, 0];
            let two = Segment { first_row: 0, rows: 2, start: 64, blocks: &blocks };
            model.forward(&mut workspace, &[tokens[64], tokens[65] ^ 1], &[two], &[]).unwrap();
            let one = Segment { rows: 1, ..two };
            model.draft(&mut workspace, &[0], &next[64..65], &[one], &[0]).unwrap();
            apart.extend(model.kept_logits(&workspace, 1).unwrap());
            for position in [65, 66] {
                let guess = Segment { start: position, ..one };
                model.draft(&mut workspace, &[0], &[5], &[guess], &[0]).unwrap();
            }
            apart.extend(run(&model, &mut workspace, 65, ROWS, &blocks));
            assert!(apart == whole, "{path}");
        }
    });
}

/// The layer's input of rows that continue those of the residual stream, from what is in it and in the checkpoint.
fn expected(
    model: &CudaModel,
    checkpoint: &Checkpoint,
    residual: &[f32],
    rows: &[usize],
    next: &[u32],
) -> Vec<f32> {
    let tensor = |name: &str| checkpoint.tensor(name).unwrap().to_f32();
    let (hidden, eps) = (checkpoint.config().hidden_size, checkpoint.config().rms_norm_eps);
    let embedding = tensor("model.embed_tokens.weight");
    let of_layer =
        |name: &str| tensor(&format!("model.layers.{}.{name}.weight", model.parameters.layers.len()));
    let normed = |x: &[f32], weight: &[f32]| {
        let mut out = vec![0.0; hidden];
        rms_norm_row(x, weight, eps, &mut out);
        out
    };
    let half = |(row, token): (&usize, &u32)| {
        let left = normed(&embedding[*token as usize * hidden..][..hidden], &of_layer("enorm"));
        [left, normed(&residual[row * hidden..][..hidden], &of_layer("hnorm"))].concat()
    };
    rows.iter().zip(next).flat_map(half).collect()
}

/// The decoder's rows with its last norm, the layer's own rows as they are.
#[test]
fn the_layer_is_given_embeddings_and_rows_of_the_last_call() {
    on_stand_in("cuda::draft::tests::the_layer_is_given_embeddings_and_rows_of_the_last_call", || {
        let (checkpoint, model) = model(DecodePath::Gqa, false);
        let hidden = checkpoint.config().hidden_size;
        let norm = checkpoint.tensor("model.norm.weight").unwrap().to_f32();
        let mut workspace = workspace(&model);
        let (tokens, _) = text();
        let segment = Segment { first_row: 0, rows: 5, start: 0, blocks: &[0] };
        model.forward(&mut workspace, &tokens[..5], &[segment], &[]).unwrap();
        for (rows, next, decoded) in [([3, 1], [9, 400], true), ([1, 0], [17, 2], false)] {
            let mut residual = model.device.download(&workspace.activations.residual, 5 * hidden).unwrap();
            if decoded {
                for row in residual.chunks_mut(hidden) {
                    let x = row.to_vec();
                    rms_norm_row(&x, &norm, checkpoint.config().rms_norm_eps, row);
                }
            }
            let one = |first_row| Segment { first_row, rows: 1, start: 0, blocks: &[[1u32], [2]][first_row] };
            model.draft(&mut workspace, &rows, &next, &[one(0), one(1)], &[]).unwrap();
            let joined = model.device.download(&workspace.activations.joined, 4 * hidden).unwrap();
            let expected = expected(&model, &checkpoint, &residual, &rows, &next);
            for (i, (ours, expected)) in joined.iter().zip(&expected).enumerate() {
                let off = (ours.to_f32() - expected).abs();
                assert!(
                    off <= expected.abs().max(0.05) / 64.0,
                    "{decoded}, number {i}: {ours}, expected {expected}"
                );
            }
        }
        let segments = [Segment { rows: 1, ..segment }];
        for (rows, next) in [(vec![0, 1], vec![3]), (vec![ROWS], vec![3]), (vec![0], vec![512])] {
            assert!(model.draft(&mut workspace, &rows, &next, &segments, &[0]).is_err(), "{rows:?} {next:?}");
        }
    });
}

/// Along both paths the layer's logits differ by what bf16 rounds; after a change of path they are as near to the other's.
#[test]
fn drafts_go_on_when_the_path_changes() {
    on_stand_in("cuda::draft::tests::drafts_go_on_when_the_path_changes", || {
        let (_, gqa) = model(DecodePath::Gqa, false);
        let (_, mut changing) = model(DecodePath::MqaAbsorb, true);
        assert_eq!(changing.expanded.as_ref().map(|expanded| expanded.up.len()), Some(3));
        let (tokens, next) = text();
        let (of_gqa, of_absorb) =
            (gqa.draft_logits(&tokens, &next).unwrap(), changing.draft_logits(&tokens, &next).unwrap());
        let mut workspace = workspace(&changing);
        run(&changing, &mut workspace, 0, 66, &[3, 1]);
        changing.expand(&mut workspace, &[1, 3]).unwrap();
        let changed = run(&changing, &mut workspace, 66, ROWS, &[3, 1]);
        let last = 66 * changing.vocab_size();
        let between = gap(&of_absorb[last..], &of_gqa[last..]);
        let after = gap(&changed, &of_gqa[last..]);
        println!("between paths {between:.2e}, after the change {after:.2e}");
        assert!(0.0 < after && after < 2.0 * between, "{after:.2e}, between paths {between:.2e}");
    });
}

/// Root of the mean square of the difference, relative to that of the expected numbers.
fn gap(ours: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(ours.len(), expected.len());
    let sum = |numbers: &mut dyn Iterator<Item = f32>| numbers.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let off = sum(&mut ours.iter().zip(expected).map(|(a, b)| a - b));
    (off / sum(&mut expected.iter().copied())).sqrt()
}
