//! What holds for any conversion, without a reference.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod support;

use gqla_convert::{Calibration, Conversion, Request, Silent};
use gqla_weights::{Checkpoint, Dtype};
use serde_json::Value;
use support::{
    Golden, convert, fixture, key_value_map, largest_difference, logits, relative_distance, target,
};

fn calibration_ids() -> Vec<u32> {
    Golden::open("llama_gqla_a").ids("calib_ids")
}

#[test]
fn sample_order_does_not_matter() {
    let ids = calibration_ids();
    let reversed: Vec<u32> = ids.chunks(96).rev().flatten().copied().collect();
    assert_ne!(ids, reversed);
    let (forth, _) = convert("llama_untied", target('a'), ids);
    let (back, _) = convert("llama_untied", target('a'), reversed);
    for layer in 0..3 {
        let distance =
            relative_distance(&key_value_map(forth.path(), layer), &key_value_map(back.path(), layer));
        assert!(distance < 1e-6, "layer {layer}: {distance}");
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let convert_on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (directory, _) = pool.install(|| convert("llama_untied", target('a'), calibration_ids()));
        logits(directory.path(), &[1, 2, 3])
    };
    assert!(largest_difference(&convert_on(1), &convert_on(3)) < 1e-5);
}

#[test]
fn a_tied_head_stays_tied() {
    let (directory, _) = convert("llama_tied", target('a'), calibration_ids());
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert!(checkpoint.config().tie_word_embeddings);
    assert!(!checkpoint.contains("lm_head.weight"));
    let embedding = checkpoint.tensor("model.embed_tokens.weight").unwrap().to_f32();
    let source = Checkpoint::open(&fixture("llama_tied")).unwrap();
    assert_eq!(embedding, source.tensor("model.embed_tokens.weight").unwrap().to_f32());
}

#[test]
fn meta_names_method_cache_and_calibration() {
    let (directory, report) = convert("llama_untied", target('a'), calibration_ids());
    let text = std::fs::read_to_string(directory.path().join("gqla_meta.json")).unwrap();
    let meta: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(meta["method"], "TransGQLA");
    assert_eq!(meta["cache_elements"], serde_json::json!({ "source": 64, "mqa_absorb": 52, "gqa": 80 }));
    assert_eq!(meta["calibration_sha256"], Value::String(report.calibration_sha256.clone()));
    assert_eq!(meta["layers"].as_array().unwrap().len(), 3);
    assert_eq!(meta["layers"][2]["ratio"], report.layers[2].ratio);
}

#[test]
fn a_converted_model_and_a_taken_directory_are_refused() {
    let request = |name: &str| Request {
        target: target('a'),
        balance_kv_ratio: 1.0,
        dtype: Dtype::F32,
        source_name: name.to_owned(),
    };
    let calibration = Calibration::new(calibration_ids(), 1, 8, 512).unwrap();
    let latent = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    let error = Conversion::new(&latent, request("latent"), calibration.clone()).err().unwrap();
    assert!(error.to_string().starts_with("the source is already a latent-attention model"), "{error}");

    let plain = Checkpoint::open(&fixture("llama_untied")).unwrap();
    let taken = tempfile::tempdir().unwrap();
    std::fs::write(taken.path().join("config.json"), "{}").unwrap();
    let conversion = Conversion::new(&plain, request("plain"), calibration.clone()).unwrap();
    let error = conversion.run(taken.path(), &Silent).unwrap_err().to_string();
    assert!(error.contains("already exists"), "{error}");
    assert_eq!(std::fs::read_dir(taken.path()).unwrap().count(), 1);

    let unbalanced = Request { balance_kv_ratio: 0.0, ..request("plain") };
    let error = Conversion::new(&plain, unbalanced, calibration).err().unwrap().to_string();
    assert_eq!(error, "--balance-kv-ratio 0 is not a positive number: 1 balances keys and values");
}
