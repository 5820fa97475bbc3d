//! The scheduler around a cache that remembers what was written where.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::{Cancel, DraftDepth::*, DraftSource, Event, PromptLookup, SamplingParams, sampling::Drawn};

const LIMITS: Limits = Limits { sequences: 4, tokens: 100, context: 512 };

struct World {
    scheduler: Scheduler,
    queue: BTreeMap<Rank, Request>,
    arrivals: u64,
    /// What a token's place holds: a hash of the tokens up to there, as a key depends on all of them.
    cache: HashMap<(u32, usize), u64>,
    /// The same of the prediction layer, whose rows depend on the token that follows besides.
    layer: HashMap<(u32, usize), u64>,
    /// Numbers of the requests that ended, in that order.
    ended: Arc<Mutex<Vec<(usize, Finish)>>>,
    /// Prompts and what the sequences were to get at most, then what they got.
    asked: Vec<(Vec<u32>, u32)>,
    texts: Arc<Mutex<HashMap<usize, Vec<u32>>>>,
    computed: usize,
    copied: usize,
}

fn up_to(tokens: &[u32]) -> Vec<u64> {
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let next = |token: &u32| {
        hash = with(hash, *token);
        hash
    };
    tokens.iter().map(next).collect()
}

/// The hash of one more token.
fn with(hash: u64, token: u32) -> u64 {
    (hash ^ u64::from(token + 1)).wrapping_mul(0x0100_0000_01B3)
}

/// The text a sequence continues with is a function of what it has: mostly it counts on.
fn next(tokens: &[u32]) -> u32 {
    let (hash, last) = (up_to(tokens)[tokens.len() - 1], tokens[tokens.len() - 1]);
    if hash.is_multiple_of(6) { (hash / 6 % 7) as u32 } else { (last + 1) % 7 }
}

fn lookup(tokens: usize) -> Option<Speculation> {
    let source = DraftSource::PromptLookup(PromptLookup::new(1, 3).unwrap());
    (tokens > 0).then(|| Speculation::new(source, tokens).unwrap())
}

fn layer(tokens: usize) -> Option<Speculation> {
    (tokens > 0).then(|| Speculation::new(DraftSource::PredictionLayer, tokens).unwrap())
}

impl World {
    fn new(blocks: usize, limits: Limits) -> Self {
        Self::drafting(blocks, limits, None)
    }

    fn drafting(blocks: usize, limits: Limits, speculation: Option<Speculation>) -> Self {
        Self {
            scheduler: Scheduler::new(blocks, limits, speculation),
            queue: BTreeMap::new(),
            arrivals: 0,
            cache: HashMap::new(),
            layer: HashMap::new(),
            ended: Arc::default(),
            asked: Vec::new(),
            texts: Arc::default(),
            computed: 0,
            copied: 0,
        }
    }

    fn submit(&mut self, prompt: Vec<u32>, max_tokens: u32, priority: i32, salt: &str) -> Cancel {
        let (number, ended, texts) =
            (self.arrivals as usize, Arc::clone(&self.ended), Arc::clone(&self.texts));
        let sink: crate::Sink = Box::new(move |event| {
            match event {
                Event::Token { id, .. } => texts.lock().unwrap().entry(number).or_default().push(id),
                Event::Finished(finish) => ended.lock().unwrap().push((number, finish)),
            }
            ControlFlow::Continue(())
        });
        self.asked.push((prompt.clone(), max_tokens));
        let sampling = SamplingParams { max_tokens, ..SamplingParams::default() };
        let request =
            Request { priority, cache_salt: salt.to_owned(), ..Request::new(prompt, sampling, sink) };
        let cancel = request.cancel.clone();
        self.arrivals += 1;
        self.queue.insert(Rank::new(self.arrivals, priority), request);
        cancel
    }

    fn idle(&self) -> bool {
        self.queue.is_empty() && self.scheduler.is_idle()
    }

    fn ended(&self) -> Vec<usize> {
        self.ended.lock().unwrap().iter().map(|(number, _)| *number).collect()
    }

    /// One round as the engine's thread does it; answers the slices' lengths.
    fn step(&mut self) -> Vec<usize> {
        self.scheduler.dismiss();
        self.scheduler.admit(&mut self.queue);
        let Plan { slices, copies } = self.scheduler.plan();
        self.copy(&copies);
        for slice in &slices {
            self.write(slice);
        }
        let made: Vec<u64> = slices.iter().flat_map(|slice| self.rows(slice)).collect();
        for slice in &slices {
            self.read(slice);
            let progress = self.draw(slice);
            self.scheduler.computed(slice, progress);
        }
        self.draft(&slices, made);
        self.scheduler.retire();
        let lengths: Vec<usize> = slices.iter().map(|slice| slice.len).collect();
        self.computed += lengths.iter().sum::<usize>();
        assert!(slices.iter().map(Slice::rows).sum::<usize>() <= self.scheduler.limits.tokens);
        lengths
    }

    fn draw(&mut self, slice: &Slice) -> Progress {
        if !slice.draws {
            return Progress::default();
        }
        let sequence = &mut self.scheduler.running[slice.sequence];
        let computed = fed(sequence);
        sequence.extend_by(LIMITS.context, |_, tokens, row| {
            assert_eq!(tokens, &computed[..slice.start + slice.len + row], "the row is another text's");
            Ok(Drawn { id: next(tokens), logprob: None, last: false })
        })
    }

    /// What sequences that ended by themselves got is what they ask for, however it came about.
    fn check_texts(&self) {
        for (number, finish) in self.ended.lock().unwrap().iter() {
            let (prompt, max_tokens) = &self.asked[*number];
            let mut text = prompt.clone();
            (0..*max_tokens).for_each(|_| text.push(next(&text)));
            if *finish == Finish::Length {
                assert_eq!(self.texts.lock().unwrap()[number], text[prompt.len()..]);
            }
        }
    }

    fn copy(&mut self, copies: &[BlockCopy]) {
        self.copied += copies.len();
        for copy in copies {
            for place in 0..BLOCK_TOKENS {
                for cache in [&mut self.cache, &mut self.layer] {
                    if let Some(content) = cache.get(&(copy.from, place)).copied() {
                        cache.insert((copy.to, place), content);
                    }
                }
            }
        }
    }

    fn rows(&self, slice: &Slice) -> Vec<u64> {
        up_to(&fed(&self.scheduler.running[slice.sequence]))[slice.start..][..slice.rows()].to_vec()
    }

    fn write(&mut self, slice: &Slice) {
        for (position, content) in (slice.start..).zip(self.rows(slice)) {
            let place = self.place(slice.sequence, position);
            self.cache.insert(place, content);
        }
    }

    /// Where a sequence may write.
    fn place(&self, sequence: usize, position: usize) -> (u32, usize) {
        let block = self.scheduler.running[sequence].blocks[position / BLOCK_TOKENS];
        let holders = self.scheduler.running.iter().flat_map(|s| &s.blocks).filter(|b| **b == block);
        assert_eq!(holders.count(), 1, "nobody writes to a block that others have");
        (block, position % BLOCK_TOKENS)
    }

    /// The prediction layer's rounds after a step, as the engine's thread has them made; `made` is what came of the
    /// step's rows. A row of the layer is the hash of its token, all before and the one that follows.
    fn draft(&mut self, slices: &[Slice], mut made: Vec<u64>) {
        let mut round = self.scheduler.after(slices);
        while !round.is_empty() {
            made = round.rows.iter().zip(&round.next).map(|(row, next)| with(made[*row], *next)).collect();
            let segments: Vec<_> = {
                let segments = round.segments(&self.scheduler.running);
                segments.iter().map(|segment| (segment.first_row, segment.rows, segment.start)).collect()
            };
            for ((first_row, rows, start), part) in segments.into_iter().zip(&round.parts) {
                for row in 0..rows {
                    let place = self.place(part.sequence, start + row);
                    self.layer.insert(place, made[first_row + row]);
                }
            }
            for part in &round.parts {
                self.read_layer(part.sequence, part.start + part.rows);
            }
            // Right where the text counts on.
            let drafts: Vec<u32> = round.wanted.iter().map(|row| (round.next[*row] + 1) % 7).collect();
            round = self.scheduler.drafted(&round, &drafts);
        }
    }

    /// The first `len` rows of the layer are those of the sequence's tokens and drafts.
    fn read_layer(&self, sequence: usize, len: usize) {
        let sequence = &self.scheduler.running[sequence];
        for (position, content) in up_to(&fed(sequence))[1..=len].iter().enumerate() {
            let place = (sequence.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            assert_eq!(self.layer.get(&place), Some(content), "the layer's position {position}");
        }
    }

    /// After all writes of the step, as in a layer of the model.
    fn read(&self, slice: &Slice) {
        let sequence = &self.scheduler.running[slice.sequence];
        for (position, content) in up_to(&fed(sequence))[..slice.start + slice.rows()].iter().enumerate() {
            let place = (sequence.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            assert_eq!(self.cache.get(&place), Some(content), "position {position}");
        }
    }
}

/// A sequence with its drafts.
fn fed(sequence: &Sequence) -> Vec<u32> {
    [sequence.tokens.as_slice(), &sequence.drafts].concat()
}

/// Prompts with beginnings in common.
fn prompt(kind: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| if i < 140 { i % 7 + kind % 2 } else { i * kind }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_sequence_reads_what_it_wrote_and_ends(
        blocks in 8usize..16,
        drafts in 0usize..10,
        from_layer in any::<bool>(),
        requests in prop::collection::vec(
            (0u32..5, 1usize..320, 1u32..60, -2i32..3, 0usize..12, any::<bool>()), 1..14),
    ) {
        let source = if from_layer { layer } else { lookup };
        let mut world = World::drafting(blocks, LIMITS, source(drafts));
        let mut cancels = Vec::new();
        let count = requests.len();
        for (kind, len, max_tokens, priority, wait, leaves) in requests {
            let cancel = world.submit(prompt(kind, len), max_tokens, priority, if kind == 4 { "other" } else { "" });
            for _ in 0..wait {
                world.step();
            }
            if leaves {
                cancels.push(cancel);
            }
            if cancels.len() > 1 {
                cancels.remove(0).cancel();
            }
        }
        let mut steps = 0;
        while !world.idle() {
            world.step();
            steps += 1;
            prop_assert!(steps < 5000, "some sequence never ends");
        }
        prop_assert_eq!(world.ended().len(), count);
        prop_assert_eq!(world.scheduler.blocks_used(), 0);
        world.check_texts();
    }
}

#[test]
fn nobody_waits_for_ever_however_many_more_important_requests_come() {
    let mut world = World::new(16, LIMITS);
    let flood = |world: &mut World, count| {
        (0..count).for_each(|_| drop(world.submit(prompt(2, 70), 5, 0, "")));
    };
    flood(&mut world, 8);
    world.submit(prompt(1, 70), 5, 2, "");
    let mut steps = 0;
    while !world.ended().contains(&8) {
        flood(&mut world, 3);
        world.step();
        steps += 1;
        assert!(steps < 1000, "the request starves");
    }
    // Those that came before it, at most two steps of priority, and what ran when its turn came.
    let overtook = world.ended().iter().position(|number| *number == 8).unwrap();
    assert!((100..=8 + 2 * 64 + LIMITS.sequences).contains(&overtook), "{overtook} went before it");
}

#[test]
fn a_large_request_is_not_kept_out_by_small_ones() {
    let mut world = World::new(8, LIMITS);
    world.submit(prompt(1, 70), 50, 0, "");
    world.step();
    world.submit(prompt(2, 430), 5, 0, "");
    for _ in 0..20 {
        world.submit(prompt(3, 10), 40, 0, "");
    }
    while !world.idle() {
        world.step();
    }
    assert_eq!(world.ended()[..2], [0, 1]);
}

#[test]
fn priorities_decide_who_is_next() {
    let one = Limits { sequences: 1, ..LIMITS };
    let mut world = World::new(16, one);
    for priority in [0, 5, -5, 0] {
        world.submit(prompt(1, 10), 2, priority, "");
    }
    while !world.idle() {
        world.step();
    }
    assert_eq!(world.ended(), [2, 0, 3, 1]);
}

#[test]
fn decoding_goes_on_while_a_prompt_is_computed_in_chunks() {
    let mut world = World::new(16, LIMITS);
    world.submit(prompt(1, 3), 50, 0, "");
    world.step();
    world.submit(prompt(2, 250), 5, 0, "");
    assert_eq!([world.step(), world.step(), world.step(), world.step()], [[1, 99], [1, 99], [1, 52], [1, 1]]);
}

#[test]
fn a_cancelled_sequence_gives_its_blocks_back_before_the_next_step() {
    let mut world = World::new(8, LIMITS);
    let cancel = world.submit(prompt(1, 400), 50, 0, "");
    world.step();
    assert_eq!(world.scheduler.blocks_used(), 2);
    cancel.cancel();
    world.scheduler.dismiss();
    assert_eq!(world.scheduler.blocks_used(), 0);
    assert_eq!(*world.ended.lock().unwrap(), [(0, Finish::Aborted)]);
}

#[test]
fn a_common_beginning_is_computed_once_for_each_salt() {
    let mut world = World::new(32, LIMITS);
    let mut cost = |len, salt| {
        let before = (world.computed, world.copied);
        world.submit(prompt(1, len), 1, 0, salt);
        while !world.idle() {
            world.step();
        }
        (world.computed - before.0, world.copied - before.1)
    };
    assert_eq!(cost(130, ""), (130, 0));
    assert_eq!(cost(130, ""), (2, 0));
    assert_eq!(cost(128, ""), (1, 0), "the last token is computed in any case");
    assert_eq!(cost(130, "tenant"), (130, 0));
    assert_eq!(world.scheduler.prefixes(), PrefixCounts { queries: 518, hits: 128 + 127 });
}

/// The layer's row of a block's last token is made of the token that follows the block, too.
#[test]
fn with_the_prediction_layer_a_block_is_shared_by_those_who_go_on_alike() {
    let mut world = World::drafting(32, LIMITS, layer(3));
    let mut cost = |prompt: Vec<u32>| {
        let before = world.computed;
        world.submit(prompt, 1, 0, "");
        while !world.idle() {
            world.step();
        }
        world.computed - before
    };
    let long = prompt(1, 130);
    let other = [&long[..128], &[long[128] + 1, 0]].concat();
    assert_eq!(cost(long.clone()), 130);
    assert_eq!(cost(long.clone()), 2);
    assert_eq!(cost(other.clone()), 130 - 64, "another token follows its second block");
    assert_eq!(cost(long[..128].to_vec()), 64, "no token follows it yet");
    assert_eq!((cost(other), cost(long)), (2, 2));
    assert_eq!(world.copied, 0);
}

/// A text's last token has none that follows it: a block that it fills is not shared.
#[test]
fn a_text_that_ends_with_a_block_leaves_that_block_unnamed() {
    for (len, shared) in [(64, 0), (65, 64)] {
        let mut world = World::drafting(32, LIMITS, layer(3));
        world.submit(vec![0], len - 1, 0, "");
        while !world.idle() {
            world.step();
        }
        let text = [&[0], world.texts.lock().unwrap()[&0].as_slice()].concat();
        world.submit([&text, &[1; 80][..]].concat(), 1, 0, "");
        while !world.idle() {
            world.step();
        }
        assert_eq!(world.scheduler.prefixes().hits, shared, "{len} tokens");
    }
}

#[test]
fn a_block_that_another_sequence_reads_is_copied_before_it_is_written() {
    let mut world = World::new(32, LIMITS);
    world.submit(prompt(1, 128), 20, 0, "");
    world.step();
    world.step();
    world.submit(prompt(1, 128), 20, 0, "");
    assert_eq!(world.step(), [1, 1]);
    assert_eq!(world.copied, 1);
}

#[test]
fn samples_of_one_prompt_that_came_together_compute_it_once() {
    let mut world = World::new(32, LIMITS);
    for _ in 0..3 {
        world.submit(prompt(1, 320), 4, 0, "");
    }
    while !world.idle() {
        world.step();
    }
    // 320 tokens, the last one again for each of the others, and three tokens for each that are no answer's last.
    assert!((320 + 2 + 9..320 + 2 * 100).contains(&world.computed), "{}", world.computed);
}

#[test]
fn drafts_save_steps_and_count_what_became_of_them() {
    drafts_save_steps(lookup);
    drafts_save_steps(layer);
}

fn drafts_save_steps(source: fn(usize) -> Option<Speculation>) {
    let steps = |drafts| {
        let mut world = World::drafting(16, LIMITS, source(drafts));
        world.submit(prompt(1, 70), 100, 0, "");
        let mut steps = 0;
        while !world.idle() {
            world.step();
            steps += 1;
        }
        world.check_texts();
        (steps, world.scheduler.speculated())
    };
    let (without, nothing) = steps(0);
    assert_eq!((without, nothing), (100, SpeculationStats::default()));
    let (with, stats) = steps(8);
    assert!(with < 60, "{with} steps");
    assert_eq!(with + stats.accepted_tokens, without, "a step yields one token and those accepted");
    assert!(stats.draft_tokens > stats.accepted_tokens && stats.drafts < with, "{stats:?}");
    assert_eq!(stats.accepted_per_position.iter().sum::<u64>(), stats.accepted_tokens);
    assert!(stats.accepted_per_position.is_sorted_by(|one, next| one >= next));
}

#[test]
fn drafts_preempt_nobody() {
    for source in [lookup, layer] {
        drafts_of_preempt_nobody(source(8));
    }
}

fn drafts_of_preempt_nobody(speculation: Option<Speculation>) {
    let mut world = World::drafting(2, Limits { context: 128, ..LIMITS }, speculation);
    world.submit(prompt(1, 40), 40, 0, "");
    world.submit(prompt(2, 3), 60, 0, "");
    while world.scheduler.preemptions() == 0 && !world.idle() {
        world.step();
        if let Some(first) = world.scheduler.running.first() {
            let fits = first.blocks.len() == 1 || first.tokens.len() > BLOCK_TOKENS;
            assert!(fits, "a draft took the block of {} tokens", first.tokens.len());
        }
    }
    assert_eq!(world.scheduler.preemptions(), 1);
    while !world.idle() {
        world.step();
    }
    world.check_texts();
}

#[test]
fn a_large_batch_drafts_nothing_unless_the_depth_is_fixed() {
    let many = Limits { sequences: 32, tokens: 512, ..LIMITS };
    for (source, depth) in [lookup, layer].iter().flat_map(|source| [(source, Adaptive), (source, Fixed)]) {
        let speculation = source(8).map(|speculation| speculation.with_depth(depth));
        let mut world = World::drafting(64, many, speculation);
        (0..32).for_each(|_| drop(world.submit(prompt(1, 20), 30, 0, "")));
        while !world.idle() {
            world.step();
        }
        let (stats, nothing) = (world.scheduler.speculated(), SpeculationStats::default());
        let many = stats.drafts > 32 && stats.draft_tokens > 4 * stats.drafts;
        assert!(if depth == Fixed { many } else { stats == nothing }, "{depth:?}: {stats:?}");
        world.check_texts();
    }
}
