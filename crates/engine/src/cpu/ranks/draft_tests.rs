//! Drafts of the prediction layer in a running engine: what the layer is given, and what that does to texts, which is
//! nothing.

use std::{
    ops::ControlFlow,
    sync::mpsc::{Receiver, Sender, channel},
};

use gqla_kernels::attention::BLOCK_TOKENS;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{tests::relative_error, *};
use crate::{
    DraftDepth, EngineStats, Event, Request, SamplingParams, Speculation,
    cpu::shard::tests::fixture,
    rewrite,
    runner::{Bounds, Runner},
    scheduler::Limits,
};

const LONG: Duration = Duration::from_secs(60);

/// Fewer than prompts have, and no divisor of a block.
const STEP_TOKENS: usize = 50;

fn leaning() -> (TempDir, Checkpoint) {
    rewrite::leaning(&Checkpoint::open(&fixture("../glm_a/gqla")).unwrap())
}

/// Of a sequence its start, its tokens that follow, and the logits of its last row if they were wanted.
type Given<'a> = (usize, &'a [u32], Option<&'a [f32]>);

/// What the layer was given and answered.
struct Call {
    /// The first after a step.
    first: bool,
    next: Vec<u32>,
    /// Position of the first row, rows.
    segments: Vec<(usize, usize)>,
    wanted: Vec<usize>,
    logits: Vec<f32>,
}

impl Call {
    /// One part for every sequence.
    fn parts(&self) -> Vec<Given<'_>> {
        let vocab = self.logits.len() / self.wanted.len().max(1);
        let mut row = 0;
        let part = |(start, rows): &(usize, usize)| {
            row += rows;
            let wanted = self.wanted.iter().position(|wanted| *wanted == row - 1);
            let logits = wanted.map(|index| &self.logits[index * vocab..][..vocab]);
            (*start, &self.next[row - rows..row], logits)
        };
        self.segments.iter().map(part).collect()
    }
}

/// Ranks that tell what their layer was given.
struct Overheard {
    ranks: Ranks,
    first: bool,
    calls: Sender<Call>,
}

impl StepModel for Overheard {
    fn copy(&mut self, copies: &[BlockCopy]) {
        self.ranks.copy(copies);
    }

    fn expand(&mut self, blocks: &[u32]) {
        self.ranks.expand(blocks);
    }

    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<(), String> {
        self.first = true;
        self.ranks.step(tokens, segments, wanted)
    }

    fn choose(&mut self, draws: &[Draw]) -> Result<Vec<Result<Choice, NoToken>>, String> {
        self.ranks.choose(draws)
    }

    fn draft(
        &mut self,
        rows: &[usize],
        next: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<(), String> {
        self.ranks.draft(rows, next, segments, wanted)?;
        let call = Call {
            first: std::mem::take(&mut self.first),
            next: next.to_vec(),
            segments: segments.iter().map(|segment| (segment.start, segment.rows)).collect(),
            wanted: wanted.to_vec(),
            logits: self.ranks.first.workspace.logits().to_vec(),
        };
        self.calls.send(call).map_err(|error| error.to_string())
    }
}

/// A running engine and what it tells of its layer.
struct Running {
    runner: Runner,
    calls: Receiver<Call>,
}

impl Running {
    fn start(checkpoint: &Checkpoint, path: DecodePath, world: usize, drafts: usize, blocks: usize) -> Self {
        let layer = || Speculation::new(DraftSource::PredictionLayer, drafts).unwrap();
        let speculation = (drafts > 0).then(|| layer().with_depth(DraftDepth::Fixed));
        let config = CpuEngineConfig {
            path: Some(path),
            tensor_parallel: world,
            threads: Some(2),
            speculation,
            ..CpuEngineConfig::default()
        };
        let parts = load(checkpoint, &config).unwrap().into_iter().map(|part| part.model).collect();
        let ranks = Ranks::start(parts, comms(world, LONG), blocks, CacheFormat::F32).unwrap();
        let (sender, calls) = channel();
        let limits = Limits { sequences: 6, tokens: STEP_TOKENS, context: blocks.min(8) * BLOCK_TOKENS };
        let bounds = Bounds { limits, blocks, queued: 32, vocab: 512, speculation };
        let runner = Runner::start(Overheard { ranks, first: false, calls: sender }, bounds).unwrap();
        Self { runner, calls }
    }

    /// All events of all sequences; none is done before the last came.
    fn run(&self, asked: &[(Vec<u32>, SamplingParams)]) -> Vec<Vec<Event>> {
        let submit = |(prompt, sampling): &(Vec<u32>, SamplingParams)| {
            let ((open, gate), (sender, events)) = (channel::<()>(), channel());
            let sink: crate::Sink = Box::new(move |event| {
                let _ = gate.recv();
                let _ = sender.send(event);
                ControlFlow::Continue(())
            });
            self.runner.submit(Request::new(prompt.clone(), sampling.clone(), sink)).unwrap();
            (open, events)
        };
        let (gates, events): (Vec<_>, Vec<_>) = asked.iter().map(submit).unzip();
        drop(gates);
        events.into_iter().map(|events| events.iter().collect()).collect()
    }

    /// The layer's calls so far.
    fn calls(&self) -> Vec<Call> {
        self.calls.try_iter().collect()
    }

    fn stop(self) -> EngineStats {
        self.runner.shutdown(LONG);
        self.runner.stats()
    }
}

/// A prompt with its answer.
fn text(prompt: &[u32], events: &[Event]) -> Vec<u32> {
    let id = |event: &Event| match event {
        Event::Token { id, .. } => Some(*id),
        Event::Finished(_) => None,
    };
    prompt.iter().copied().chain(events.iter().filter_map(id)).collect()
}

fn sampling(temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams { max_tokens: 40, temperature, seed, logprobs: Some(2), ..SamplingParams::default() }
}

fn drafting(checkpoint: &Checkpoint, path: DecodePath) -> Model {
    let mut model = Model::load_with_threads(checkpoint, Some(path), Some(2)).unwrap();
    model.make_drafting(checkpoint).unwrap();
    model
}

/// The layer's logits of every token but the last, by a model that never ran before.
fn reference(model: &Model, text: &[u32]) -> Vec<f32> {
    model.draft_logits(&text[..text.len() - 1], &text[1..], CacheFormat::F32).unwrap()
}

/// Bits where one rank computes, as in the model that is compared with.
fn assert_same(ours: &[f32], expected: &[f32], world: usize, what: &str) {
    if world == 1 {
        assert!(ours == expected, "{what}: not the same bits");
    } else {
        let error = relative_error(ours, expected);
        assert!(error < 1e-4, "{what}: {error:e}");
    }
}

/// Drafts of a text's position by a workspace of its own: the layer's logits after the first `len` tokens, and then as
/// it is given its own rows with the tokens `drafts`.
fn chain(model: &Model, text: &[u32], len: usize, drafts: &[u32]) -> Vec<Vec<f32>> {
    let blocks: Vec<u32> = (0..(len + drafts.len()).div_ceil(BLOCK_TOKENS) as u32).collect();
    let mut workspace = Workspace::new(model, blocks.len(), CacheFormat::F32);
    let all = Segment { first_row: 0, rows: len, start: 0, blocks: &blocks };
    let rows: Vec<usize> = (0..len).collect();
    model.forward(&mut workspace, &text[..len], &[all], &[]).unwrap();
    let first = model.draft(&mut workspace, &rows, &text[1..=len], &[all], &[len - 1]).unwrap().unwrap();
    let (mut logits, mut row) = (vec![first.to_vec()], len - 1);
    for (i, draft) in drafts.iter().enumerate() {
        let one = Segment { rows: 1, start: len + i, ..all };
        logits.push(model.draft(&mut workspace, &[row], &[*draft], &[one], &[0]).unwrap().unwrap().to_vec());
        row = 0;
    }
    logits
}

/// Every position is given once, in chunks and after drafts that were refused, with the token that follows it.
#[test]
fn a_running_engine_drafts_what_the_layer_says_of_the_text_so_far() {
    let (_dir, checkpoint) = leaning();
    for (path, world) in [(DecodePath::Gqa, 1), (DecodePath::MqaAbsorb, 1), (DecodePath::Gqa, 2)] {
        let model = drafting(&checkpoint, path);
        let running = Running::start(&checkpoint, path, world, 3, 8);
        let prompt: Vec<u32> = (0..130).map(|i| i * 37 % 512).collect();
        let events = running.run(&[(prompt.clone(), sampling(0.5, 3))]);
        let (text, calls) = (text(&prompt, &events[0]), running.calls());
        let speculation = running.stop().speculation;
        assert!((1..speculation.draft_tokens).contains(&speculation.accepted_tokens), "{speculation:?}");
        assert!(speculation.draft_tokens > speculation.drafts, "some steps draft more than one token");
        let reference = reference(&model, &text);
        let (mut given, mut expected, mut drafted) = (0, Vec::new(), 0);
        for call in &calls {
            let [(start, next, logits)] = call.parts()[..] else { panic!("one sequence") };
            if call.first {
                assert_eq!((start, next), (given, &text[given + 1..][..next.len()]));
                given += next.len();
                if let Some(logits) = logits {
                    assert_same(logits, &reference[(given - 1) * 512..][..512], world, "first draft");
                    drafted += 1;
                }
                expected.clear();
            } else {
                assert_eq!((start, next.len()), (given + expected.len(), 1));
                expected.push(next[0]);
                let chain = chain(&model, &text, given, &expected);
                assert_same(logits.unwrap(), &chain[expected.len()], world, "later draft");
                assert_eq!(next[0], gqla_kernels::sample::argmax(&chain[expected.len() - 1]), "a guess");
            }
        }
        assert!(given >= text.len() - 1 && drafted as u64 >= speculation.drafts);
    }
}

/// Prompts that go on differently after two blocks in common, others that repeat, and short ones.
fn asked() -> impl Strategy<Value = (Vec<u32>, SamplingParams)> {
    let ends = (prop::sample::select(vec![0.0f32, 0.5, 1.0]), 1u32..70, any::<u64>(), any::<bool>());
    (0u32..3, 1usize..150, 0u32..4, ends).prop_map(|(kind, len, other, ends)| {
        let token = |i: u32| if i < 128 { (i * 37 + kind) % 512 } else { (i * 11 + other) % 512 };
        let (temperature, max_tokens, seed, penalised) = ends;
        let frequency_penalty = if penalised { 0.3 } else { 0.0 };
        let sampling = SamplingParams { max_tokens, frequency_penalty, ..sampling(temperature, seed) };
        ((0..len as u32).map(token).collect(), sampling)
    })
}

/// The layer's calls of `texts` are those of a text each, and its drafts are what the text alone would give: whatever
/// was adopted, copied, preempted and computed again. Answers how many were looked at.
fn check_calls(model: &Model, calls: &[Call], texts: &[Vec<u32>], world: usize) -> usize {
    let references: Vec<Vec<f32>> = texts.iter().map(|text| reference(model, text)).collect();
    let mut drafts = 0;
    for (start, next, logits) in calls.iter().filter(|call| call.first).flat_map(Call::parts) {
        let follows = |text: &&Vec<u32>| text.get(start + 1..).is_some_and(|rest| rest.starts_with(next));
        assert!(texts.iter().any(|text| follows(&text)), "{start}: {next:?} follow in no text");
        let Some(logits) = logits else { continue };
        let last = start + next.len() - 1;
        let same = |(text, reference): (&Vec<u32>, &Vec<f32>)| {
            let expected = reference.get(last * 512..(last + 1) * 512);
            let close = |expected| match world {
                1 => logits == expected,
                _ => relative_error(logits, expected) < 1e-4,
            };
            follows(&text) && expected.is_some_and(close)
        };
        assert!(texts.iter().zip(&references).any(same), "the draft after {last} is no text's");
        drafts += 1;
    }
    drafts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn texts_with_the_layers_drafts_are_those_without(
        path in prop::sample::select(DecodePath::ALL.to_vec()),
        world in 1usize..3,
        drafts in 1usize..5,
        asked in prop::collection::vec(asked(), 1..7),
    ) {
        let (_dir, checkpoint) = leaning();
        let model = drafting(&checkpoint, path);
        let plain = Running::start(&checkpoint, path, world, 0, 64).run(&asked);
        let texts: Vec<_> = asked.iter().zip(&plain).map(|((prompt, _), events)| text(prompt, events)).collect();
        let tight = Running::start(&checkpoint, path, world, drafts, 7);
        prop_assert_eq!(&tight.run(&asked), &plain);
        // Again, over what the cache kept of the first round.
        prop_assert_eq!(&tight.run(&asked), &plain);
        check_calls(&model, &tight.calls(), &texts, world);
    }
}

/// The same with prefixes, preemption, rejections and acceptance for certain.
#[test]
fn shared_beginnings_and_preemption_leave_the_layers_rows_right() {
    let (_dir, checkpoint) = leaning();
    for (path, world) in [(DecodePath::Gqa, 1), (DecodePath::MqaAbsorb, 1), (DecodePath::Gqa, 2)] {
        let model = drafting(&checkpoint, path);
        let tight = Running::start(&checkpoint, path, world, 3, 6);
        let common = (0..128).map(|i| i * 37 % 512);
        let asked: Vec<_> = (0..4)
            .map(|i| {
                (
                    common.clone().chain([i / 2, i]).collect(),
                    SamplingParams { max_tokens: 100, ..sampling(0.5, i.into()) },
                )
            })
            .collect();
        let plain = Running::start(&checkpoint, path, world, 0, 64).run(&asked);
        let texts: Vec<_> =
            asked.iter().zip(&plain).map(|((prompt, _), events)| text(prompt, events)).collect();
        assert_eq!(tight.run(&asked), plain);
        let drafts = check_calls(&model, &tight.calls(), &texts, world);
        // One after the other: what the layer's cache holds of the end of the common blocks is another's.
        for (asked, plain) in asked.iter().zip(&plain) {
            assert_eq!(tight.run(std::slice::from_ref(asked)), std::slice::from_ref(plain));
        }
        let alone = check_calls(&model, &tight.calls(), &texts, world);
        assert!(drafts > 20 && alone > 20, "{drafts} drafts together, {alone} alone");
        let stats = tight.stop();
        let speculation = stats.speculation;
        assert!(stats.preemptions > 0 && stats.prefix_hits > 0, "{stats:?}");
        assert!((1..speculation.draft_tokens).contains(&speculation.accepted_tokens), "{stats:?}");
    }
}
