//! Texts with drafts are those without, bit for bit: greedy and seeded, adjusted and constrained, alone, together and
//! preempted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

use std::{
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use gqla_engine::{
    Checkpoint, Constraint, DraftDepth, DraftSource, Engine, Event, Finish, PromptLookup, Request,
    SamplingParams, Sink, Speculation, TokenMask,
    cpu::{CacheMemory, CpuEngine, CpuEngineConfig},
};
use gqla_model::DecodePath::{self, Gqa, MqaAbsorb};
use proptest::prelude::*;

const MODELS: [(&str, Option<DecodePath>); 3] =
    [("llama_gqla_a", Some(Gqa)), ("llama_gqla_a", Some(MqaAbsorb)), ("llama_untied", None)];

/// Blocks of a cache that several sequences do not fit into.
const TIGHT: u64 = 6;

/// What a sequence asks for.
#[derive(Clone, Debug)]
struct Asked {
    prompt: Vec<u32>,
    sampling: SamplingParams,
    constrained: bool,
}

/// After a token divisible by 3 comes one that is not, and the other way round; ends with token 7.
#[derive(Default)]
struct Turns {
    divisible: bool,
}

impl Constraint for Turns {
    fn forbid(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        let others = |id: &usize| id.is_multiple_of(3) != self.divisible;
        (0..512).filter(others).for_each(|id| allowed.forbid(id));
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<bool, String> {
        if id.is_multiple_of(3) != self.divisible {
            return Err(format!("{id} may not follow"));
        }
        self.divisible = !self.divisible;
        Ok(id == 7)
    }
}

/// As many drafts as there are, whatever they cost: what is asserted of them must not depend on how long steps took.
fn start(model: usize, drafts: usize, blocks: Option<u64>) -> CpuEngine {
    start_with(model, drafts, DraftDepth::Fixed, blocks)
}

fn start_with(model: usize, drafts: usize, depth: DraftDepth, blocks: Option<u64>) -> CpuEngine {
    let (name, path) = MODELS[model];
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a");
    let checkpoint = Checkpoint::open(&fixtures.join(name)).unwrap();
    let source = DraftSource::PromptLookup(PromptLookup::new(1, 4).unwrap());
    let speculation = (drafts > 0).then(|| Speculation::new(source, drafts).unwrap().with_depth(depth));
    let config = CpuEngineConfig { path, threads: Some(2), speculation, ..CpuEngineConfig::default() };
    let roomy = CpuEngine::start(&checkpoint, config.clone()).unwrap();
    let Some(blocks) = blocks else { return roomy };
    let block = (roomy.info().kv_bytes_per_token * roomy.info().block_size) as u64;
    let kv_cache = CacheMemory::Bytes(blocks * block);
    CpuEngine::start(&checkpoint, CpuEngineConfig { kv_cache, ..config }).unwrap()
}

/// The sequence waits at its first event until `gate` closes.
fn submit(engine: &CpuEngine, asked: &Asked, gate: Receiver<()>) -> Receiver<Event> {
    let (sender, events) = channel();
    let sink: Sink = Box::new(move |event| {
        let _ = gate.recv();
        let _ = sender.send(event);
        ControlFlow::Continue(())
    });
    let constraint = asked.constrained.then(|| Box::new(Turns::default()) as Box<dyn Constraint>);
    let request = Request::new(asked.prompt.clone(), asked.sampling.clone(), sink);
    engine.submit(Request { constraint, ..request }).unwrap();
    events
}

/// All events of a sequence; log-probabilities are compared to the bit.
fn collect(events: &Receiver<Event>) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let event = events.recv_timeout(Duration::from_secs(120)).unwrap();
        let ended = matches!(event, Event::Finished(_));
        all.push(event);
        if ended {
            return all;
        }
    }
}

/// Together: none is done before the last came.
fn run(engine: &CpuEngine, asked: &[Asked]) -> Vec<Vec<Event>> {
    let (gates, events): (Vec<_>, Vec<_>) = asked
        .iter()
        .map(|asked| {
            let (open, gate) = channel();
            (open, submit(engine, asked, gate))
        })
        .unzip();
    drop(gates);
    events.iter().map(collect).collect()
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    let truncation = (
        prop::sample::select(vec![0.0f32, 0.3, 0.8, 1.5]),
        prop::sample::select(vec![1.0f32, 0.9, 0.4]),
        prop::sample::select(vec![0u32, 3, 40]),
        prop::sample::select(vec![0.0f32, 0.05]),
    );
    let penalties = (
        prop::sample::select(vec![0.0f32, 0.5]),
        prop::sample::select(vec![0.0f32, 0.2, -0.2]),
        prop::sample::select(vec![1.0f32, 1.2, 0.7]),
        prop::collection::vec((0u32..512, -4.0f32..12.0), 0..4),
    );
    let ends = (1u32..90, 0u32..20, prop::collection::vec(0u32..512, 0..3), any::<u64>());
    (truncation, penalties, ends).prop_map(|(truncation, penalties, ends)| SamplingParams {
        temperature: truncation.0,
        top_p: truncation.1,
        top_k: truncation.2,
        min_p: truncation.3,
        presence_penalty: penalties.0,
        frequency_penalty: penalties.1,
        repetition_penalty: penalties.2,
        logit_bias: penalties.3,
        max_tokens: ends.0,
        min_tokens: ends.1,
        stop_token_ids: ends.2,
        seed: ends.3,
        logprobs: Some(2),
    })
}

/// A prompt that repeats itself.
fn asked() -> impl Strategy<Value = Asked> {
    (1u32..12, 1usize..150, 1u32..40, sampling(), prop::bool::weighted(0.25)).prop_map(
        |(period, len, stride, sampling, constrained)| {
            let prompt = (0..len as u32).map(|i| i % period * stride % 512).collect();
            Asked { prompt, sampling, constrained }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn texts_with_drafts_are_those_without(
        model in 0usize..MODELS.len(),
        drafts in 1usize..9,
        depth in prop::sample::select(vec![DraftDepth::Adaptive, DraftDepth::Fixed]),
        asked in prop::collection::vec(asked(), 1..7),
    ) {
        let plain = run(&start(model, 0, None), &asked);
        let tight = start_with(model, drafts, depth, Some(TIGHT));
        prop_assert_eq!(&run(&tight, &asked), &plain);
        // Again, over what the cache kept of the first round.
        prop_assert_eq!(&run(&tight, &asked), &plain);
        prop_assert_eq!(tight.stats().generated_tokens, 2 * delivered(&plain));
    }
}

fn delivered(texts: &[Vec<Event>]) -> u64 {
    texts.iter().flatten().filter(|event| matches!(event, Event::Token { .. })).count() as u64
}

/// One sequence whose text repeats itself, as its prompt did.
fn repetitive(seed: u64) -> Asked {
    let sampling = SamplingParams {
        max_tokens: 60,
        temperature: 0.7,
        frequency_penalty: -2.0,
        seed,
        ..SamplingParams::default()
    };
    Asked { prompt: (0..40).map(|i| i % 4 * 9).collect(), sampling, constrained: false }
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps() {
    for model in 0..MODELS.len() {
        let (plain, drafting) = (start(model, 0, None), start(model, 4, None));
        let asked = [repetitive(1)];
        assert_eq!(run(&drafting, &asked), run(&plain, &asked));
        let (without, with) = (plain.stats(), drafting.stats());
        let stats = with.speculation;
        assert!(stats.accepted_tokens > 0, "{stats:?}");
        assert_eq!(with.steps + stats.accepted_tokens, without.steps, "{stats:?}");
        assert_eq!(with.generated_tokens, without.generated_tokens);
        assert_eq!(without.speculation, gqla_engine::SpeculationStats::default());
    }
}

#[test]
fn sequences_that_are_preempted_with_their_drafts_keep_their_texts() {
    let asked: Vec<Asked> = (0..5).map(repetitive).collect();
    let plain = run(&start(0, 0, None), &asked);
    let tight = start(0, 4, Some(3));
    assert_eq!(run(&tight, &asked), plain);
    let stats = tight.stats();
    assert!(stats.preemptions > 0 && stats.speculation.accepted_tokens > 0, "{stats:?}");
    assert!(plain.iter().all(|text| text.last() == Some(&Event::Finished(Finish::Length))));
}

#[test]
fn the_engine_says_how_much_it_drafts() {
    assert_eq!(start(0, 4, None).info().multi_token_prediction, 4);
    assert_eq!(start(0, 0, None).info().multi_token_prediction, 0);
}
