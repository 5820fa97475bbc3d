//! The CPU models against logits and texts of independent PyTorch code.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{iter::once, sync::mpsc::channel};

use gqla_engine::{
    Checkpoint, DraftDepth, DraftSource, Engine, Event, PromptLookup, Speculation,
    cpu::{
        CacheFormat, CacheMemory, CpuEngine, CpuEngineConfig, LoadError, Model, NotExpandable, Precision,
        Products, Weights,
    },
};
use gqla_model::DecodePath::{self, Gqa, MqaAbsorb};
use support::{
    Golden, collect, config, fixture, ids, relative_error, start, submit, submit_salted, submit_to,
};

const INT8: Precision = Precision { weights: Weights::Int8, products: Products::F32 };

const CASES: [(&str, Option<DecodePath>); 8] = [
    ("llama_a/llama_gqla_a", Some(Gqa)),
    ("llama_a/llama_gqla_a", Some(MqaAbsorb)),
    ("llama_a/llama_tied", None),
    ("llama_a/llama_untied", None),
    ("glm_a/gqla", Some(Gqa)),
    ("glm_a/gqla", Some(MqaAbsorb)),
    ("glm_a/mla", Some(Gqa)),
    ("glm_a/mla", Some(MqaAbsorb)),
];

#[test]
fn logits_match_the_golden_ones() {
    for (name, path) in CASES {
        let golden = Golden::open(name);
        let model = Model::load(&Checkpoint::open(&fixture(name)).unwrap(), path).unwrap();
        for i in 0..3 {
            let logits = model.logits(&golden.ids(&format!("ids_{i}")), CacheFormat::F32).unwrap();
            let error = relative_error(&logits, &golden.floats(&format!("logits_{i}")));
            assert!(error < 1e-4, "{name} {path:?} logits_{i}: {error:e}");
        }
    }
}

/// Rounding every weight to a 254th of its row's largest moves these small models' logits by up to seven percent of the
/// largest one. A mixture's rows choose other experts instead, which no bound on numbers describes.
#[test]
fn int8_weights_stay_near_the_golden_logits() {
    for (name, path) in CASES.into_iter().filter(|(name, _)| name.starts_with("llama_a")) {
        let golden = Golden::open(name);
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let model = Model::load_as(&checkpoint, path, Some(2), INT8).unwrap();
        for i in 0..3 {
            let logits = model.logits(&golden.ids(&format!("ids_{i}")), CacheFormat::F32).unwrap();
            let error = relative_error(&logits, &golden.floats(&format!("logits_{i}")));
            assert!((1e-3..1e-1).contains(&error), "{name} {path:?} logits_{i}: {error:e}");
        }
    }
}

#[test]
fn int8_weights_compute_the_same_bits_alone_and_among_others() {
    for (name, path) in CASES {
        let engine = start(name, CpuEngineConfig { precision: INT8, ..config(path) });
        let prompts: Vec<Vec<u32>> = [5, 70, 131].iter().map(|len| (0..*len).collect()).collect();
        let submit = |(i, prompt): (usize, &Vec<u32>)| submit(&engine, prompt, 0.9, i as u64);
        let alone: Vec<_> = prompts.iter().enumerate().map(|item| collect(&submit(item))).collect();
        let together: Vec<_> = prompts.iter().enumerate().map(submit).collect();
        let together: Vec<_> = together.iter().map(collect).collect();
        assert_eq!(alone, together, "{name} {path:?}");
    }
}

#[test]
fn greedy_texts_are_the_golden_ones_over_any_number_of_ranks_and_with_any_drafts() {
    for (name, path) in CASES {
        let golden = Golden::open(name);
        let lookup = DraftSource::PromptLookup(PromptLookup::new(1, 4).unwrap());
        let layer = (name == "glm_a/gqla").then_some(DraftSource::PredictionLayer);
        let sources = [None, Some(lookup)].into_iter().chain(layer.map(Some));
        for (source, tensor_parallel) in sources.flat_map(|source| [1, 2, 4, 8].map(|world| (source, world)))
        {
            let fixed = |source| Speculation::new(source, 2).unwrap().with_depth(DraftDepth::Fixed);
            let speculation = source.map(fixed);
            let engine = start(name, CpuEngineConfig { tensor_parallel, speculation, ..config(path) });
            assert_eq!(engine.info().tensor_parallel as usize, tensor_parallel);
            let prompts = (0..3).map(|i| golden.ids(&format!("ids_{i}")));
            let together: Vec<_> = prompts.map(|prompt| submit(&engine, &prompt, 0.0, 0)).collect();
            for (i, events) in together.iter().enumerate() {
                let (text, expected) = (ids(&collect(events)), golden.ids(&format!("greedy_{i}")));
                assert_eq!(text, expected, "{name} {path:?} TP {tensor_parallel} {source:?} {i}");
            }
            let drafted = engine.stats().speculation.draft_tokens;
            assert_eq!(drafted > 0, source.is_some(), "{name} {path:?} TP {tensor_parallel} {source:?}");
        }
    }
}

#[test]
fn a_sequence_computes_the_same_bits_alone_and_among_others() {
    for (name, path) in CASES {
        let engine = start(name, config(path));
        let prompts: Vec<Vec<u32>> =
            [5, 70, 131, 200].iter().map(|len| (0..*len).map(|i| i * 31 % 512).collect()).collect();
        let submit = |(i, prompt): (usize, &Vec<u32>)| submit(&engine, prompt, 0.9, i as u64);
        let alone: Vec<_> = prompts.iter().enumerate().map(|item| collect(&submit(item))).collect();
        let together: Vec<_> = prompts.iter().enumerate().map(submit).collect();
        let together: Vec<_> = together.iter().map(collect).collect();
        assert_eq!(alone, together, "{name} {path:?}");
    }
}

#[test]
fn a_preempted_sequence_continues_with_the_same_bits() {
    for path in [Gqa, MqaAbsorb] {
        let golden = Golden::open("llama_a/llama_gqla_a");
        let roomy = start("llama_a/llama_gqla_a", config(Some(path)));
        let block_bytes = roomy.info().kv_bytes_per_token * roomy.info().block_size;
        let kv_cache = CacheMemory::Bytes(4 * block_bytes as u64);
        let tight = CpuEngineConfig { kv_cache, ..config(Some(path)) };
        let tight = start("llama_a/llama_gqla_a", tight);
        assert_eq!(tight.info().num_blocks, 4);
        let prompt = &golden.ids("ids_2")[..50];
        let run = |engine: &CpuEngine| -> Vec<_> {
            let (sender, first) = channel();
            let (open, gate) = channel::<()>();
            // The engine waits at the first token until every request is in: none is done before the last came.
            submit_to(engine, prompt, 1.0, 0, "", move |event| {
                let _ = gate.recv();
                let _ = sender.send(event);
            });
            let others: Vec<_> = (1..4).map(|seed| submit(engine, prompt, 1.0, seed)).collect();
            drop(open);
            once(first).chain(others).map(|events| collect(&events)).collect()
        };
        assert_eq!(run(&tight), run(&roomy));
        assert!(tight.stats().preemptions > 0);
        assert_eq!(roomy.stats().preemptions, 0);
    }
}

#[test]
fn a_beginning_found_in_the_cache_continues_with_the_same_bits() {
    for (name, path) in CASES {
        let engine = start(name, config(path));
        let prompts: Vec<Vec<u32>> =
            [70, 128, 131, 200].iter().map(|len| (0..*len).map(|i| i * 31 % 512).collect()).collect();
        let run = |salt: &dyn Fn(usize) -> String| -> Vec<_> {
            let one =
                |(i, prompt): (usize, &Vec<u32>)| submit_salted(&engine, prompt, 0.9, i as u64, &salt(i));
            let events: Vec<_> = prompts.iter().enumerate().map(one).collect();
            events.iter().map(collect).collect()
        };
        let apart = run(&|i| i.to_string());
        assert_eq!(engine.stats().prefix_hits, 0);
        assert_eq!(run(&|_| String::new()), apart, "{name} {path:?}");
        assert_eq!(run(&|_| String::new()), apart, "{name} {path:?}");
        let stats = engine.stats();
        assert_eq!(stats.prefix_queries, 3 * (70 + 128 + 131 + 200));
        assert!(stats.prefix_hits >= 64 + 127 + 128 + 192, "{}", stats.prefix_hits);
    }
}

#[test]
fn running_sequences_change_path_and_keep_their_texts() {
    for tensor_parallel in [1, 2] {
        let expandable = CpuEngineConfig { expandable: true, tensor_parallel, ..config(Some(MqaAbsorb)) };
        change_path(&start("llama_a/llama_gqla_a", expandable));
    }
    assert_eq!(start("llama_a/llama_gqla_a", config(Some(MqaAbsorb))).switch_to_gqa(), Err(NotExpandable));
    let gqa = CpuEngineConfig { expandable: true, ..config(Some(Gqa)) };
    let error =
        CpuEngine::start(&Checkpoint::open(&fixture("llama_a/llama_gqla_a")).unwrap(), gqa).err().unwrap();
    assert!(matches!(error, LoadError::NotExpandable), "{error}");
}

fn change_path(engine: &CpuEngine) {
    let golden = Golden::open("llama_a/llama_gqla_a");
    let prompts: Vec<_> = (0..3).map(|i| golden.ids(&format!("ids_{i}"))).collect();
    let running: Vec<_> = prompts.iter().map(|prompt| submit(engine, prompt, 0.0, 0)).collect();
    let Ok(Event::Token { id: first, .. }) = running[0].recv() else { panic!("no token") };
    engine.switch_to_gqa().unwrap();
    for (i, events) in running.iter().enumerate() {
        let mut text = if i == 0 { vec![first] } else { Vec::new() };
        text.extend(ids(&collect(events)));
        assert_eq!(text, golden.ids(&format!("greedy_{i}")), "{i}");
    }
    // What the cache kept of them was converted too.
    for (i, prompt) in prompts.iter().enumerate() {
        let again = submit(engine, prompt, 0.0, 0);
        assert_eq!(ids(&collect(&again)), golden.ids(&format!("greedy_{i}")), "{i}");
    }
}

#[test]
fn a_cache_that_rounds_takes_the_bytes_of_its_numbers_and_scales() {
    for (path, bf16, int8) in [(Gqa, 80 * 2, 80 + 5 * 4), (MqaAbsorb, 52 * 2, 52 + 2 * 4)] {
        for (kv_cache_format, bytes) in [(CacheFormat::Bf16, bf16), (CacheFormat::Int8, int8)] {
            let config = CpuEngineConfig { kv_cache_format, ..config(Some(path)) };
            let engine = start("llama_a/llama_gqla_a", config);
            assert_eq!(engine.info().kv_bytes_per_token, bytes * 3, "{path}, {kv_cache_format}");
            assert_eq!(collect(&submit(&engine, &[1, 2, 3], 0.0, 0)).len(), 32);
        }
    }
}

#[test]
fn a_context_that_was_asked_for_fits_or_is_refused() {
    let checkpoint = Checkpoint::open(&fixture("llama_a/llama_gqla_a")).unwrap();
    let block_bytes = 80 * 3 * 4 * 64;
    let kv_cache = CacheMemory::Bytes(2 * block_bytes);
    let small = CpuEngineConfig { kv_cache, ..config(Some(Gqa)) };
    assert_eq!(start("llama_a/llama_gqla_a", small.clone()).info().context_length, 128);
    let asked = CpuEngineConfig { max_model_len: Some(129), ..small };
    let error = CpuEngine::start(&checkpoint, asked).err().unwrap().to_string();
    assert!(error.contains("holds 2 blocks, expected at least 3"), "{error}");
    let share = CpuEngineConfig { kv_cache: CacheMemory::FreeShare(0.1), ..config(Some(Gqa)) };
    assert!(start("llama_a/llama_gqla_a", share).info().num_blocks > 2);
}

#[test]
fn the_engine_says_what_its_cache_takes() {
    for (path, elements) in [(Gqa, 80), (MqaAbsorb, 52)] {
        let engine = start("llama_a/llama_gqla_a", config(Some(path)));
        let info = engine.info();
        assert_eq!(info.path, Some(path));
        assert_eq!(info.kv_elements_per_token_layer, elements);
        assert_eq!(info.kv_bytes_per_token, elements * 3 * 4);
    }
    for (path, per_rank) in [(Gqa, 32 + 16), (MqaAbsorb, 52)] {
        let ranks = CpuEngineConfig { tensor_parallel: 4, ..config(Some(path)) };
        let engine = start("llama_a/llama_gqla_a", ranks);
        let info = engine.info();
        assert_eq!(info.kv_bytes_per_token, 4 * per_rank * 3 * 4);
        assert_eq!(info.ranks.len(), 4);
        assert!(info.ranks.iter().all(|rank| rank.kv_bytes_per_token == per_rank * 3 * 4), "{info:?}");
        let weights: u64 = info.ranks.iter().map(|rank| rank.weight_bytes).sum();
        assert!(info.ranks.iter().all(|rank| 4 * rank.weight_bytes < weights + 4 * 4096), "{info:?}");
    }
    assert_eq!(start("llama_a/llama_tied", config(None)).info().path, None);
}

#[test]
fn a_plain_model_has_no_paths_to_choose_from() {
    let checkpoint = Checkpoint::open(&fixture("llama_a/llama_tied")).unwrap();
    let error = Model::load(&checkpoint, Some(MqaAbsorb)).err().unwrap();
    assert!(matches!(error, LoadError::NoSuchPath { path: MqaAbsorb }), "{error}");
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let model = Model::load(&Checkpoint::open(&fixture("llama_a/llama_tied")).unwrap(), None).unwrap();
    let error = model.logits(&[1, 512], CacheFormat::F32).unwrap_err();
    assert_eq!(error.to_string(), "token 512 at position 1 is outside the vocabulary of 512");
}
