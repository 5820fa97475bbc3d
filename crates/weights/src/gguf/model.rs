//! A GGUF file as a LLaMA model.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use serde_json::json;

use super::{
    GgufError,
    names::hugging_face,
    quant::{ElementType, dequantize_q4_1, dequantize_q8_0},
    reader::{Header, TensorInfo},
};
use crate::{
    ChatTemplateSource, Dtype, ModelConfig, Tensor, Tokenizer, TokenizerError, mmap::map,
    tokenizer::Gpt2Vocabulary,
};

/// `tokenizer.ggml.token_type` of a control token.
const CONTROL: i64 = 3;

/// An opened GGUF file whose tensors all have a Hugging Face name and a readable element type.
#[derive(Debug)]
pub(crate) struct GgufModel {
    path: PathBuf,
    map: Mmap,
    header: Header,
    /// Hugging Face name to what is stored.
    tensors: BTreeMap<String, Stored>,
}

/// A tensor and what must be done to it.
#[derive(Debug)]
struct Stored {
    info: TensorInfo,
    dtype: Dtype,
    /// Heads whose rows the converter interleaved.
    interleaved_heads: Option<usize>,
}

impl GgufModel {
    /// Opens `path` and checks its header.
    pub(crate) fn open(path: &Path) -> Result<Self, GgufError> {
        let map = map(path)?;
        let header =
            Header::parse(&map).map_err(|what| GgufError::Damaged { file: path.to_owned(), what })?;
        let mut model = Self { path: path.to_owned(), map, header, tensors: BTreeMap::new() };
        model.refuse_what_is_not_supported()?;
        model.tensors = model.stored_tensors()?;
        Ok(model)
    }

    fn unsupported(&self, what: String, reason: &'static str) -> GgufError {
        GgufError::Unsupported { file: self.path.clone(), what, reason }
    }

    fn refuse_what_is_not_supported(&self) -> Result<(), GgufError> {
        let metadata = &self.header.metadata;
        if self.header.version != 3 {
            let what = format!("GGUF version {}", self.header.version);
            return Err(self.unsupported(what, "only version 3 is read; convert the file again"));
        }
        let architecture = self.text("general.architecture")?;
        if architecture != "llama" {
            let what = format!("general.architecture `{architecture}`");
            return Err(
                self.unsupported(what, "only `llama` is read from GGUF; use the safetensors checkpoint")
            );
        }
        if let Some(scaling) = metadata.string("llama.rope.scaling.type").filter(|kind| *kind != "none") {
            let what = format!("llama.rope.scaling.type `{scaling}`");
            return Err(self.unsupported(what, "only unscaled rotary frequencies are computed"));
        }
        let lengths =
            ["llama.rope.dimension_count", "llama.attention.key_length"].map(|key| metadata.u64(key));
        if let [Some(rotated), Some(length)] = lengths
            && rotated != length
        {
            let what = format!("llama.rope.dimension_count {rotated} of llama.attention.key_length {length}");
            return Err(self.unsupported(what, "only heads that are rotated whole are computed"));
        }
        if let Some(experts) = metadata.u64("llama.expert_count").filter(|count| *count > 0) {
            let what = format!("llama.expert_count {experts}");
            return Err(self.unsupported(what, "only dense feed-forward blocks are computed"));
        }
        Ok(())
    }

    fn stored_tensors(&self) -> Result<BTreeMap<String, Stored>, GgufError> {
        let heads = self.number("llama.attention.head_count")? as usize;
        let groups = self.header.metadata.u64("llama.attention.head_count_kv").map(|n| n as usize);
        let mut tensors = BTreeMap::new();
        for (gguf, info) in &self.header.tensors {
            let Some(name) = hugging_face(gguf) else {
                let reason = "no unscaled LLaMA model without biases has such a tensor";
                return Err(self.unsupported(format!("the tensor `{gguf}`"), reason));
            };
            let Some(dtype) = info.element.dtype() else {
                let what = format!("the tensor `{gguf}` of type {:?}", info.element);
                return Err(self.unsupported(what, "only F32, F16, BF16, Q8_0 and Q4_1 are read"));
            };
            let interleaved_heads = match name.rsplit('.').nth(1) {
                Some("q_proj") => Some(heads),
                Some("k_proj") => Some(groups.unwrap_or(heads)),
                _ => None,
            };
            if interleaved_heads.is_some_and(|heads| !divides_into_pairs(heads, &info.shape)) {
                let what = format!("the tensor `{gguf}` of shape {:?}", info.shape);
                let reason = "its rows must be a whole number of channel pairs for every head";
                return Err(self.unsupported(what, reason));
            }
            tensors.insert(name, Stored { info: info.clone(), dtype, interleaved_heads });
        }
        Ok(tensors)
    }

    fn number(&self, key: &str) -> Result<u64, GgufError> {
        self.header.metadata.u64(key).ok_or_else(|| self.absent(key, "unsigned integer"))
    }

    fn text(&self, key: &str) -> Result<&str, GgufError> {
        self.header.metadata.string(key).ok_or_else(|| self.absent(key, "string"))
    }

    fn absent(&self, key: &str, expected: &'static str) -> GgufError {
        GgufError::Metadata { file: self.path.clone(), key: key.to_owned(), expected }
    }

    /// The configuration, through the same checks as a `config.json`.
    pub(crate) fn config(&self) -> Result<ModelConfig, GgufError> {
        let metadata = &self.header.metadata;
        let eps_key = "llama.attention.layer_norm_rms_epsilon";
        let eps = metadata.f64(eps_key).ok_or_else(|| self.absent(eps_key, "float"))?;
        let vocabulary = match metadata.u64("llama.vocab_size") {
            Some(rows) => rows,
            None => self.tensors.get("model.embed_tokens.weight").map_or(0, |t| t.info.shape[0] as u64),
        };
        let config = json!({
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.number("llama.embedding_length")?,
            "intermediate_size": self.number("llama.feed_forward_length")?,
            "num_hidden_layers": self.number("llama.block_count")?,
            "num_attention_heads": self.number("llama.attention.head_count")?,
            "num_key_value_heads": metadata.u64("llama.attention.head_count_kv"),
            "head_dim": metadata.u64("llama.attention.key_length")
                .or_else(|| metadata.u64("llama.rope.dimension_count")),
            "vocab_size": vocabulary,
            "max_position_embeddings": self.number("llama.context_length")?,
            "rms_norm_eps": eps,
            "rope_theta": metadata.f64("llama.rope.freq_base"),
            "tie_word_embeddings": !self.tensors.contains_key("lm_head.weight"),
            "bos_token_id": metadata.u64("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.u64("tokenizer.ggml.eos_token_id"),
        });
        Ok(ModelConfig::parse(&config.to_string(), &self.path)?)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// File and shape of a tensor, without touching its bytes.
    pub(crate) fn describe(&self, name: &str) -> Option<(&Path, Vec<usize>)> {
        self.tensors.get(name).map(|stored| (self.path.as_path(), stored.info.shape.clone()))
    }

    /// A tensor in Hugging Face's element and row order.
    pub(crate) fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let stored = self.tensors.get(name)?;
        let raw = &self.map[stored.info.bytes.clone()];
        let bytes = match stored.info.element {
            ElementType::Q4_1 => Cow::Owned(dequantize_q4_1(raw)),
            ElementType::Q8_0 => Cow::Owned(dequantize_q8_0(raw)),
            ElementType::Plain(_) | ElementType::Other { .. } => Cow::Borrowed(raw),
        };
        let bytes = match stored.interleaved_heads {
            Some(heads) => Cow::Owned(split_halves(&bytes, heads, stored.info.shape[0])),
            None => bytes,
        };
        Some(Tensor::new(name, &self.path, stored.dtype, stored.info.shape.clone(), bytes))
    }

    /// The tokenizer, for the byte-level family `smollm`.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let metadata = &self.header.metadata;
        let refused = |reason: String| TokenizerError::Load { file: self.path.clone(), reason };
        let model = metadata.string("tokenizer.ggml.model").unwrap_or("none");
        let splitting = metadata.string("tokenizer.ggml.pre").unwrap_or("none");
        if (model, splitting) != ("gpt2", "smollm") {
            return Err(refused(format!(
                "tokenizer.ggml.model is `{model}` with tokenizer.ggml.pre `{splitting}`, expected `gpt2` with \
                 `smollm`; use a checkpoint that has a tokenizer.json"
            )));
        }
        let strings = |key: &str| {
            metadata
                .strings(key)
                .ok_or_else(|| refused(format!("metadata `{key}` is not an array of strings")))
        };
        let types = metadata.integers("tokenizer.ggml.token_type").unwrap_or_default();
        let control = types.iter().zip(0..).filter(|(kind, _)| **kind == CONTROL).map(|(_, id)| id);
        Gpt2Vocabulary {
            control: control.collect(),
            tokens: strings("tokenizer.ggml.tokens")?,
            merges: strings("tokenizer.ggml.merges")?,
        }
        .smollm(&self.path)
    }

    /// The chat template in the metadata, if any.
    pub(crate) fn chat_template(&self) -> Option<ChatTemplateSource> {
        let metadata = &self.header.metadata;
        let template = metadata.string("tokenizer.chat_template")?.to_owned();
        let tokens = metadata.strings("tokenizer.ggml.tokens").unwrap_or_default();
        let token = |key: &str| tokens.get(usize::try_from(metadata.u64(key)?).ok()?).cloned();
        Some(ChatTemplateSource {
            template,
            bos_token: token("tokenizer.ggml.bos_token_id"),
            eos_token: token("tokenizer.ggml.eos_token_id"),
        })
    }
}

/// Whether the rows of a matrix are `heads` equal blocks of an even number of rows.
fn divides_into_pairs(heads: usize, shape: &[usize]) -> bool {
    match (heads.checked_mul(2), shape) {
        (Some(pairs), [rows, _]) if pairs > 0 => rows.is_multiple_of(pairs),
        _ => false,
    }
}

/// Undoes the row order of GGUF `q` and `k` projections: row `2j + s` of a head becomes row `j + s d/2`, which turns
/// interleaved rotary pairs back into half-split ones.
pub(super) fn split_halves(bytes: &[u8], heads: usize, rows: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let head_dim = rows / heads.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + half;
                out.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    out
}
