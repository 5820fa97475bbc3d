//! Writes the converted checkpoint while it is being computed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gqla_weights::{
    AttentionConfig, Checkpoint, CheckpointWriter, Dtype, ModelConfig, Sidecars, TensorSpec, Tokenizer,
    TokenizerError,
};
use serde_json::{Map, Value, json};

use crate::{
    assemble::LatentWeights,
    conversion::ConversionError,
    forward::Linear,
    geometry::Geometry,
    report::Report,
    source::{Source, SourceLayer},
};

/// Provenance beside the weights.
const META: &str = "gqla_meta.json";

/// A checkpoint under way: the tensors outside the layers are written, layers follow in order.
pub(crate) struct Destination {
    directory: PathBuf,
    writer: CheckpointWriter,
    config: Map<String, Value>,
}

impl Destination {
    /// Announces every tensor and copies the embedding, the final norm and an untied head.
    pub(crate) fn create(
        directory: &Path,
        source: &Source<'_>,
        geometry: &Geometry,
        dtype: Dtype,
    ) -> Result<Self, ConversionError> {
        let config = config(source.config(), geometry);
        let specs = tensors(&config, geometry);
        let specs = specs.into_iter().map(|(name, shape)| TensorSpec { name, dtype, shape }).collect();
        let mut writer = CheckpointWriter::create(directory, specs)?;
        for name in outside_layers(&config) {
            writer.write(name, &source.checkpoint().tensor(name)?.to_f32())?;
        }
        let mut config = config.to_json(dtype);
        config.insert("freqfold".to_owned(), json!(geometry.freqfold()));
        config.insert("collapse".to_owned(), json!(geometry.collapse()));
        Ok(Self { directory: directory.to_owned(), writer, config })
    }

    /// Writes one layer: new attention projections, everything else as in the source.
    pub(crate) fn write_layer(
        &mut self,
        index: usize,
        layer: &SourceLayer,
        weights: &LatentWeights,
    ) -> Result<(), ConversionError> {
        let projections = [
            ("self_attn.q_proj", &weights.q),
            ("self_attn.kv_a_proj_with_mqa", &weights.kv_a),
            ("self_attn.kv_b_proj", &weights.kv_b),
        ];
        for (suffix, matrix) in projections {
            self.writer.write(&tensor(index, suffix), Linear::rounded(matrix.as_ref()).weight())?;
        }
        let copies = [
            ("input_layernorm", &layer.input_layernorm[..]),
            ("post_attention_layernorm", &layer.tail.post_attention_layernorm),
            ("self_attn.o_proj", layer.tail.o.weight()),
            ("mlp.gate_proj", layer.tail.mlp.gate.weight()),
            ("mlp.up_proj", layer.tail.mlp.up.weight()),
            ("mlp.down_proj", layer.tail.mlp.down.weight()),
        ];
        for (suffix, values) in copies {
            self.writer.write(&tensor(index, suffix), values)?;
        }
        Ok(())
    }

    /// Writes the files beside the weights; only then does the directory look like a model.
    pub(crate) fn finish(self, source: &Source<'_>, report: &Report) -> Result<(), ConversionError> {
        let tokenizer = tokenizer_if_any(source.checkpoint())?;
        let template = source.checkpoint().chat_template()?;
        let file = self.directory.join(META);
        let written = serde_json::to_string_pretty(report)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&file, text + "\n"));
        written.map_err(|source| ConversionError::Meta { file, source })?;
        let sidecars = Sidecars {
            config: &self.config,
            tokenizer: tokenizer.as_ref(),
            chat_template: template.as_ref(),
        };
        Ok(self.writer.finish(&sidecars)?)
    }
}

/// The configuration of the result.
fn config(source: &ModelConfig, geometry: &Geometry) -> ModelConfig {
    ModelConfig {
        model_type: "llama_gqla".to_owned(),
        attention: AttentionConfig::Latent {
            shape: geometry.latent_shape(),
            q_lora_rank: None,
            qk_latent_layernorm: false,
        },
        num_nextn_predict_layers: 0,
        experts: None,
        quantization: None,
        ..source.clone()
    }
}

/// Tensors copied whole. A tied model has no head of its own, before and after.
fn outside_layers(config: &ModelConfig) -> Vec<&'static str> {
    let head = (!config.tie_word_embeddings).then_some("lm_head.weight");
    ["model.embed_tokens.weight", "model.norm.weight"].into_iter().chain(head).collect()
}

fn tensor(layer: usize, suffix: &str) -> String {
    format!("model.layers.{layer}.{suffix}.weight")
}

/// Every tensor of the result with its shape.
fn tensors(config: &ModelConfig, geometry: &Geometry) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (heads, groups, head_dim) = (geometry.heads(), geometry.groups(), geometry.head_dim());
    let (rope, rank) = (geometry.rope_dim(), geometry.rank());
    let per_layer = [
        ("input_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![heads * (head_dim + rope), hidden]),
        ("self_attn.kv_a_proj_with_mqa", vec![rank + rope, hidden]),
        ("self_attn.kv_b_proj", vec![groups * 2 * head_dim, rank]),
        ("self_attn.o_proj", vec![hidden, heads * head_dim]),
        ("post_attention_layernorm", vec![hidden]),
        ("mlp.gate_proj", vec![inner, hidden]),
        ("mlp.up_proj", vec![inner, hidden]),
        ("mlp.down_proj", vec![hidden, inner]),
    ];
    let outside = outside_layers(config).into_iter().map(|name| {
        let is_norm = name == "model.norm.weight";
        (name.to_owned(), if is_norm { vec![hidden] } else { vec![config.vocab_size, hidden] })
    });
    let layers = (0..config.num_hidden_layers)
        .flat_map(|index| per_layer.clone().map(|(suffix, shape)| (tensor(index, suffix), shape)));
    outside.chain(layers).collect()
}

/// A directory may come without a tokenizer; then so does the result.
fn tokenizer_if_any(source: &Checkpoint) -> Result<Option<Tokenizer>, TokenizerError> {
    let root = source.root();
    if root.join("config.json").is_file() && !root.join("tokenizer.json").exists() {
        return Ok(None);
    }
    source.tokenizer().map(Some)
}
