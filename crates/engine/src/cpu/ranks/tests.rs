use std::{fs, ops::ControlFlow, sync::mpsc, time::Instant};

use gqla_kernels::attention::{BLOCK_TOKENS, CachedToken};
use gqla_model::DecodePath::{Gqa, MqaAbsorb};
use safetensors::SafeTensors;

use super::*;
use crate::{
    Event, Finish, Request, SamplingParams,
    cpu::shard::tests::{fixture, write_model},
    runner::{Bounds, Runner},
    scheduler::Limits,
};

const CASES: [(&str, Option<DecodePath>); 8] = [
    ("llama_gqla_a", Some(Gqa)),
    ("llama_gqla_a", Some(MqaAbsorb)),
    ("llama_tied", None),
    ("llama_untied", None),
    ("../glm_a/gqla", Some(Gqa)),
    ("../glm_a/gqla", Some(MqaAbsorb)),
    ("../glm_a/mla", Some(Gqa)),
    ("../glm_a/mla", Some(MqaAbsorb)),
];

const LONG: Duration = Duration::from_secs(60);

fn config(path: Option<DecodePath>, world: usize, threads: usize) -> CpuEngineConfig {
    CpuEngineConfig { path, tensor_parallel: world, threads: Some(threads), ..CpuEngineConfig::default() }
}

fn parts(checkpoint: &Checkpoint, path: Option<DecodePath>, world: usize) -> Vec<Model> {
    let parts = load(checkpoint, &config(path, world, 2)).unwrap();
    parts.into_iter().map(|part| part.model).collect()
}

fn ranks(checkpoint: &Checkpoint, path: Option<DecodePath>, world: usize) -> Ranks {
    let parts = parts(checkpoint, path, world);
    Ranks::start(parts, comms(world, LONG), 4, CacheFormat::F32).unwrap()
}

/// Logits of every position, the prompt in two chunks and its last token alone.
fn logits(ranks: &mut Ranks, tokens: &[u32]) -> Vec<f32> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).rev().collect();
    let bounds = [0, tokens.len() / 2, tokens.len() - 1, tokens.len()];
    let mut all = Vec::new();
    for pair in bounds.windows(2).filter(|pair| pair[0] < pair[1]) {
        let (start, rows) = (pair[0], pair[1] - pair[0]);
        let segment = Segment { first_row: 0, rows, start, blocks: &blocks };
        let wanted: Vec<usize> = (0..rows).collect();
        ranks.step(&tokens[start..pair[1]], &[segment], &wanted).unwrap();
        all.extend_from_slice(ranks.first.workspace.logits());
    }
    all
}

/// Largest difference over the largest expected magnitude.
pub(super) fn relative_error(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    assert!(ours.iter().all(|x| x.is_finite()));
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    ours.iter().zip(expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

#[test]
fn every_degree_computes_the_golden_logits() {
    for (name, path) in CASES {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let golden = fs::read(fixture(name).join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&golden).unwrap();
        let words = |name: &str| -> Vec<[u8; 4]> {
            let data = golden.tensor(name).unwrap().data();
            data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
        };
        for world in [1, 2, 4, 8] {
            let mut ranks = ranks(&checkpoint, path, world);
            for i in 0..3 {
                let ids: Vec<u32> = words(&format!("ids_{i}")).into_iter().map(u32::from_le_bytes).collect();
                let expected: Vec<f32> =
                    words(&format!("logits_{i}")).into_iter().map(f32::from_le_bytes).collect();
                let error = relative_error(&logits(&mut ranks, &ids), &expected);
                assert!(error < 1e-4, "{name} {path:?} TP {world} logits_{i}: {error:e}");
            }
        }
    }
}

#[test]
fn a_degree_computes_the_same_bits_in_every_run() {
    let checkpoint = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    let tokens: Vec<u32> = (0..90).map(|i| i * 37 % 512).collect();
    for path in DecodePath::ALL {
        let run = |threads| {
            let parts = load(&checkpoint, &config(Some(path), 4, threads)).unwrap();
            let parts = parts.into_iter().map(|part| part.model).collect();
            let mut ranks = Ranks::start(parts, comms(4, LONG), 4, CacheFormat::F32).unwrap();
            logits(&mut ranks, &tokens)
        };
        assert_eq!(run(1), run(12), "{path}");
    }
}

#[test]
fn ranks_that_cut_a_group_absorb_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = write_model(dir.path(), 6, 2);
    let tokens: Vec<u32> = (0..90).map(|i| i * 37 % 512).collect();
    let whole = logits(&mut ranks(&checkpoint, Some(MqaAbsorb), 1), &tokens);
    for world in [2, 3, 6] {
        let error = relative_error(&logits(&mut ranks(&checkpoint, Some(MqaAbsorb), world), &tokens), &whole);
        assert!(error < 1e-4, "TP {world}: {error:e}");
    }
}

/// The bytes of real caches: `max(1, TP/G)` times the groups' and TP times the shared rope key's; on absorb TP latents.
#[test]
fn no_group_is_stored_more_often_than_its_ranks_need() {
    let checkpoint = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    let (layers, blocks, groups) = (3, 5, 2);
    let tokens = layers * blocks * BLOCK_TOKENS;
    for format in CacheFormat::ALL {
        let bytes = |elements, parts| CachedToken { elements, parts }.bytes(format) as usize;
        let (group, rope, latent) = (bytes(16 + 16, 2), bytes(16, 1), bytes(36 + 16, 2));
        for world in [1, 2, 4, 8] {
            let bytes = |path| -> usize {
                let models = parts(&checkpoint, Some(path), world);
                let workspaces = models.iter().map(|model| Workspace::new(model, blocks, format));
                workspaces.map(|workspace| workspace.cache_bytes()).sum()
            };
            let copies = usize::max(1, world / groups);
            assert_eq!(bytes(Gqa), tokens * (copies * groups * group + world * rope), "TP {world}");
            assert_eq!(bytes(MqaAbsorb), tokens * world * latent, "TP {world}");
        }
    }
}

/// A rank's end of a group that does something terrible at an exchange.
struct Faulty {
    comm: Box<dyn Comm>,
    exchanges_left: usize,
    fault: fn(),
}

impl Faulty {
    fn exchange(&mut self) {
        if self.exchanges_left == 0 {
            (self.fault)();
        }
        self.exchanges_left = self.exchanges_left.saturating_sub(1);
    }
}

impl Comm for Faulty {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn world(&self) -> usize {
        self.comm.world()
    }

    fn all_reduce(&mut self, numbers: &mut [f32]) -> Result<(), CommError> {
        self.exchange();
        self.comm.all_reduce(numbers)
    }

    fn all_gather(&mut self, part: &[f32], take: &mut dyn FnMut(usize, &[f32])) -> Result<(), CommError> {
        self.exchange();
        self.comm.all_gather(part, take)
    }

    fn fail(&mut self, why: &str) {
        self.comm.fail(why);
    }
}

/// Ranks of which `rank` has a fault at its `exchange`th exchange.
fn faulty(rank: usize, exchange: usize, fault: fn(), limit: Duration) -> Ranks {
    let checkpoint = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    let mut comms = comms(4, limit);
    let comm = comms.remove(rank);
    comms.insert(rank, Box::new(Faulty { comm, exchanges_left: exchange, fault }));
    Ranks::start(parts(&checkpoint, Some(Gqa), 4), comms, 4, CacheFormat::F32).unwrap()
}

fn step(ranks: &mut Ranks) -> Result<(), String> {
    let segment = Segment { first_row: 0, rows: 3, start: 0, blocks: &[1] };
    ranks.step(&[5, 6, 7], &[segment], &[2])
}

/// A step has 8 exchanges: the embedding, two in each of three layers, the logits.
#[test]
fn a_rank_that_panics_ends_the_step_at_once_wherever_it_was() {
    for exchange in [0, 3, 7] {
        let mut ranks = faulty(2, exchange, || panic!("rank two fell over"), LONG);
        let began = Instant::now();
        let expected = "tensor-parallel rank 2 of 4 has ended (rank two fell over), and the others cannot go on \
                        without its part of the model: restart the server";
        assert_eq!(step(&mut ranks), Err(expected.to_owned()), "{exchange}");
        assert_eq!(step(&mut ranks), Err(expected.to_owned()), "and so does every later step");
        drop(ranks);
        assert!(began.elapsed() < LONG / 2);
    }
    let mut healthy = faulty(2, 8, || panic!("in the second step"), LONG);
    assert_eq!(step(&mut healthy), Ok(()));
    assert!(step(&mut healthy).is_err());
}

#[test]
fn a_rank_that_hangs_ends_the_step_after_the_limit_and_is_left_behind() {
    let hang = || thread::sleep(Duration::from_secs(300));
    let mut ranks = faulty(3, 4, hang, Duration::from_millis(300));
    let began = Instant::now();
    let error = step(&mut ranks).unwrap_err();
    assert!(error.contains("of 4 tensor-parallel ranks, [3] did not come"), "{error}");
    drop(ranks);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn the_first_rank_may_panic_too() {
    let mut ranks = faulty(0, 5, || panic!("rank zero fell over"), LONG);
    let began = Instant::now();
    assert!(catch_unwind(AssertUnwindSafe(|| step(&mut ranks))).is_err());
    drop(ranks);
    assert!(began.elapsed() < LONG / 2, "nobody waits for it");
}

#[test]
fn a_dead_rank_ends_every_sequence_and_the_engine_says_so() {
    let ranks = faulty(1, 20, || panic!("rank one fell over"), LONG);
    let limits = Limits { sequences: 4, tokens: 128, context: 128 };
    let runner =
        Runner::start(ranks, Bounds { limits, blocks: 4, queued: 8, vocab: 512, speculation: None }).unwrap();
    let submit = |seed| {
        let (sender, events) = mpsc::channel();
        let sampling = SamplingParams { max_tokens: 100, seed, ..SamplingParams::default() };
        let sink: crate::Sink = Box::new(move |event| {
            let _ = sender.send(event);
            ControlFlow::Continue(())
        });
        runner.submit(Request::new(vec![1, 2, 3], sampling, sink)).unwrap();
        events
    };
    for events in [submit(1), submit(2)] {
        let last = events.into_iter().find(|event| matches!(event, Event::Finished(_)));
        assert!(matches!(last, Some(Event::Finished(Finish::Error(_)))), "{last:?}");
    }
    assert!(runner.failure().is_some());
}
