//! What is read of a model's weights, as the stand-in for libcuda counts it: when they come to the device, and in a step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use gqla_fakecuda::Config;
use serde_json::Value;

use super::*;
use crate::{
    PromptLookup, Speculation,
    cuda::{
        feed_forward::{FeedForward, Mlp},
        tests::on_stand_in,
    },
};

const DENSE: &str = "llama_a/llama_gqla_a";
const EXPERTS: &str = "glm_a/gqla";
/// Rows that a product reads weights for at a time. Along absorb heads of a group are rows of the up-projections' products.
const ROWS: usize = 64;
/// Tokens of each sequence before the step.
const PAST: usize = 2;

fn checkpoint(fixture: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture))
        .unwrap()
}

/// A report of the stand-in so far.
fn report(variable: &str) -> Vec<Value> {
    let text = fs::read_to_string(std::env::var_os(variable).unwrap()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Addresses of matrices, and bytes of them.
type Matrices = BTreeMap<u64, usize>;

fn whole(weights: &Weights) -> (u64, usize) {
    (weights.numbers().address(), weights.numbers().len() * size_of::<bf16>())
}

/// Those of a layer, as far as rows read them that choose `experts` different experts; without any number, all.
///
/// Norms are left out: each row reads their vectors for itself, which at a model's width is nothing beside a matrix.
fn of_layer(layer: &Layer, experts: Option<usize>) -> Matrices {
    let mlp = |mlp: &Mlp| [whole(&mlp.gate_up), whole(&mlp.down)];
    let mut all = Matrices::from([whole(&layer.projection.stacked), whole(&layer.output)]);
    all.extend(layer.projection.query.iter().flat_map(|query| [whole(&query.down), whole(&query.up)]));
    match &layer.up {
        UpProjection::Gqa(up) => all.extend([whole(up)]),
        UpProjection::Absorb { into_latent, out_of_latent } => {
            all.extend([whole(into_latent), whole(out_of_latent)]);
        }
    }
    match &layer.feed_forward {
        FeedForward::Dense(block) => all.extend(mlp(block)),
        FeedForward::Mixture(mixture) => {
            let (router, count) = (mixture.router.weights(), mixture.router.shape().experts);
            all.insert(router.address(), router.len() * size_of::<f32>());
            all.extend(mixture.shared.iter().flat_map(mlp));
            let chosen = |(address, bytes): (u64, usize)| (address, bytes / count * experts.unwrap_or(count));
            all.extend(mlp(&mixture.experts).map(chosen));
        }
    }
    all
}

/// `tokens` different rows of the embedding, and the head.
fn around(parameters: &Parameters, tokens: usize) -> Matrices {
    let row = parameters.embedding.inputs() * size_of::<bf16>();
    let head = parameters.head.as_ref().expect("the fixtures have a head of their own");
    Matrices::from([(parameters.embedding.numbers().address(), tokens * row), whole(head)])
}

/// Different experts that the last layer with any was asked for.
fn chosen(model: &CudaModel, workspace: &Workspace) -> Option<usize> {
    let choices = workspace.activations.routed.as_ref()?.choices.download(&model.device).unwrap();
    Some(choices.iter().flatten().map(|(expert, _)| *expert).collect::<BTreeSet<_>>().len())
}

/// A step of `sequences` with `each` rows that are verified, and what drafts for the next one where a layer does.
struct Decoding {
    sequences: usize,
    each: usize,
    blocks: Vec<[u32; 1]>,
}

impl Decoding {
    /// As many sequences as are read weights for at a time.
    fn most(model: &CudaModel, each: usize) -> Self {
        let heads = match model.path {
            DecodePath::Gqa => 1,
            DecodePath::MqaAbsorb => (model.shape.heads / model.shape.groups) as usize,
        };
        let sequences = ROWS / heads / each;
        Self { sequences, each, blocks: (0..sequences as u32).map(|block| [block]).collect() }
    }

    fn segments(&self, start: usize, rows: usize) -> Vec<Segment<'_>> {
        let segment = |(index, blocks)| Segment { first_row: index * rows, rows, start, blocks };
        self.blocks.iter().map(|blocks| &blocks[..]).enumerate().map(segment).collect()
    }

    /// Different tokens, since each reads its row of the embedding.
    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u32).map(|i| i * 5 % 512).collect()
    }

    /// Bytes of matrices that the step read, and that it touched.
    fn run(&self, model: &mut CudaModel) -> [usize; 2] {
        let rows = self.sequences * self.each;
        let room = rows.max(self.sequences * PAST);
        let mut workspace = Workspace::new(model, self.sequences, [room, BLOCK_TOKENS], rows).unwrap();
        let past = (Self::tokens(self.sequences * PAST), self.segments(0, PAST));
        model.forward(&mut workspace, &past.0, &past.1, &[]).unwrap();
        if model.parameters.draft.is_some() {
            let all: Vec<usize> = (0..past.0.len()).collect();
            model.draft(&mut workspace, &all, &past.0, &past.1, &[]).unwrap();
        }
        let (tokens, segments) = (Self::tokens(rows), self.segments(PAST, self.each));
        let all: Vec<usize> = (0..rows).collect();
        let mut touched = vec![around(&model.parameters, rows)];
        for layer in 0..model.parameters.layers.len() {
            // A layer chooses what it would if it were the last.
            let rest = model.parameters.layers.split_off(layer + 1);
            model.forward(&mut workspace, &tokens, &segments, &[]).unwrap();
            touched.push(of_layer(&model.parameters.layers[layer], chosen(model, &workspace)));
            model.parameters.layers.extend(rest);
        }
        // What was launched is counted when it runs.
        model.device.wait().unwrap();
        let already = report(Config::REPORT_ENV).len();
        model.forward(&mut workspace, &tokens, &segments, &all).unwrap();
        if let Some(draft) = &model.parameters.draft {
            let mut layer = |rows: &[usize], segments: &[Segment<'_>], wanted: &[usize]| {
                let next = Self::tokens(rows.len());
                model.draft(&mut workspace, rows, &next, segments, wanted).unwrap();
                touched.extend([
                    around(&model.parameters, rows.len()),
                    of_layer(&draft.layer, chosen(model, &workspace)),
                    Matrices::from([whole(&draft.projection)]),
                ]);
            };
            let last: Vec<usize> = (1..=self.sequences).map(|end| end * self.each - 1).collect();
            layer(&all, &segments, &last);
            let one = |start| self.segments(start, 1);
            layer(&last, &one(PAST + self.each), &all[..self.sequences]);
        }
        model.device.wait().unwrap();
        let matrices: BTreeSet<String> =
            touched.iter().flat_map(Matrices::keys).map(u64::to_string).collect();
        let launches = report(Config::REPORT_ENV).split_off(already);
        let buffers = launches.iter().flat_map(|launch| launch["buffers"].as_object().into_iter().flatten());
        let read = buffers
            .filter(|(address, _)| matrices.contains(*address))
            .map(|(_, bytes)| bytes["read"].as_u64().unwrap() as usize);
        [read.sum(), touched.iter().flat_map(Matrices::values).sum()]
    }
}

/// Steps of one token of each sequence, and of a token with three drafts, of which those of experts are a layer's own.
#[test]
fn a_step_reads_its_weights_once() {
    on_stand_in("cuda::model::tests::a_step_reads_its_weights_once", || {
        let lookup = DraftSource::PromptLookup(PromptLookup::new(1, 4).unwrap());
        for (fixture, source) in [(DENSE, lookup), (EXPERTS, DraftSource::PredictionLayer)] {
            for path in DecodePath::ALL {
                let speculation = Some(Speculation::new(source, 3).unwrap());
                let config =
                    CudaEngineConfig { path: Some(path), speculation, ..CudaEngineConfig::default() };
                let mut model = CudaModel::prepare(&checkpoint(fixture), &config).unwrap();
                for each in [1, 4] {
                    let step = Decoding::most(&model, each);
                    let [read, touched] = step.run(&mut model);
                    let ratio = read as f64 / touched as f64;
                    let what = format!("{fixture} {path}, {} sequences of {each} rows", step.sequences);
                    println!("{what}: read {read} of {touched} bytes, {ratio:.4}");
                    assert!(
                        (1.0..=1.02).contains(&ratio),
                        "{what}: read {read} of {touched} bytes, {ratio:.4}"
                    );
                }
            }
        }
    });
}

/// The fixtures' matrices are all much smaller than what goes up at a time.
#[test]
fn weights_come_from_page_locked_memory() {
    on_stand_in("cuda::model::tests::weights_come_from_page_locked_memory", || {
        for (fixture, drafting) in [(DENSE, false), (EXPERTS, true)] {
            for path in DecodePath::ALL {
                let (checkpoint, device) = (checkpoint(fixture), Device::open(0).unwrap());
                let attention = load::attention(&checkpoint).unwrap();
                let already = report(Config::COPIES_ENV).len();
                let parameters = load::parameters(&checkpoint, &device, &attention, path, drafting).unwrap();
                let copies = report(Config::COPIES_ENV).split_off(already);
                let [locked, other] = [true, false].map(|page_locked| -> u64 {
                    let of_kind = copies.iter().filter(|copy| copy["page_locked"] == page_locked);
                    of_kind.map(|copy| copy["bytes"].as_u64().unwrap()).sum()
                });
                let mut all = around(&parameters, parameters.embedding.outputs());
                all.extend(parameters.all_layers().flat_map(|layer| of_layer(layer, None)));
                let matrices = all.values().sum::<usize>() as u64;
                assert!(locked > matrices, "{fixture} {path}: {locked} bytes, matrices have {matrices}");
                assert_eq!(other, 0, "{fixture} {path}");
            }
        }
    });
}
