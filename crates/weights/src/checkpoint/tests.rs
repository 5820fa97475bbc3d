use std::{collections::BTreeMap, fs, path::Path};

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
    let glm = glm("gqla");
    assert_eq!(glm.config.groups_of_rows(20 * 64), Some(20), "a layer left as it was");
    assert_eq!(glm.config.groups_of_rows(4 * 64), Some(4), "a converted layer");
    assert_eq!(glm.config.groups_of_rows(4 * 64 + 1), None);
    assert_eq!(glm.groups_of_layer(4), Some(4), "the prediction layer");
    assert_eq!(Checkpoint::open(&fixture("llama_tied")).unwrap().groups_of_layer(0), None);
}

fn glm(name: &str) -> Checkpoint {
    Checkpoint::open(&fixture("../glm_a").join(name)).unwrap()
}

/// Attention 0.077 million, dense 0.098, an expert 0.009, counted from the files and from the shape.
#[test]
fn a_glm_checkpoint_has_the_shape_its_tensors_have() {
    for (name, groups) in [("mla", 8), ("gqla", 4)] {
        let shape = glm(name).model_shape().unwrap();
        assert_eq!(shape.attention.num_key_value_heads, groups, "{name}");
        let from_shape = gqla_model::Parameters::of(&shape).total(8);
        let norms = 128 + 4 * (2 * 128 + 48 + 64) + 3 * 8;
        assert_eq!(shape.parameters, from_shape + norms, "{name}");
    }
    assert_eq!(glm("gqla").model_shape().unwrap().num_nextn_predict_layers, 1);
}

#[test]
fn each_contradiction_of_a_mixture_names_its_tensor() {
    let glm = "../glm_a/gqla";
    let cases = [
        (
            ("n_routed_experts", json!(9)),
            "has shape [8, 128], expected [9, 128] = [n_routed_experts, hidden_size]",
        ),
        (("mlp_layer_types", json!(["sparse", "sparse"])), "no tensor `model.layers.0.mlp.gate.weight`"),
        (("moe_intermediate_size", json!(25)), "with hidden_size=128"),
        (("n_shared_experts", json!(2)), "[n_shared_experts × moe_intermediate_size, hidden_size]"),
        (("q_lora_rank", json!(47)), "q_lora_rank=47, n_routed_experts=8"),
        (("num_nextn_predict_layers", json!(2)), "has no tensor `model.layers.5.eh_proj.weight`"),
    ];
    for (field, expected) in cases {
        let message = refusal(glm, &[field]);
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
    let quantised = changed(glm, &[("quantization_config", json!({})), ("n_routed_experts", json!(9))]);
    assert!(Checkpoint::open(quantised.path()).is_ok(), "compressed experts have tensors of other names");
}

#[test]
fn an_expert_is_the_same_in_either_layout() {
    let (apart, dir) = (glm("gqla"), tempfile::tempdir().unwrap());
    packed(&apart, dir.path());
    let together = Checkpoint::open(dir.path()).unwrap();
    for (layer, expert) in [(1, 0), (1, 7), (4, 3)] {
        let [a, b] = [&apart, &together].map(|checkpoint| checkpoint.expert(layer, expert).unwrap());
        let all = |tensors: &[Tensor<'_>]| tensors.iter().flat_map(Tensor::to_f32).collect::<Vec<_>>();
        assert_eq!((a.gate_up.len(), b.gate_up.len()), (2, 1));
        assert_eq!(all(&a.gate_up), all(&b.gate_up));
        assert_eq!((b.down.shape.as_slice(), a.down.to_f32()), (&[128, 24][..], b.down.to_f32()));
    }
    let message = together.expert(1, 8).unwrap_err().to_string();
    assert!(message.contains("holds 8 matrices, there is none of index 8"), "{message}");
    assert_eq!(together.parameters(), apart.parameters());
}

/// Writes a checkpoint with all experts of a layer in one tensor.
fn packed(source: &Checkpoint, dir: &Path) {
    use crate::{CheckpointWriter, Sidecars, TensorSpec};
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for name in source.names().filter(|name| !name.contains(".experts.")) {
        let tensor = source.tensor(name).unwrap();
        tensors.insert(name.to_owned(), (tensor.shape.clone(), tensor.to_f32()));
    }
    for layer in 1..5 {
        let experts: Vec<_> = (0..8).map(|expert| source.expert(layer, expert).unwrap()).collect();
        let name = |suffix| format!("model.layers.{layer}.mlp.experts.{suffix}");
        let gate_up = experts.iter().flat_map(|expert| expert.gate_up.iter().flat_map(Tensor::to_f32));
        tensors.insert(name("gate_up_proj"), (vec![8, 48, 128], gate_up.collect()));
        let down = experts.iter().flat_map(|expert| expert.down.to_f32()).collect();
        tensors.insert(name("down_proj"), (vec![8, 128, 24], down));
    }
    let spec = |(name, (shape, _)): (&String, &(Vec<usize>, _))| TensorSpec {
        name: name.clone(),
        dtype: crate::Dtype::F32,
        shape: shape.clone(),
    };
    let mut writer = CheckpointWriter::create(dir, tensors.iter().map(spec).collect()).unwrap();
    tensors.iter().for_each(|(name, (_, values))| writer.write(name, values).unwrap());
    let config = source.config().to_json(crate::Dtype::F32);
    writer.finish(&Sidecars { config: &config, tokenizer: None, chat_template: None }).unwrap();
}
