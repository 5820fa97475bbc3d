//! Tokens that the device chooses in a running engine, on the stand-in for libcuda, against the processor's choices from
//! the same logits.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use gqla_fakecuda::{Config, testing::Alone};
use gqla_kernels::{
    attention::Segment,
    device::Images,
    sample::{Choice, Draw, NoToken, choose_rows},
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::{CudaModel, engine::Running, forward::Workspace};
use crate::{
    Constraint, DraftDepth, DraftSource, Event, Finish, PromptLookup, Request, SamplingParams, Speculation,
    TokenMask,
    blocks::BlockCopy,
    runner::{Bounds, Runner, StepModel},
    scheduler::Limits,
};

const BLOCKS: usize = 16;
const STEP_TOKENS: usize = 64;
const LIMITS: Limits = Limits { sequences: 16, tokens: STEP_TOKENS, context: 64 };

/// Runs `body` in a process that finds the stand-in and NVRTC when it starts.
pub(super) fn on_stand_in(name: &str, body: impl FnOnce()) {
    let test = Alone::new(name).with_nvrtc().env(Config::DEVICES_ENV, "H20");
    test.env(Config::ORDER_ENV, "own-first").run(body);
}

fn running() -> Running {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a/llama_gqla_a");
    let checkpoint = Checkpoint::open(&fixture).unwrap();
    let model = CudaModel::load(&checkpoint, Some(DecodePath::Gqa), 0, &Images::default()).unwrap();
    let workspace =
        Workspace::new(&model, BLOCKS, [STEP_TOKENS, model.context_length()], STEP_TOKENS).unwrap();
    Running { model, workspace, failed: None }
}

/// The same model, of which all logits leave the device.
struct Downloading(Running);

impl StepModel for Downloading {
    fn copy(&mut self, copies: &[BlockCopy]) {
        self.0.copy(copies);
    }

    fn expand(&mut self, _: &[u32]) {}

    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<(), String> {
        self.0.step(tokens, segments, wanted)
    }

    fn choose(&mut self, draws: &[Draw]) -> Result<Vec<Result<Choice, NoToken>>, String> {
        let rows = draws.iter().map(|draw| draw.row + 1).max().unwrap_or(0);
        let logits = self.0.model.kept_logits(&self.0.workspace, rows).unwrap();
        Ok(choose_rows(&logits, self.0.model.vocab_size(), draws))
    }

    fn draft(&mut self, _: &[usize], _: &[u32], _: &[Segment<'_>], _: &[usize]) -> Result<(), String> {
        Err("there is no prediction layer".to_owned())
    }
}

/// Allows tokens of one remainder by three, each time another.
struct Remainders(usize);

impl Constraint for Remainders {
    fn forbid(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        (0..512).filter(|id| id % 3 != self.0).for_each(|id| allowed.forbid(id));
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<bool, String> {
        if id as usize % 3 != self.0 {
            return Err(format!("{id} may not follow"));
        }
        self.0 = (self.0 + 1) % 3;
        Ok(false)
    }
}

/// Greedy and seeded, each parameter alone and all of them together.
fn parameters() -> Vec<SamplingParams> {
    let greedy = SamplingParams { max_tokens: 8, ..SamplingParams::default() };
    let seeded = SamplingParams { temperature: 1.5, seed: 11, logprobs: Some(2), ..greedy.clone() };
    let biases: Vec<(u32, f32)> = (0..512).step_by(5).map(|id| (id, 2.5)).collect();
    vec![
        SamplingParams { logprobs: Some(20), ..greedy.clone() },
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.5, ..greedy.clone() },
        greedy,
        SamplingParams { logprobs: None, ..seeded.clone() },
        SamplingParams { top_k: 12, ..seeded.clone() },
        SamplingParams { top_p: 0.7, ..seeded.clone() },
        SamplingParams { min_p: 0.1, ..seeded.clone() },
        SamplingParams { frequency_penalty: 0.7, ..seeded.clone() },
        SamplingParams { logit_bias: biases.clone(), ..seeded.clone() },
        SamplingParams { min_tokens: 4, stop_token_ids: (0..400).collect(), ..seeded.clone() },
        SamplingParams {
            top_k: 100,
            top_p: 0.9,
            min_p: 0.01,
            repetition_penalty: 1.1,
            presence_penalty: 0.2,
            frequency_penalty: 0.3,
            logit_bias: biases,
            logprobs: Some(3),
            ..seeded
        },
    ]
}

/// Every other answer is held to the tokens of its prompt, so that what follows them there is drafted.
fn submit(runner: &Runner, number: usize, mut sampling: SamplingParams) -> Receiver<Event> {
    let (sender, events) = channel();
    let sink: crate::Sink = Box::new(move |event| {
        let _ = sender.send(event);
        ControlFlow::Continue(())
    });
    let prompt = (0..6).map(|i| (i * 5 + number as u32) % 6).collect();
    if number.is_multiple_of(2) {
        sampling.logit_bias.retain(|(id, _)| *id < 6);
        sampling.logit_bias.extend((6..512).map(|id| (id, -100.0)));
    }
    let constraint = (number % 4 == 3).then(|| Box::new(Remainders(number % 3)) as Box<dyn Constraint>);
    runner.submit(Request { constraint, ..Request::new(prompt, sampling, sink) }).unwrap();
    events
}

/// All texts: together, or one after another with drafts, which are not worth their rows in a full step.
fn texts(model: impl StepModel, drafts: bool) -> Vec<Vec<Event>> {
    let source = DraftSource::PromptLookup(PromptLookup::new(1, 2).unwrap());
    let speculation = drafts.then(|| Speculation::new(source, 2).unwrap().with_depth(DraftDepth::Fixed));
    let bounds = Bounds { limits: LIMITS, blocks: BLOCKS, queued: 64, vocab: 512, speculation };
    let runner = Runner::start(model, bounds).unwrap();
    let text = |events: &Receiver<Event>| {
        let mut text = vec![events.recv_timeout(Duration::from_secs(300)).unwrap()];
        while !matches!(text.last(), Some(Event::Finished(_))) {
            text.push(events.recv_timeout(Duration::from_secs(300)).unwrap());
        }
        text
    };
    let submitted = parameters().into_iter().enumerate().map(|(i, sampling)| submit(&runner, i, sampling));
    let texts = if drafts {
        submitted.map(|events| text(&events)).collect()
    } else {
        submitted.collect::<Vec<_>>().iter().map(text).collect()
    };
    runner.shutdown(Duration::from_secs(60));
    assert_eq!(runner.stats().speculation.accepted_tokens > 0, drafts, "{:?}", runner.stats());
    texts
}

#[test]
fn the_device_draws_the_processors_tokens_with_every_parameter_and_with_drafts() {
    on_stand_in(
        "cuda::tests::the_device_draws_the_processors_tokens_with_every_parameter_and_with_drafts",
        || {
            let expected = texts(Downloading(running()), false);
            for (number, text) in expected.iter().enumerate() {
                let ended = text.last() == Some(&Event::Finished(Finish::Length));
                assert!((ended && text.len() == 9) || number == 9, "{number}: {text:?}");
            }
            assert!(expected[9].len() > 4, "stop tokens wait: {:?}", expected[9]);
            for drafts in [false, true] {
                for (number, (ours, expected)) in texts(running(), drafts).iter().zip(&expected).enumerate() {
                    assert_eq!(ours, expected, "{number}, drafts: {drafts}");
                }
            }
        },
    );
}
