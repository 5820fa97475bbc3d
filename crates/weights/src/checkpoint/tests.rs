use std::{fs, path::Path};

use serde_json::{Value, json};

use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a").join(name)
}

/// A copy of a fixture with some fields of its configuration changed.
fn changed(name: &str, fields: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture(name).join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let text = fs::read_to_string(fixture(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in fields {
        config[*field] = value.clone();
    }
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn refusal(name: &str, fields: &[(&str, Value)]) -> String {
    Checkpoint::open(changed(name, fields).path()).unwrap_err().to_string()
}

#[test]
fn a_converted_checkpoint_has_a_shape() {
    let checkpoint = Checkpoint::open(&fixture("llama_gqla_a")).unwrap();
    let shape = checkpoint.model_shape().unwrap();
    assert_eq!(shape.attention.kv_elements(DecodePath::MqaAbsorb), 52);
    assert_eq!(shape.attention.kv_elements(DecodePath::Gqa), 80);
    assert_eq!((shape.hidden_size, shape.num_hidden_layers), (128, 3));
    let per_layer = 52 * 128 + 64 * 36 + 128 * 128 + 256 * 128 + 3 * 128 * 224 + 2 * 128;
    assert_eq!(shape.parameters, 2 * 512 * 128 + 128 + 3 * per_layer);
}

/// The fixture's third layer, read as a prediction layer of two.
#[test]
fn prediction_layers_are_not_the_decoders_weights() {
    let dir = changed("llama_gqla_a", &[]);
    let mut checkpoint = Checkpoint::open(dir.path()).unwrap();
    let three = checkpoint.parameters();
    checkpoint.config.num_hidden_layers = 2;
    let per_layer = 52 * 128 + 64 * 36 + 128 * 128 + 256 * 128 + 3 * 128 * 224 + 2 * 128;
    assert_eq!(checkpoint.parameters(), three - per_layer);
}

#[test]
fn a_plain_checkpoint_is_told_to_convert() {
    let checkpoint = Checkpoint::open(&fixture("llama_tied")).unwrap();
    assert!(!checkpoint.contains("lm_head.weight"));
    let message = checkpoint.model_shape().unwrap_err().to_string();
    assert!(message.contains("convert it with `gqla convert` first"), "{message}");
    let message = checkpoint.tensor("lm_head.weight").unwrap_err().to_string();
    assert!(message.contains("has no tensor `lm_head.weight`"), "{message}");
    let norm = checkpoint.tensor("model.norm.weight").unwrap();
    let message = norm.expect_shape(&[64]).unwrap_err().to_string();
    assert!(message.contains("has shape [128], expected [64]"), "{message}");
}

#[test]
fn each_contradiction_names_tensor_and_arithmetic() {
    let cases = [
        (
            refusal("llama_gqla_a", &[("num_key_value_heads", json!(4))]),
            "tensor `model.layers.0.self_attn.kv_b_proj.weight` in",
        ),
        (
            refusal("llama_gqla_a", &[("num_key_value_heads", json!(4))]),
            "has shape [64, 36], expected [128, 36] = \
             [num_key_value_heads × (qk_nope_head_dim + v_head_dim), kv_lora_rank] with hidden_size=128, \
             num_attention_heads=8, num_key_value_heads=4, kv_lora_rank=36",
        ),
        (refusal("llama_gqla_a", &[("num_key_value_heads", json!(3))]), "(8 mod 3 = 2)"),
        (
            refusal("llama_gqla_a", &[("num_hidden_layers", json!(4))]),
            "no tensor `model.layers.3.input_layernorm",
        ),
        (
            refusal("llama_gqla_a", &[("num_hidden_layers", json!(1u64 << 30))]),
            "no tensor `model.layers.3.input_layernorm",
        ),
        (
            refusal("llama_gqla_a", &[("qk_latent_layernorm", json!(true))]),
            "no tensor `model.layers.0.self_attn.kv_a_layernorm",
        ),
        (
            refusal("llama_gqla_a", &[("q_lora_rank", json!(8))]),
            "no tensor `model.layers.0.self_attn.q_a_proj",
        ),
        (refusal("llama_tied", &[("tie_word_embeddings", json!(false))]), "no tensor `lm_head.weight`"),
        (
            refusal("llama_gqla_a", &[("num_nextn_predict_layers", json!(1))]),
            "promises num_nextn_predict_layers=1 but has no tensor `model.layers.3.eh_proj.weight`",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn a_truncated_file_is_refused() {
    let dir = changed("llama_gqla_a", &[]);
    let file = dir.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    let length = bytes.len();
    let expected = format!("ends at byte {length}, the file has {}: it is truncated", length - 1);
    assert!(message.contains(&expected), "{message:?} should contain {expected:?}");
}

#[test]
fn a_directory_must_hold_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(open().contains("contains neither config.json nor a .gguf file"), "{}", open());
    fs::write(dir.path().join("a.gguf"), "").unwrap();
    assert!(open().contains("a.gguf"), "{}", open());
    fs::write(dir.path().join("b.gguf"), "").unwrap();
    assert!(open().contains("contains 2 .gguf files, expected one"), "{}", open());
    let absent = Checkpoint::open(&dir.path().join("absent")).unwrap_err().to_string();
    assert!(absent.contains("absent`: No such file"), "{absent}");
}

#[test]
fn generation_config_adds_ends_of_turn() {
    let dir = changed("llama_tied", &[]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 7]}"#).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().config().eos_token_ids, [1, 7]);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
    let message = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("generation_config.json` is \"x\", expected token ids"), "{message}");
}

#[test]
fn groups_are_counted_from_the_rows_of_the_up_projection() {
    let glm = gqla_model::AttentionShape {
        num_attention_heads: 20,
        num_key_value_heads: 4,
        kv_lora_rank: 512,
        qk_nope_head_dim: 192,
        qk_rope_head_dim: 64,
        v_head_dim: 256,
    };
    assert_eq!(groups_of(1792, &glm), Some(4), "a converted layer");
    assert_eq!(groups_of(8960, &glm), Some(20), "a layer left as it was");
    assert_eq!(groups_of(1793, &glm), None);
}
