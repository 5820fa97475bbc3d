use super::*;
use crate::{AttentionConfig, Checkpoint, ModelConfig, OpenError};

/// One layer, hidden 4, two heads of 2 over one group, feed-forward 6, vocabulary 3, tied.
fn config() -> ModelConfig {
    ModelConfig {
        model_type: "llama".to_owned(),
        attention: AttentionConfig::Plain { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 2 },
        num_key_value_heads_per_layer: None,
        hidden_size: 4,
        intermediate_size: 6,
        num_hidden_layers: 1,
        vocab_size: 3,
        max_position_embeddings: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_ids: vec![1, 2],
        num_nextn_predict_layers: 0,
        experts: None,
        routing: None,
        quantization: None,
    }
}

fn specs(dtype: Dtype) -> Vec<TensorSpec> {
    crate::layout::expected(&config())
        .map(|tensor| TensorSpec { name: tensor.name, dtype, shape: tensor.shape })
        .collect()
}

fn values(spec: &TensorSpec) -> Vec<f32> {
    (0..spec.len()).map(|i| i as f32 + spec.name.len() as f32).collect()
}

fn sidecars(config: &Map<String, Value>) -> Sidecars<'_> {
    Sidecars { config, tokenizer: None, chat_template: None }
}

#[test]
fn what_is_written_in_any_order_is_read_back() {
    for dtype in Dtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = CheckpointWriter::create(dir.path(), specs(dtype)).unwrap();
        for spec in specs(dtype).iter().rev() {
            writer.write(&spec.name, &values(spec)).unwrap();
        }
        writer.finish(&sidecars(&config().to_json(dtype))).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.config(), &config());
        for spec in specs(dtype) {
            let tensor = checkpoint.tensor(&spec.name).unwrap().expect_shape(&spec.shape).unwrap();
            assert_eq!((tensor.dtype, tensor.to_f32()), (dtype, values(&spec)));
        }
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".partial")), "{left:?}");
    }
}

#[test]
fn a_killed_conversion_leaves_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = CheckpointWriter::create(dir.path(), specs(Dtype::F32)).unwrap();
    let spec = &specs(Dtype::F32)[0];
    writer.write(&spec.name, &values(spec)).unwrap();
    // A killed process drops nothing.
    std::mem::forget(writer);
    assert!(dir.path().join("model.safetensors.partial").exists());
    assert!(matches!(Checkpoint::open(dir.path()), Err(OpenError::NoModel { .. })));
    // And the next attempt may use the same directory.
    drop(CheckpointWriter::create(dir.path(), specs(Dtype::F32)).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn each_misuse_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let twice = [specs(Dtype::F32), specs(Dtype::F32)].concat();
    let message = CheckpointWriter::create(dir.path(), twice).unwrap_err().to_string();
    assert!(message.contains("`model.embed_tokens.weight` was announced twice"), "{message}");

    let mut writer = CheckpointWriter::create(dir.path(), specs(Dtype::F32)).unwrap();
    let message = writer.write("w", &[]).unwrap_err().to_string();
    assert!(message.contains("tensor `w` was not announced"), "{message}");
    let message = writer.write("model.norm.weight", &[1.0]).unwrap_err().to_string();
    assert!(message.contains("has 1 elements, expected as many as its shape [4] holds"), "{message}");
    let message = writer.finish(&sidecars(&Map::new())).unwrap_err().to_string();
    assert!(message.contains("announced tensors were never written"), "{message}");

    fs::write(dir.path().join("model.safetensors"), "").unwrap();
    let message = CheckpointWriter::create(dir.path(), specs(Dtype::F32)).unwrap_err().to_string();
    assert!(message.contains("already exists: choose an empty directory"), "{message}");
}

#[test]
fn the_chat_template_is_read_back() {
    let template = ChatTemplateSource {
        template: "{{ bos_token }}{{ messages[0].content }}".to_owned(),
        bos_token: Some("<s>".to_owned()),
        eos_token: None,
    };
    let dir = tempfile::tempdir().unwrap();
    let fields = tokenizer_config(Some(&template));
    stage_json(dir.path(), "tokenizer_config.json", &fields).unwrap().publish().unwrap();
    assert_eq!(crate::tokenizer::files::chat_template(dir.path()).unwrap(), Some(template));
}
