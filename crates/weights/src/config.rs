//! What `config.json` says a model is.
//!
//! The engine computes a LLaMA block with plain or latent attention, and a GLM block with latent attention and a mixture
//! of experts. A configuration of these families that asks for anything else (biases, another activation, another scaling
//! of rotary frequencies) is refused here rather than computed wrongly. Other families are read as far as their shape, which is
//! all the planner needs.

mod experts;
mod fields;
mod rope;
#[cfg(test)]
mod tests;
mod write;

use std::path::{Path, PathBuf};

pub use experts::FeedForward;
use gqla_model::{
    AttentionShape, ExpertShape, ModelShape, Parameters, RopeScaling, Routing, ShapeError, WeightFormat,
    WeightShape,
};

use fields::Fields;

/// A model's dimensions and constants, from `config.json` or GGUF metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `llama` for a plain model, `llama_gqla` for a converted one, `glm4_moe_lite` for GLM-4.7-Flash, converted or not;
    /// other families keep their own name.
    pub model_type: String,
    /// The attention every layer uses; where layers have different numbers of groups, with the largest.
    pub attention: AttentionConfig,
    /// Groups of each decoder layer, where `num_key_value_heads` is a list of different numbers.
    pub num_key_value_heads_per_layer: Option<Vec<u32>>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the dense feed-forward block.
    pub intermediate_size: usize,
    /// Decoder layers, without multi-token-prediction layers.
    pub num_hidden_layers: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the input, post-attention and final norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How those were changed for longer contexts; `None` also for families the engine does not compute.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding; then the checkpoint has no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// The token a sequence begins with.
    pub bos_token_id: Option<u32>,
    /// The tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Multi-token-prediction layers the configuration promises.
    pub num_nextn_predict_layers: usize,
    /// The mixture of experts, if there is one.
    pub experts: Option<ExpertShape>,
    /// How tokens find their experts, where the engine computes that.
    pub routing: Option<Routing>,
    /// The method that compressed the weights, such as `fp8`; `None` where they are plain numbers.
    pub quantization: Option<String>,
}

/// The two kinds of attention a checkpoint can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttentionConfig {
    /// Grouped-query attention: `q_proj`, `k_proj`, `v_proj`, half-split rotary embedding over the whole head.
    Plain {
        /// Query heads.
        num_attention_heads: usize,
        /// Key/value heads.
        num_key_value_heads: usize,
        /// Dimension of every head.
        head_dim: usize,
    },
    /// Group-query latent attention: `kv_a_proj_with_mqa`, `kv_b_proj`, interleaved rotary embedding over `d_rope`.
    Latent {
        /// Heads, groups and dimensions.
        shape: AttentionShape,
        /// Rank of a factored query projection; `None` means one `q_proj`.
        q_lora_rank: Option<usize>,
        /// Whether latents pass an RMS norm (`q_a_layernorm`, `kv_a_layernorm`).
        qk_latent_layernorm: bool,
    },
}

impl ModelConfig {
    /// Groups of the latent attention's layer `layer`; `None` for plain attention.
    pub(crate) fn groups_of_layer(&self, layer: usize) -> Option<usize> {
        let AttentionConfig::Latent { shape, .. } = &self.attention else { return None };
        let own = self.num_key_value_heads_per_layer.as_ref().and_then(|groups| groups.get(layer));
        Some(*own.unwrap_or(&shape.num_key_value_heads) as usize)
    }

    /// Groups of the latent attention whose up-projection has that many rows.
    pub(crate) fn groups_of_rows(&self, rows: usize) -> Option<usize> {
        let AttentionConfig::Latent { shape, .. } = &self.attention else { return None };
        let per_group = shape.qk_nope_head_dim as usize + shape.v_head_dim as usize;
        rows.is_multiple_of(per_group).then_some(rows / per_group)
    }

    /// Reads the text of a `config.json`; `file` is only for messages.
    ///
    /// # Errors
    /// Names the field that is missing, has the wrong type, or asks for something this engine does not compute.
    pub fn parse(json: &str, file: &Path) -> Result<Self, ConfigError> {
        let fields = Fields::parse(json, file)?;
        let model_type = fields.string("model_type")?;
        let latent = fields.optional_usize("kv_lora_rank")?.is_some();
        let experts = experts::shape(&fields)?;
        if is_computed(&model_type) {
            refuse_what_is_not_computed(&fields)?;
        }
        let routing = match (model_type.as_str(), &experts) {
            (GLM, Some(experts)) => Some(experts::routing(&fields, experts)?),
            _ => None,
        };
        let (attention, num_key_value_heads_per_layer) =
            if latent { latent_attention(&fields)? } else { (plain_attention(&fields)?, None) };
        Ok(Self {
            attention,
            num_key_value_heads_per_layer,
            hidden_size: fields.usize("hidden_size")?,
            intermediate_size: fields.usize("intermediate_size")?,
            num_hidden_layers: fields.usize("num_hidden_layers")?,
            vocab_size: fields.usize("vocab_size")?,
            max_position_embeddings: fields.usize("max_position_embeddings")?,
            rms_norm_eps: fields.optional_f64("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta: rope_theta(&fields)?,
            rope_scaling: if is_computed(&model_type) { rope::scaling(&fields)? } else { None },
            tie_word_embeddings: fields.bool_or("tie_word_embeddings", false)?,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
            eos_token_ids: fields.token_ids("eos_token_id")?,
            num_nextn_predict_layers: fields.count_or_zero("num_nextn_predict_layers")?,
            experts,
            routing,
            quantization: quantization(&fields)?,
            model_type,
        })
    }

    /// Reads a `config.json`, or the one in a directory.
    ///
    /// # Errors
    /// As [`Self::parse`], and when the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let text = std::fs::read_to_string(&file)
            .map_err(|source| ConfigError::Read { file: file.clone(), source })?;
        Self::parse(&text, &file)
    }

    /// The shape the planner needs, or `None` for plain attention. `parameters` counts the decoder's weights in the files;
    /// without files they are counted from the shape.
    pub fn model_shape(&self, parameters: Option<u64>) -> Option<ModelShape> {
        let AttentionConfig::Latent { shape: attention, q_lora_rank, .. } = self.attention else {
            return None;
        };
        // The configuration admits no dimension above 2^30, so the casts are exact.
        let mut shape = ModelShape {
            attention,
            num_key_value_heads_per_layer: self.num_key_value_heads_per_layer.clone(),
            hidden_size: self.hidden_size as u32,
            num_hidden_layers: self.num_hidden_layers as u32,
            parameters: 0,
            num_nextn_predict_layers: self.num_nextn_predict_layers as u32,
            max_position_embeddings: self.max_position_embeddings as u32,
            weights: WeightShape {
                q_lora_rank: q_lora_rank.map(|rank| rank as u32),
                intermediate_size: Some(self.intermediate_size as u32),
                vocab_size: Some(self.vocab_size as u32),
                tie_word_embeddings: self.tie_word_embeddings,
                experts: self.experts,
                weight_format: self.weight_format(),
                nextn_key_value_heads: None,
            },
        };
        let routed = self.experts.map_or(0, |experts| experts.n_routed_experts);
        shape.parameters = parameters.unwrap_or_else(|| Parameters::of(&shape).total(routed));
        Some(shape)
    }

    /// How the weights are stored, as far as the configuration says.
    pub fn weight_format(&self) -> WeightFormat {
        if self.quantization.as_deref() == Some("fp8") { WeightFormat::Fp8Block } else { WeightFormat::Bf16 }
    }
}

/// The family of GLM-4.7-Flash.
const GLM: &str = "glm4_moe_lite";

/// Whether the engine computes models of that type.
pub(crate) fn is_computed(model_type: &str) -> bool {
    matches!(model_type, "llama" | "llama_gqla" | GLM)
}

fn quantization(fields: &Fields<'_>) -> Result<Option<String>, ConfigError> {
    let Some(quantization) = fields.object("quantization_config")? else { return Ok(None) };
    let method = quantization.optional_string("quant_method")?;
    Ok(Some(method.unwrap_or_else(|| "an unnamed method".to_owned())))
}

fn plain_attention(fields: &Fields<'_>) -> Result<AttentionConfig, ConfigError> {
    let num_attention_heads = fields.usize("num_attention_heads")?;
    let num_key_value_heads = fields.optional_usize("num_key_value_heads")?.unwrap_or(num_attention_heads);
    if !num_attention_heads.is_multiple_of(num_key_value_heads) {
        return Err(fields.wrong(
            "num_key_value_heads",
            num_key_value_heads,
            format!(
                "a divisor of num_attention_heads={num_attention_heads} \
                 ({num_attention_heads} mod {num_key_value_heads} = {})",
                num_attention_heads % num_key_value_heads
            ),
        ));
    }
    let head_dim = match fields.optional_usize("head_dim")? {
        Some(head_dim) => head_dim,
        None => fields.usize("hidden_size")? / num_attention_heads,
    };
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(fields.wrong(
            "head_dim",
            head_dim,
            "an even number: rotary embeddings turn pairs of channels",
        ));
    }
    Ok(AttentionConfig::Plain { num_attention_heads, num_key_value_heads, head_dim })
}

/// Groups per layer, if they differ, besides the attention with the largest number.
type Latent = (AttentionConfig, Option<Vec<u32>>);

fn latent_attention(fields: &Fields<'_>) -> Result<Latent, ConfigError> {
    let num_attention_heads = fields.u32("num_attention_heads")?;
    let per_layer = groups_per_layer(fields, num_attention_heads)?;
    let shape = AttentionShape {
        num_attention_heads,
        // MLA is the case G = H, and older MLA configurations leave G out.
        num_key_value_heads: match per_layer.as_ref().and_then(|groups| groups.iter().copied().max()) {
            Some(largest) => largest,
            None if fields.optional_usize("num_key_value_heads")?.is_some() => {
                fields.u32("num_key_value_heads")?
            }
            None => num_attention_heads,
        },
        kv_lora_rank: fields.u32("kv_lora_rank")?,
        qk_nope_head_dim: fields.u32("qk_nope_head_dim")?,
        qk_rope_head_dim: fields.u32("qk_rope_head_dim")?,
        v_head_dim: fields.u32("v_head_dim")?,
    };
    shape.validate().map_err(|source| ConfigError::Shape { file: fields.file().to_owned(), source })?;
    if !fields.bool_or("rope_interleave", true)? {
        return Err(fields.unsupported(
            "rope_interleave",
            "false",
            "latent rotary keys are interleaved pairs",
        ));
    }
    let attention = AttentionConfig::Latent {
        shape,
        q_lora_rank: fields.optional_usize("q_lora_rank")?,
        qk_latent_layernorm: fields.bool_or("qk_latent_layernorm", true)?,
    };
    Ok((attention, per_layer.filter(|groups| groups.iter().any(|one| *one != shape.num_key_value_heads))))
}

/// `num_key_value_heads` where it is a list.
fn groups_per_layer(fields: &Fields<'_>, heads: u32) -> Result<Option<Vec<u32>>, ConfigError> {
    let field = "num_key_value_heads";
    let Some(groups) = fields.list(field)? else { return Ok(None) };
    let layers = fields.usize("num_hidden_layers")?;
    if groups.len() != layers {
        let expected = format!("one number, or one for each of num_hidden_layers={layers}");
        return Err(fields.wrong(field, format!("a list of {}", groups.len()), expected));
    }
    match groups.iter().find(|groups| !heads.is_multiple_of(**groups)) {
        Some(groups) => Err(fields.wrong(
            field,
            groups,
            format!("a divisor of num_attention_heads={heads} for every layer"),
        )),
        None => Ok(Some(groups)),
    }
}

/// transformers 4 writes `rope_theta`, transformers 5 `rope_parameters.rope_theta`; some writers emit both.
fn rope_theta(fields: &Fields<'_>) -> Result<f64, ConfigError> {
    let nested = fields.object("rope_parameters")?;
    let old = fields.optional_f64("rope_theta")?;
    let new = nested.as_ref().map(|nested| nested.optional_f64("rope_theta")).transpose()?.flatten();
    let theta = old.or(new).unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(fields.wrong("rope_theta", theta, "a positive number"));
    }
    Ok(theta)
}

fn refuse_what_is_not_computed(fields: &Fields<'_>) -> Result<(), ConfigError> {
    for field in ["attention_bias", "mlp_bias"] {
        if fields.bool_or(field, false)? {
            return Err(fields.unsupported(field, "true", "only projections without biases are computed"));
        }
    }
    let activation = fields.optional_string("hidden_act")?.unwrap_or_else(|| "silu".to_owned());
    if activation != "silu" {
        return Err(fields.unsupported("hidden_act", &activation, "only `silu` is computed"));
    }
    Ok(())
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a JSON object.
    #[error("`{}` is not a JSON object: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where parsing stopped.
        source: serde_json::Error,
    },
    /// A field every model of the family has is absent.
    #[error("`{}` has no field `{field}`, without which the model's shape is unknown", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The field.
        field: String,
    },
    /// A field has a value that cannot be.
    #[error("`{field}` in `{}` is {actual}, expected {expected}", file.display())]
    Wrong {
        /// The file.
        file: PathBuf,
        /// The field.
        field: String,
        /// What it says.
        actual: String,
        /// What it may say.
        expected: String,
    },
    /// A field asks for something the engine does not compute.
    #[error("`{field}` in `{}` is {actual}, which is not supported: {reason}", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// The field.
        field: String,
        /// What it says.
        actual: String,
        /// What would be supported.
        reason: String,
    },
    /// The latent attention's dimensions contradict each other.
    #[error("the attention in `{}` is impossible: {source}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The arithmetic.
        source: ShapeError,
    },
}
