//! The CUDA engine on the stand-in for libcuda: what a sequence computes depends on nothing but itself, drafts included.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use gqla_engine::{
    Checkpoint, DraftDepth, DraftSource, Engine, Event, PromptLookup, Request, SamplingParams, Sink,
    Speculation, SpeculationStats,
    cpu::{CacheMemory, NotExpandable},
    cuda::{CudaEngine, CudaEngineConfig, CudaLoadError, PromptGemm},
};
use gqla_model::DecodePath::{self, Gqa, MqaAbsorb};
use support::{
    collect, fixture, ids,
    rewrite::leaning,
    stand_in::{launched, on_stand_in, stand_in},
};

const GQLA: &str = "llama_a/llama_gqla_a";
const EXPERTS: &str = "glm_a/gqla";

fn config(path: DecodePath) -> CudaEngineConfig {
    CudaEngineConfig {
        path: Some(path),
        max_model_len: Some(256),
        max_num_seqs: 4,
        kv_cache: CacheMemory::Bytes(16 << 20),
        ..CudaEngineConfig::default()
    }
}

fn start(config: CudaEngineConfig) -> CudaEngine {
    start_model(&fixture(GQLA), config)
}

fn start_model(folder: &Path, config: CudaEngineConfig) -> CudaEngine {
    CudaEngine::start(&Checkpoint::open(folder).unwrap(), config).unwrap()
}

/// Greedily, and few tokens: the stand-in takes a good part of a second for each.
fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens, temperature: 0.0, logprobs: Some(1), ..SamplingParams::default() }
}

/// Draws from two tokens, and the one that was drawn becomes likelier: margins that no rounding crosses.
fn of_two(tokens: [u32; 2], max_tokens: u32) -> SamplingParams {
    SamplingParams {
        logit_bias: tokens.map(|id| (id, 50.0)).to_vec(),
        frequency_penalty: -1.0,
        ..greedy(max_tokens)
    }
}

fn submit(engine: &CudaEngine, prompt: &[u32], sampling: SamplingParams) -> Receiver<Event> {
    submit_gated(engine, prompt, sampling, channel().1)
}

/// The engine waits with the first event until `gate` closes.
fn submit_gated(
    engine: &CudaEngine,
    prompt: &[u32],
    sampling: SamplingParams,
    gate: Receiver<()>,
) -> Receiver<Event> {
    let (sender, events) = channel();
    let sink: Sink = Box::new(move |event| {
        let _ = sender.send(event);
        let _ = gate.recv();
        ControlFlow::Continue(())
    });
    engine.submit(Request::new(prompt.to_vec(), sampling, sink)).unwrap();
    events
}

/// Prompts that share a beginning find it in the cache, a whole block and part of a copied one.
#[test]
fn a_sequence_computes_the_same_bits_alone_among_others_and_from_the_cache() {
    on_stand_in("a_sequence_computes_the_same_bits_alone_among_others_and_from_the_cache", || {
        for (path, elements) in [(Gqa, 80), (MqaAbsorb, 80)] {
            let prompts: Vec<Vec<u32>> =
                [5, 70, 66].iter().map(|len| (0..*len).map(|i| i * 31 % 512).collect()).collect();
            let engine = start(config(path));
            let info = engine.info();
            assert_eq!((info.path, info.kv_elements_per_token_layer), (Some(path), elements));
            assert_eq!(info.kv_bytes_per_token, elements * 3 * 2);
            let together: Vec<_> = prompts.iter().map(|prompt| submit(&engine, prompt, greedy(6))).collect();
            let together: Vec<_> = together.iter().map(collect).collect();
            engine.shutdown(Duration::from_secs(60));
            let engine = start(config(path));
            let alone: Vec<_> =
                prompts.iter().map(|prompt| collect(&submit(&engine, prompt, greedy(6)))).collect();
            assert_eq!(alone, together, "{path}");
            assert!(engine.stats().prefix_hits >= 64, "{path}: {:?}", engine.stats());
            engine.shutdown(Duration::from_secs(60));
        }
    });
}

/// A text that repeats itself as its prompt did, and one of two tokens that other tokens follow in the prompt.
fn drafted(engine: &CudaEngine) -> (Vec<Vec<(u32, u32)>>, SpeculationStats) {
    let prompts = [
        ((0..24).map(|i| i % 4 * 9).collect::<Vec<u32>>(), of_two([9, 18], 16)),
        ([3, 7].iter().flat_map(|id| [*id, 100 + id]).chain(200..266).collect(), of_two([3, 7], 8)),
    ];
    let texts = prompts.map(|(prompt, sampling)| submit(engine, &prompt, sampling));
    let texts = texts.iter().map(collect).collect();
    engine.shutdown(Duration::from_secs(60));
    (texts, engine.stats().speculation)
}

/// Four drafts of n-grams of so many tokens.
fn lookup(min: usize, max: usize) -> Option<Speculation> {
    let source = DraftSource::PromptLookup(PromptLookup::new(min, max).unwrap());
    Some(Speculation::new(source, 4).unwrap().with_depth(DraftDepth::Fixed))
}

/// Four drafts take another kernel than none, which every step then runs, so that bits do not depend on what was drafted.
#[test]
fn drafts_that_hit_and_drafts_that_miss_leave_the_same_text() {
    on_stand_in("drafts_that_hit_and_drafts_that_miss_leave_the_same_text", || {
        for (path, prefix, plain_kernel, drafting_kernel) in [
            (Gqa, "gqa_decode", "gqa_decode_stages2_rows16", "gqa_decode_stages3_rows32"),
            (MqaAbsorb, "absorb_decode", "absorb_decode_tokens64_rows16", "absorb_decode_tokens64_rows64"),
        ] {
            let run = |speculation: Option<Speculation>, kernel: &str| {
                let before = launched(prefix).len();
                let engine = start(CudaEngineConfig { speculation, ..config(path) });
                let drafts = speculation.map_or(0, |speculation| speculation.tokens() as u32);
                assert_eq!(engine.info().multi_token_prediction, drafts);
                let ran = drafted(&engine);
                let kernels: BTreeSet<_> = launched(prefix).split_off(before).into_iter().collect();
                assert_eq!(kernels, BTreeSet::from([kernel.to_owned()]), "{path}");
                ran
            };
            let (plain, nothing) = run(None, plain_kernel);
            let (hit, stats) = run(lookup(1, 4), drafting_kernel);
            let (missed, none) = run(lookup(16, 16), drafting_kernel);
            assert_eq!((nothing.draft_tokens, none.draft_tokens), (0, 0));
            println!("{path}: {stats:?}");
            assert!(0 < stats.accepted_tokens && stats.accepted_tokens < stats.draft_tokens, "{stats:?}");
            assert_eq!(hit, missed, "{path}");
            let tokens =
                |texts: &[Vec<(u32, u32)>]| -> Vec<_> { texts.iter().map(|text| ids(text)).collect() };
            assert_eq!(tokens(&hit), tokens(&plain), "{path}");
        }
    });
}

/// Two drafts a step, of the model's own layer.
fn layer() -> Option<Speculation> {
    Some(Speculation::new(DraftSource::PredictionLayer, 2).unwrap().with_depth(DraftDepth::Fixed))
}

#[test]
fn texts_with_drafts_of_a_dense_layer_are_those_without() {
    on_stand_in("texts_with_drafts_of_a_dense_layer_are_those_without", || {
        assert_drafts_change_no_text(GQLA)
    });
}

#[test]
fn texts_with_drafts_of_a_layer_of_experts_are_those_without() {
    let name = "texts_with_drafts_of_a_layer_of_experts_are_those_without";
    on_stand_in(name, || assert_drafts_change_no_text(EXPERTS));
}

/// The second prompt goes on from a copy of a block of the first's, which has rows of the prediction layer too. Nothing is
/// found by n-grams of so many tokens: those steps verify no draft, by the same kernels.
fn assert_drafts_change_no_text(name: &str) {
    let (folder, checkpoint) = leaning(&Checkpoint::open(&fixture(name)).unwrap());
    for path in [Gqa, MqaAbsorb] {
        let run = |speculation| {
            let engine = start_model(folder.path(), CudaEngineConfig { speculation, ..config(path) });
            let prompt: Vec<u32> = (0..70).map(|i| i * 31 % 512).collect();
            let text = |len: usize| collect(&submit(&engine, &prompt[..len], greedy(8)));
            let texts = [text(70), text(66), text(40)];
            engine.shutdown(Duration::from_secs(60));
            (texts, engine.info().kv_bytes_per_token, engine.stats())
        };
        let none = PromptLookup::new(16, 16).unwrap();
        let none = Speculation::new(DraftSource::PromptLookup(none), 2).unwrap();
        let (plain, bytes, without) = run(Some(none));
        let (drafted, bytes_with_layer, with) = run(layer());
        println!("{name} {path}: {:?}", with.speculation);
        assert_eq!(without.speculation.draft_tokens, 0);
        let speculation = with.speculation;
        assert!(
            (1..speculation.draft_tokens).contains(&speculation.accepted_tokens)
                && speculation.accepted_per_position[1] > 0,
            "{name} {path}: {speculation:?}"
        );
        assert!(with.prefix_hits >= 64, "{with:?}");
        assert_eq!(drafted, plain, "{name} {path}");
        let layers = checkpoint.config().num_hidden_layers;
        assert_eq!(bytes_with_layer * layers, bytes * (layers + 1));
    }
}

/// The fixture's first layer alone: its latents depend on no attention, and so are the same along both paths.
fn one_layer() -> tempfile::TempDir {
    let (from, to) = (fixture(GQLA), tempfile::tempdir().unwrap());
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config["num_hidden_layers"] = 1.into();
    fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(from.join("model.safetensors"), to.path().join("model.safetensors")).unwrap();
    to
}

#[test]
fn a_running_sequence_changes_path_and_is_not_computed_again() {
    on_stand_in("a_running_sequence_changes_path_and_is_not_computed_again", || {
        let (one, three) = (one_layer(), fixture(GQLA));
        assert_goes_on(one.path(), 270, None);
        assert_goes_on(&three, 70, lookup(1, 4));
        assert_eq!(start(config(MqaAbsorb)).switch_to_gqa(), Err(NotExpandable));
        let gqa = CudaEngineConfig { expandable: true, ..config(Gqa) };
        let error = CudaEngine::start(&Checkpoint::open(&three).unwrap(), gqa).err().unwrap();
        assert!(matches!(error, CudaLoadError::NotExpandable), "{error}");
    });
}

#[test]
fn a_running_sequence_with_drafts_of_the_layer_changes_path() {
    on_stand_in("a_running_sequence_with_drafts_of_the_layer_changes_path", || {
        for name in [GQLA, EXPERTS] {
            let (folder, _) = leaning(&Checkpoint::open(&fixture(name)).unwrap());
            assert_goes_on(folder.path(), 70, layer());
        }
    });
}

/// More pages than are expanded at once. After the change a layer whose latents are the same computes the GQA path's bits,
/// in the sequence that runs and in one that finds the prompt in the cache; of several layers, the token is the same.
fn assert_goes_on(folder: &Path, tokens: u32, speculation: Option<Speculation>) {
    let prompt: Vec<u32> = (0..tokens).map(|i| i * 31 % 512).collect();
    // The layer would guess nothing of what is forced.
    let sampling = || if speculation == layer() { greedy(6) } else { of_two([3, 7], 6) };
    let settings = |path| CudaEngineConfig { max_model_len: Some(300), speculation, ..config(path) };
    let whole = |path| {
        let engine = start_model(folder, settings(path));
        collect(&submit(&engine, &prompt, sampling()))
    };
    let (absorb, gqa) = (whole(MqaAbsorb), whole(Gqa));
    let expandable = CudaEngineConfig { expandable: true, ..settings(MqaAbsorb) };
    let engine = start_model(folder, expandable);
    let (open, gate) = channel();
    let running = submit_gated(&engine, &prompt, sampling(), gate);
    let Ok(Event::Token { id, logprob }) = running.recv() else { panic!("no token") };
    engine.switch_to_gqa().unwrap();
    drop(open);
    let first = (id, logprob.unwrap().logprob.to_bits());
    let changed: Vec<_> = std::iter::once(first).chain(collect(&running)).collect();
    assert_eq!(engine.stats().prompt_tokens, prompt.len() as u64);
    engine.switch_to_gqa().unwrap();
    let again = collect(&submit(&engine, &prompt, sampling()));
    assert!(engine.stats().prefix_hits >= 64, "{:?}", engine.stats());
    assert_eq!(first, absorb[0]);
    assert_eq!((ids(&changed), ids(&again)), (ids(&gqa), ids(&gqa)));
    assert_ne!(absorb[1..], gqa[1..], "bits that tell the paths apart");
    if speculation == layer() {
        let drafts = engine.stats().speculation;
        println!("{drafts:?}");
        assert!(drafts.accepted_tokens > 0, "{drafts:?}");
    }
    if speculation.is_none() {
        assert_eq!(changed[1..], gqa[1..]);
        assert_eq!(again, gqa);
    }
}

/// Who decodes beside a prompt that cuBLASLt multiplies has the bits that it has without, and the prompt has others, as
/// near. A prompt of few rows is not the library's.
#[test]
fn prompts_by_cublaslt_change_no_bit_of_those_who_decode() {
    let name = "prompts_by_cublaslt_change_no_bit_of_those_who_decode";
    stand_in(name).with_cublaslt().run(|| {
        for path in [Gqa, MqaAbsorb] {
            let run = |prompt_gemm, beside: bool| {
                let already = launched("cublasLtMatmul").len();
                let engine = start(CudaEngineConfig { prompt_gemm, ..config(path) });
                let prompt = |len: u32| -> Vec<u32> { (0..len).map(|i| i * 31 % 512).collect() };
                let (open, gate) = channel::<()>();
                let events = submit_gated(&engine, &prompt(20), greedy(6), gate);
                // The engine waits with the first token: the other's prompt comes with the second.
                events.recv_timeout(Duration::from_secs(300)).unwrap();
                let other = beside.then(|| submit(&engine, &prompt(150)[50..], greedy(2)));
                drop(open);
                let texts = (collect(&events), other.as_ref().map(collect));
                engine.shutdown(Duration::from_secs(60));
                (texts, launched("cublasLtMatmul").len() - already)
            };
            let ((alone, _), by_library) = run(PromptGemm::CublasLt, false);
            assert_eq!(by_library, 0, "{path}: 20 rows are few");
            let ((beside, prompt), by_library) = run(PromptGemm::CublasLt, true);
            assert!(by_library > 0, "{path}");
            let ((ours, our_prompt), by_library) = run(PromptGemm::Own, true);
            assert_eq!((&alone, &beside, by_library), (&ours, &ours, 0), "{path}");
            let (prompt, our_prompt) = (prompt.unwrap(), our_prompt.unwrap());
            assert_ne!(prompt, our_prompt, "{path}: the library adds in another order");
            for ((_, ours), (_, theirs)) in our_prompt.iter().zip(&prompt) {
                let [ours, theirs] = [*ours, *theirs].map(f32::from_bits);
                assert!((ours - theirs).abs() < 0.1, "{path}: log-probability {theirs}, ours {ours}");
            }
        }
    });
}
