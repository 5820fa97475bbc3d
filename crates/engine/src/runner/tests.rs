//! The engine's thread around a model that is a table.

use std::{
    ops::ControlFlow,
    sync::mpsc::{Receiver, channel},
};

use gqla_kernels::sample::choose_rows;

use super::*;
use crate::{DraftDepth, DraftSource, PromptLookup, SamplingParams};

const VOCAB: usize = 16;

/// Answers token + 1 for every token; can fail or panic at a given step.
struct Successor {
    steps: usize,
    /// The last call was a draft.
    drafted: bool,
    /// Of the last step or draft.
    rows: usize,
    logits: Vec<f32>,
    break_at: Option<(usize, Break)>,
    delay: Duration,
}

#[derive(Clone, Copy)]
enum Break {
    Error,
    Panic,
    NotANumber,
    Choice,
    Draft,
    DraftPanic,
    DraftChoice,
    DraftNotANumber,
}

impl StepModel for Successor {
    fn copy(&mut self, _: &[BlockCopy]) {}

    fn expand(&mut self, _: &[u32]) {}

    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<(), String> {
        assert_eq!(segments.iter().map(|segment| segment.rows).sum::<usize>(), tokens.len());
        thread::sleep(self.delay);
        self.steps += 1;
        (self.drafted, self.rows) = (false, tokens.len());
        self.logits = successors(tokens, wanted);
        match self.break_at {
            Some((step, Break::Error)) if step == self.steps => return Err("out of order".to_owned()),
            Some((step, Break::Panic)) if step == self.steps => panic!("a bug"),
            Some((step, Break::NotANumber)) if step == self.steps => self.logits[3] = f32::NAN,
            _ => {}
        }
        Ok(())
    }

    fn choose(&mut self, draws: &[Draw]) -> Result<Vec<Result<Choice, NoToken>>, String> {
        let mut choices = choose_rows(&self.logits, VOCAB, draws);
        match self.break_at {
            Some((step, Break::Choice)) if step <= self.steps => drop(choices.pop()),
            Some((step, Break::DraftChoice)) if step <= self.steps && self.drafted => {
                choices.push(Err(NoToken::NotFinite));
            }
            _ => {}
        }
        Ok(choices)
    }

    fn draft(
        &mut self,
        rows: &[usize],
        next: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<(), String> {
        assert_eq!(segments.iter().map(|segment| segment.rows).sum::<usize>(), next.len());
        assert!(rows.len() == next.len() && rows.iter().all(|row| *row < self.rows));
        (self.drafted, self.rows) = (true, rows.len());
        self.logits = successors(next, wanted);
        match self.break_at {
            Some((step, Break::Draft)) if step <= self.steps => Err("out of order".to_owned()),
            Some((step, Break::DraftPanic)) if step <= self.steps => panic!("a bug"),
            Some((step, Break::DraftNotANumber)) if step <= self.steps => {
                self.logits.fill(f32::NAN);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn successors(tokens: &[u32], wanted: &[usize]) -> Vec<f32> {
    let mut logits = vec![0.0; wanted.len() * VOCAB];
    for (row, wanted) in logits.chunks_mut(VOCAB).zip(wanted) {
        row[(tokens[*wanted] as usize + 1) % VOCAB] = 1.0;
    }
    logits
}

fn bounds() -> Bounds {
    Bounds {
        limits: Limits { sequences: 4, tokens: 100, context: 1024 },
        blocks: 16,
        queued: 8,
        vocab: VOCAB,
        speculation: None,
    }
}

const LAYER: DraftSource = DraftSource::PredictionLayer;

/// The same with drafts.
fn drafting(source: DraftSource, bounds: Bounds) -> Bounds {
    let speculation = Speculation::new(source, 6).unwrap().with_depth(DraftDepth::Fixed);
    Bounds { speculation: Some(speculation), ..bounds }
}

fn lookup() -> DraftSource {
    DraftSource::PromptLookup(PromptLookup::default())
}

fn start(bounds: Bounds, break_at: Option<(usize, Break)>, delay: Duration) -> Runner {
    Runner::start(
        Successor { steps: 0, drafted: false, rows: 0, logits: Vec::new(), break_at, delay },
        bounds,
    )
    .unwrap()
}

fn request(prompt: &[u32], max_tokens: u32) -> (Request, Receiver<Event>) {
    let (sender, events) = channel();
    let sink: crate::Sink = Box::new(move |event| match sender.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    });
    let sampling = SamplingParams { max_tokens, stop_token_ids: vec![12], ..SamplingParams::default() };
    (Request::new(prompt.to_vec(), sampling, sink), events)
}

/// Tokens and how it ended.
fn collect(events: &Receiver<Event>) -> (Vec<u32>, Finish) {
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(Duration::from_secs(20)).expect("the engine must not hang") {
            Event::Token { id, .. } => tokens.push(id),
            Event::Finished(finish) => return (tokens, finish),
        }
    }
}

#[test]
fn sequences_end_by_length_or_stop_token() {
    let runner = start(bounds(), None, Duration::ZERO);
    let (by_length, lengths) = request(&[3, 4], 3);
    let (by_stop, stops) = request(&[9], 50);
    runner.submit(by_length).unwrap();
    runner.submit(by_stop).unwrap();
    assert_eq!(collect(&lengths), (vec![5, 6, 7], Finish::Length));
    assert_eq!(collect(&stops), (vec![10, 11], Finish::Stop));
    runner.shutdown(Duration::from_secs(5));
    let stats = runner.stats();
    assert_eq!((stats.generated_tokens, stats.prompt_tokens, stats.blocks_used), (5, 3, 0));
}

#[test]
fn requests_that_can_never_run_are_refused() {
    let runner = start(bounds(), None, Duration::ZERO);
    let refused = |prompt: &[u32], max_tokens| runner.submit(request(prompt, max_tokens).0).unwrap_err();
    assert_eq!(refused(&[], 1), SubmitError::EmptyPrompt);
    assert_eq!(refused(&[1; 1000], 25), SubmitError::TooLong { prompt: 1000, max_tokens: 25, context: 1024 });
    assert_eq!(refused(&[1, 16], 1), SubmitError::UnknownToken { id: 16, position: 1, vocab_size: 16 });
    runner.shutdown(Duration::ZERO);
    assert_eq!(refused(&[1], 1), SubmitError::ShuttingDown);
    assert_eq!(runner.failure(), None);
}

#[test]
fn the_queue_is_bounded() {
    let runner = start(bounds(), None, Duration::from_millis(50));
    let mut kept = Vec::new();
    let mut refused = None;
    for _ in 0..40 {
        let (request, events) = request(&[1], 4);
        match runner.submit(request) {
            Ok(()) => kept.push(events),
            Err(error) => refused = Some(error),
        }
    }
    assert_eq!(refused, Some(SubmitError::QueueFull { limit: 8 }));
    assert!(kept.len() >= 8);
    for events in kept {
        assert_eq!(collect(&events), (vec![2, 3, 4, 5], Finish::Length));
    }
}

#[test]
fn a_client_that_left_frees_its_blocks() {
    let runner = start(bounds(), None, Duration::from_millis(1));
    let (leaving, events) = request(&[0; 64], 900);
    runner.submit(leaving).unwrap();
    assert!(matches!(events.recv().unwrap(), Event::Token { id: 1, .. }));
    drop(events);
    let (next, events) = request(&[1; 900], 2);
    runner.submit(next).unwrap();
    assert_eq!(collect(&events).1, Finish::Length);
    runner.shutdown(Duration::from_secs(5));
    assert!(runner.stats().generated_tokens < 200);
}

#[test]
fn a_client_that_leaves_while_queued_never_reaches_prefill() {
    let one = Bounds { limits: Limits { sequences: 1, ..bounds().limits }, ..bounds() };
    let runner = start(one, None, Duration::from_millis(20));
    let (first, events) = request(&[0], 11);
    let (queued, gone) = request(&[1; 50], 5);
    let cancel = queued.cancel.clone();
    runner.submit(first).unwrap();
    runner.submit(queued).unwrap();
    cancel.cancel();
    assert_eq!(collect(&gone), (vec![], Finish::Aborted));
    assert_eq!(collect(&events).1, Finish::Length);
    runner.shutdown(Duration::from_secs(5));
    assert_eq!(runner.stats().prompt_tokens, 1);
}

#[test]
fn a_client_that_leaves_in_mid_prompt_frees_its_blocks() {
    let slow = Bounds { limits: Limits { tokens: 10, ..bounds().limits }, ..bounds() };
    let runner = start(slow, None, Duration::from_millis(20));
    let (leaving, events) = request(&[0; 900], 5);
    let cancel = leaving.cancel.clone();
    runner.submit(leaving).unwrap();
    thread::sleep(Duration::from_millis(100));
    cancel.cancel();
    assert_eq!(collect(&events), (vec![], Finish::Aborted));
    runner.shutdown(Duration::from_secs(5));
    let stats = runner.stats();
    assert!(stats.prompt_tokens < 900, "{stats:?}");
    assert_eq!(stats.blocks_used, 0);
}

#[test]
fn failures_end_every_sequence_and_stop_the_heartbeat() {
    let all =
        [Break::Error, Break::Panic, Break::Choice, Break::Draft, Break::DraftPanic, Break::DraftChoice];
    for how in all {
        let runner = start(drafting(LAYER, bounds()), Some((2, how)), Duration::from_millis(20));
        let events: Vec<_> = (0..6)
            .map(|_| {
                let (request, events) = request(&[0], 11);
                runner.submit(request).unwrap();
                events
            })
            .collect();
        for events in &events {
            let (_, finish) = collect(events);
            assert_eq!(finish, Finish::Error(STEP_FAILED.to_owned()));
        }
        assert_eq!(runner.submit(request(&[0], 1).0), Err(SubmitError::Dead));
        assert!(runner.failure().is_some());
        thread::sleep(3 * HEARTBEAT);
        assert!(runner.stats().since_last_heartbeat > 2 * HEARTBEAT);
    }
}

/// Its drafts are refused like any others that are wrong.
#[test]
fn a_layer_that_computes_no_numbers_changes_no_text() {
    let runner = start(drafting(LAYER, bounds()), Some((1, Break::DraftNotANumber)), Duration::ZERO);
    let (request, events) = request(&[0], 10);
    runner.submit(request).unwrap();
    assert_eq!(collect(&events), ((1..11).collect(), Finish::Length));
    runner.shutdown(Duration::from_secs(5));
    let stats = runner.stats().speculation;
    assert!(stats.draft_tokens > 0 && stats.accepted_tokens == 0, "{stats:?}");
}

#[test]
fn an_idle_engine_keeps_its_heartbeat() {
    let runner = start(bounds(), None, Duration::ZERO);
    thread::sleep(4 * HEARTBEAT);
    assert_eq!(runner.failure(), None);
    assert!(runner.stats().since_last_heartbeat < 3 * HEARTBEAT);
}

#[test]
fn broken_logits_end_their_sequence_only() {
    let runner = start(bounds(), Some((1, Break::NotANumber)), Duration::ZERO);
    let (broken, events) = request(&[0], 5);
    runner.submit(broken).unwrap();
    assert!(matches!(collect(&events).1, Finish::Error(why) if why.contains("not finite")));
    let (sound, events) = request(&[0], 2);
    runner.submit(sound).unwrap();
    assert_eq!(collect(&events), (vec![1, 2], Finish::Length));
}

#[test]
fn shutdown_lets_sequences_finish_until_the_deadline() {
    for (deadline, expected) in [(Duration::from_secs(20), Finish::Length), (Duration::ZERO, Finish::Aborted)]
    {
        let runner = start(bounds(), None, Duration::from_millis(5));
        let (request, events) = request(&[0], 11);
        runner.submit(request).unwrap();
        events.recv().unwrap();
        runner.shutdown(deadline);
        assert_eq!(collect(&events).1, expected);
    }
}

#[test]
fn sequences_that_outgrow_the_cache_are_recomputed_with_the_same_result() {
    let small = Bounds { blocks: 5, limits: Limits { context: 320, ..bounds().limits }, ..bounds() };
    for bounds in [small, drafting(lookup(), small), drafting(LAYER, small)] {
        recomputed(start(bounds, None, Duration::ZERO));
    }
}

fn recomputed(runner: Runner) {
    let events: Vec<_> = (0..4)
        .map(|first| {
            let (mut request, events) = request(&[first; 60], 120);
            request.sampling.stop_token_ids.clear();
            runner.submit(request).unwrap();
            events
        })
        .collect();
    for (first, events) in (0..4).zip(&events) {
        let expected: Vec<u32> = (1..=120).map(|i| (first + i) % VOCAB as u32).collect();
        assert_eq!(collect(events), (expected, Finish::Length));
    }
    runner.shutdown(Duration::from_secs(5));
    assert!(runner.stats().preemptions > 0);
    assert_eq!(runner.stats().blocks_used, 0);
}

#[test]
fn drafts_bring_several_tokens_a_step_and_stop_where_the_text_does() {
    let counting: Vec<u32> = (0..12).chain(0..3).collect();
    let run = |bounds| {
        let runner = start(bounds, None, Duration::ZERO);
        let (stopping, stopped) = request(&counting, 50);
        runner.submit(stopping).unwrap();
        assert_eq!(collect(&stopped), ((3..12).collect(), Finish::Stop));
        let (short, ended) = request(&counting, 4);
        runner.submit(short).unwrap();
        assert_eq!(collect(&ended), ((3..7).collect(), Finish::Length));
        runner.shutdown(Duration::from_secs(5));
        runner.stats()
    };
    let without = run(bounds());
    assert_eq!((without.steps, without.generated_tokens), (14, 13));
    for source in [lookup(), LAYER] {
        let with = run(drafting(source, bounds()));
        assert_eq!(with.generated_tokens, 13, "a token after the stop is not one");
        assert!(with.steps < 14 && with.speculation.accepted_tokens > 0, "{with:?}");
        assert_eq!((with.prompt_tokens, with.blocks_used), (30, 0));
    }
}

#[test]
fn a_client_that_leaves_among_drafts_gets_and_pays_no_more() {
    for source in [lookup(), LAYER] {
        leaves_among_drafts(start(drafting(source, bounds()), None, Duration::ZERO));
    }
}

fn leaves_among_drafts(runner: Runner) {
    let counting: Vec<u32> = (0..12).chain(0..3).collect();
    let (sender, events) = channel();
    let mut left = 3;
    let sink: crate::Sink = Box::new(move |event| {
        let _ = sender.send(event);
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let sampling = SamplingParams { max_tokens: 50, ..SamplingParams::default() };
    runner.submit(Request::new(counting, sampling, sink)).unwrap();
    assert_eq!(collect(&events), (vec![3, 4, 5], Finish::Aborted));
    runner.shutdown(Duration::from_secs(5));
    assert_eq!(runner.stats().generated_tokens, 3);
}
