//! Random answers over a tiny vocabulary: each must parse and fit its schema.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path, sync::mpsc::channel, time::Duration};

use gqla_engine::{
    Checkpoint, DraftDepth, DraftSource, Engine, Event, PromptLookup, Request, SamplingParams, Speculation,
    SpeculationStats,
    cpu::{CpuEngine, CpuEngineConfig},
};
use proptest::prelude::*;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value};

use super::*;

const EOS: u32 = 260;

/// Ids 0 to 255 are bytes, then a few longer tokens, then `<eos>`.
fn tokenizer() -> Tokenizer {
    let mut vocabulary: Map<String, Value> =
        (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
    for (id, token) in (256u32..).zip(["{\"", "\":", "true", "\u{2581}\u{2581}"]) {
        vocabulary.insert(token.to_owned(), id.into());
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "pre_tokenizer": null,
        "added_tokens": [{"id": EOS, "content": "<eos>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocabulary, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokenizer.json");
    std::fs::write(&file, json.to_string()).unwrap();
    Tokenizer::from_file(&file).unwrap()
}

fn grammars() -> Grammars {
    Grammars::new(&tokenizer(), &[EOS]).unwrap()
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 1, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "next": {"$ref": "#/$defs/point"},
        },
        "required": ["name", "age", "next"],
        "additionalProperties": false,
        "$defs": {"point": {"type": "object", "properties": {"x": {"type": "boolean"}, "y": {"type": "null"}},
                            "required": ["x"], "additionalProperties": false}},
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    name: String,
    age: u8,
    #[serde(default)]
    tags: Vec<String>,
    next: Point,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    #[serde(rename = "x")]
    _x: bool,
    #[serde(rename = "y", default)]
    _y: (),
}

/// Draws allowed tokens at random until the answer ends; quotes and closing brackets are likelier, as in a model that
/// wants to come to an end. `vocabulary` may be larger than the tokenizer's, as embeddings often are.
fn answer(grammar: &Grammar, seed: u64, vocabulary: usize) -> String {
    let tokenizer = tokenizer();
    let mut constraint = grammar.follow();
    let mut state = seed | 1;
    let mut ids = Vec::new();
    for _ in 0..3000 {
        let mut mask = TokenMask::all(vocabulary);
        constraint.forbid(&mut mask).unwrap();
        let allowed: Vec<u32> = (0..vocabulary as u32).filter(|id| mask.allows(*id as usize)).collect();
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let ends = [EOS, u32::from(b'}'), u32::from(b']'), u32::from(b'"')];
        let end = ends.into_iter().find(|end| state >> 62 == 0 && allowed.contains(end));
        let id = end.unwrap_or_else(|| allowed[(state >> 33) as usize % allowed.len()]);
        let last = constraint.accept(id).unwrap();
        ids.push(id);
        if last || id == EOS {
            return tokenizer.decode(&ids, true);
        }
    }
    panic!("the answer does not end: {}", tokenizer.decode(&ids, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_answer_parses_and_fits(seed: u64, extra in 0usize..9) {
        let grammars = grammars();
        let grammar = grammars.compile(&ResponseFormat::JsonSchema(schema())).unwrap().unwrap();
        let text = answer(&grammar, seed, 261 + extra);
        let person: Person = serde_json::from_str(&text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
        prop_assert!(person.name.chars().count() <= 12 && person.age <= 150, "{}", text);
        prop_assert!(person.tags.len() <= 3 && person.tags.iter().all(|tag| tag == "a" || tag == "b"));
        let _ = person.next;
        let object = grammars.compile(&ResponseFormat::JsonObject).unwrap().unwrap();
        let text = answer(&object, seed, 261 + extra);
        prop_assert!(serde_json::from_str::<BTreeMap<String, IgnoredAny>>(&text).is_ok(), "{}", text);
    }
}

#[test]
fn bad_schemas_are_refused_with_the_reason() {
    let grammars = grammars();
    assert!(grammars.compile(&ResponseFormat::Text).unwrap().is_none());
    for (schema, reason) in [
        (json!({"type": "strnig"}), "strnig"),
        (json!({"type": "string", "pattern": "("}), "("),
        (json!({"$ref": "#/$defs/absent"}), "absent"),
        (json!({"$ref": "https://example.com/schema.json"}), "ref"),
    ] {
        let error = grammars.compile(&ResponseFormat::JsonSchema(schema.clone())).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(SCHEMA_FIELD), "{error}");
        assert!(
            error.message.contains("cannot be followed") && error.message.contains(reason),
            "{schema}: {error}"
        );
        assert!(error.message.len() < 1000, "{error}");
    }
}

#[test]
fn a_sequence_does_not_move_the_others() {
    let grammar = grammars().compile(&ResponseFormat::JsonSchema(schema())).unwrap().unwrap();
    let first = answer(&grammar, 5, 261);
    answer(&grammar, 6, 261);
    assert_eq!(answer(&grammar, 5, 261), first);
}

/// The ids a real model answers under the schema, to a prompt that shows two answers; it likes to come to an end.
fn modelled(
    grammar: &Grammar,
    seed: u64,
    speculation: Option<Speculation>,
) -> (Vec<Event>, SpeculationStats) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a/llama_gqla_a");
    let config = CpuEngineConfig { speculation, threads: Some(1), ..CpuEngineConfig::default() };
    let engine = CpuEngine::start(&Checkpoint::open(&model).unwrap(), config).unwrap();
    let (sender, events) = channel();
    let sink: gqla_engine::Sink = Box::new(move |event| {
        let _ = sender.send(event);
        ControlFlow::Continue(())
    });
    let shown = r#"{"name":"ab","age":7,"tags":["a"],"next":{"x":true}}"#.repeat(2);
    let sampling = SamplingParams {
        max_tokens: 150,
        temperature: 0.8,
        logit_bias: [b'"', b'}', b']'].map(|end| (u32::from(end), 4.0)).to_vec(),
        stop_token_ids: vec![EOS],
        seed,
        ..SamplingParams::default()
    };
    let request = Request::new(shown.bytes().map(u32::from).collect(), sampling, sink);
    engine.submit(Request { constraint: Some(grammar.follow()), ..request }).unwrap();
    let mut all = Vec::new();
    while !matches!(all.last(), Some(Event::Finished(_))) {
        all.push(events.recv_timeout(Duration::from_secs(60)).unwrap());
    }
    engine.shutdown(Duration::from_secs(5));
    (all, engine.stats().speculation)
}

#[test]
fn answers_held_to_a_schema_are_the_same_with_drafts() {
    let grammar = grammars().compile(&ResponseFormat::JsonSchema(schema())).unwrap().unwrap();
    let source = DraftSource::PromptLookup(PromptLookup::new(1, 4).unwrap());
    let drafts = Speculation::new(source, 4).unwrap().with_depth(DraftDepth::Fixed);
    let mut accepted = 0;
    for seed in 0..4 {
        let (plain, _) = modelled(&grammar, seed, None);
        let (drafted, stats) = modelled(&grammar, seed, Some(drafts));
        assert_eq!(drafted, plain);
        accepted += stats.accepted_tokens;
        let id = |event: &Event| match event {
            Event::Token { id, .. } => Some(*id),
            Event::Finished(_) => None,
        };
        let text = tokenizer().decode(&plain.iter().filter_map(id).collect::<Vec<_>>(), true);
        let finished = plain.last() == Some(&Event::Finished(gqla_engine::Finish::Stop));
        assert!(!finished || serde_json::from_str::<Person>(&text).is_ok(), "{text}");
    }
    assert!(accepted > 0, "keys are there to be copied");
}

#[test]
fn a_model_without_end_token_cannot_follow() {
    assert!(matches!(Grammars::new(&tokenizer(), &[999]), Err(GrammarsError::NoEnd)));
}

#[test]
fn schemas_that_multiply_are_refused_and_long_ones_are_not() {
    let grammars = grammars();
    let either = |i: usize| {
        let object = |name: String| json!({"type": "object", "properties": {&name: {}}, "required": [name]});
        json!({"anyOf": [object(format!("a{i}")), object(format!("b{i}"))]})
    };
    let every_pair = json!({"allOf": (0..16).map(either).collect::<Vec<_>>()});
    let error = grammars.compile(&ResponseFormat::JsonSchema(every_pair)).unwrap_err();
    assert!(error.message.contains("too large"), "{error}");
    let properties: Map<String, Value> =
        (0..500).map(|i| (format!("p{i}"), json!({"type": "string", "pattern": "^a{1,40}b?$"}))).collect();
    let long = json!({"type": "object", "properties": properties});
    assert!(grammars.compile(&ResponseFormat::JsonSchema(long)).is_ok());
}
