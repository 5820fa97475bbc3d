use half::f16;
use proptest::prelude::*;

use super::{
    error::{Damage, GgufError},
    model::{GgufModel, split_halves},
    quant::{dequantize_q4_1, dequantize_q8_0},
    reader::Header,
};
use crate::{AttentionConfig, Checkpoint, Dtype, OpenError};

/// Writes GGUF the way llama.cpp's converter does.
#[derive(Clone, Default)]
struct Builder {
    metadata: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

impl Builder {
    fn value(mut self, key: &str, code: u32, value: &[u8]) -> Self {
        self.metadata.retain(|(old, _)| old != key);
        self.metadata.push((key.to_owned(), [&code.to_le_bytes(), value].concat()));
        self
    }

    fn u32(self, key: &str, value: u32) -> Self {
        self.value(key, 4, &value.to_le_bytes())
    }

    fn f32(self, key: &str, value: f32) -> Self {
        self.value(key, 6, &value.to_le_bytes())
    }

    fn text(self, key: &str, value: &str) -> Self {
        self.value(key, 8, &string(value))
    }

    fn strings(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| string(value)));
        self.value(key, 9, &bytes)
    }

    fn integers(self, key: &str, values: &[i32]) -> Self {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.value(key, 9, &bytes)
    }

    /// `dimensions` fastest first, as in the file.
    fn tensor(mut self, name: &str, dimensions: &[u64], code: u32, data: Vec<u8>) -> Self {
        self.tensors.retain(|(old, ..)| old != name);
        self.tensors.push((name.to_owned(), dimensions.to_vec(), code, data));
        self
    }

    fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            bytes.extend(string(key));
            bytes.extend(value);
        }
        let mut offset = 0u64;
        for (name, dimensions, code, data) in &self.tensors {
            bytes.extend(string(name));
            bytes.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
            bytes.extend(code.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes
    }
}

fn counting(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// One layer, hidden 4, two heads of 4 over one group, feed-forward 6, vocabulary 5.
fn tiny() -> Builder {
    let mut builder = Builder::default()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 4)
        .u32("llama.feed_forward_length", 6)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.rope.dimension_count", 4)
        .f32("llama.rope.freq_base", 1e5)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .u32("llama.vocab_size", 5)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "ab", "1"])
        .strings("tokenizer.ggml.merges", &["a b"])
        .integers("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1]);
    let tensors: [(&str, &[u64]); 11] = [
        ("token_embd", &[4, 5]),
        ("output_norm", &[4]),
        ("blk.0.attn_norm", &[4]),
        ("blk.0.ffn_norm", &[4]),
        ("blk.0.attn_q", &[4, 8]),
        ("blk.0.attn_k", &[4, 4]),
        ("blk.0.attn_v", &[4, 4]),
        ("blk.0.attn_output", &[8, 4]),
        ("blk.0.ffn_gate", &[4, 6]),
        ("blk.0.ffn_up", &[4, 6]),
        ("blk.0.ffn_down", &[6, 4]),
    ];
    for (name, dimensions) in tensors {
        let count = dimensions.iter().product::<u64>() as usize;
        builder = builder.tensor(&format!("{name}.weight"), dimensions, 0, counting(count));
    }
    builder
}

fn open(builder: &Builder) -> Result<Checkpoint, OpenError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.gguf"), builder.build()).unwrap();
    // The map outlives the directory.
    Checkpoint::open(dir.path())
}

#[test]
fn a_llama_file_is_a_checkpoint() {
    let model = open(&tiny()).unwrap();
    let plain = AttentionConfig::Plain { num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4 };
    assert_eq!(model.config().attention, plain);
    assert_eq!((model.config().rms_norm_eps, model.config().rope_theta), (1e-5, 1e5));
    assert!(model.config().tie_word_embeddings && !model.contains("lm_head.weight"));
    let v = model.tensor("model.layers.0.self_attn.v_proj.weight").unwrap();
    assert_eq!(v.to_f32(), (0..16).map(|i| i as f32).collect::<Vec<_>>());
    let embedding = model.tensor("model.embed_tokens.weight").unwrap().expect_shape(&[5, 4]).unwrap();
    assert_eq!((embedding.dtype, embedding.len()), (Dtype::F32, 20));
}

#[test]
fn an_untied_head_is_found() {
    let model = open(&tiny().tensor("output.weight", &[4, 5], 0, counting(20))).unwrap();
    assert!(!model.config().tie_word_embeddings && model.contains("lm_head.weight"));
}

#[test]
fn rows_of_q_and_k_return_to_half_split_order() {
    let model = open(&tiny()).unwrap();
    let first_of_rows = |name: &str| -> Vec<f32> {
        model.tensor(name).unwrap().to_f32().chunks(4).map(|row| row[0] / 4.0).collect()
    };
    assert_eq!(first_of_rows("model.layers.0.self_attn.q_proj.weight"), [0., 2., 1., 3., 4., 6., 5., 7.]);
    assert_eq!(first_of_rows("model.layers.0.self_attn.k_proj.weight"), [0., 2., 1., 3.]);
}

#[test]
fn the_tokenizer_is_built_from_metadata() {
    let tokenizer = open(&tiny()).unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("ab1<|end|>", true).unwrap(), [3, 4, 0]);
    assert_eq!(tokenizer.decode(&[3, 4, 0], true), "ab1");
    let other = tiny().text("tokenizer.ggml.pre", "llama-bpe");
    let message = open(&other).unwrap().tokenizer().unwrap_err().to_string();
    assert!(message.contains("tokenizer.ggml.pre `llama-bpe`, expected `gpt2` with `smollm`"), "{message}");
    let larger = tiny().strings("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "ab", "1", "2"]);
    let message = open(&larger).unwrap().tokenizer().unwrap_err().to_string();
    assert!(message.contains("a token with id 5, but the embedding only 5 rows"), "{message}");
}

#[test]
fn each_refusal_is_a_sentence() {
    let q4_k = tiny().tensor("blk.0.ffn_up.weight", &[256, 6], 12, vec![0; 6 * 144]);
    let cases = [
        (
            tiny().text("general.architecture", "qwen3"),
            "general.architecture `qwen3`, which is not supported",
        ),
        (tiny().text("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.type `yarn`"),
        (tiny().u32("llama.expert_count", 8), "llama.expert_count 8"),
        (tiny().tensor("rope_freqs.weight", &[2], 0, counting(2)), "the tensor `rope_freqs.weight`"),
        (q4_k, "only F32, F16, BF16, Q8_0 and Q4_1 are read"),
        (tiny().u32("llama.attention.head_count", 3), "a whole number of channel pairs for every head"),
        (
            tiny().text("llama.block_count", "1"),
            "has no metadata `llama.block_count` of type unsigned integer",
        ),
        (tiny().u32("llama.block_count", 2), "has no tensor `model.layers.1."),
        (
            tiny().tensor("blk.0.ffn_up.weight", &[4, 7], 0, counting(28)),
            "tensor `model.layers.0.mlp.up_proj.weight` in",
        ),
        (tiny().u32("general.alignment", 24), "general.alignment is 24, expected a power of two"),
    ];
    for (builder, expected) in cases {
        let message = open(&builder).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} should contain {expected:?}");
    }
}

#[test]
fn damage_is_located() {
    let parse = |bytes: &[u8]| Header::parse(bytes).unwrap_err();
    assert_eq!(parse(b"GGML...."), Damage::Magic);
    assert!(matches!(parse(b"GGUF\x03"), Damage::Truncated { at: 4, needed: 4, left: 1, .. }));
    let whole = tiny().build();
    let short = &whole[..whole.len() - 1];
    assert!(matches!(parse(short), Damage::OutOfBounds { actual, .. } if actual == short.len()));
    let unknown = tiny().tensor("blk.0.ffn_up.weight", &[4, 6], 99, Vec::new()).build();
    assert!(matches!(parse(&unknown), Damage::UnknownType { code: 99, .. }));
    let odd_row = tiny().tensor("token_embd.weight", &[4, 5], 3, vec![0; 20]).build();
    assert!(parse(&odd_row).to_string().contains("a row is not a whole number of blocks"));
    let overflow = tiny().tensor("token_embd.weight", &[1 << 40, 1 << 40], 0, Vec::new()).build();
    assert!(parse(&overflow).to_string().contains("they overflow"));
}

#[test]
fn other_versions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.gguf");
    std::fs::write(&file, b"GGUF\x02\0\0\0").unwrap();
    let error = GgufModel::open(&file).unwrap_err();
    assert!(matches!(&error, GgufError::Unsupported { what, .. } if what == "GGUF version 2"), "{error}");
}

#[test]
fn blocks_dequantise_by_their_definition() {
    let (d, m) = (f16::from_f32(0.5), f16::from_f32(-3.0));
    let mut q4_1 = [d.to_le_bytes(), m.to_le_bytes()].concat();
    q4_1.extend((0..16u8).map(|i| i | (15 - i) << 4));
    let low = (0..16).map(|q| 0.5 * q as f32 - 3.0);
    let high = (0..16).map(|q| 0.5 * (15 - q) as f32 - 3.0);
    assert_eq!(Dtype::F32.decode(&dequantize_q4_1(&q4_1)), low.chain(high).collect::<Vec<_>>());

    let mut q8_0 = d.to_le_bytes().to_vec();
    q8_0.extend((0..32u8).map(|i| i.wrapping_sub(16)));
    let expected: Vec<f32> = (-16..16).map(|q| 0.5 * q as f32).collect();
    assert_eq!(Dtype::F32.decode(&dequantize_q8_0(&q8_0)), expected);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Header::parse(&[b"GGUF\x03\0\0\0".as_slice(), &tail].concat());
    }

    #[test]
    fn truncation_is_always_noticed(cut in 0usize..4000) {
        let whole = tiny().build();
        let bytes = &whole[..cut % whole.len()];
        prop_assert!(Header::parse(bytes).is_err());
    }

    #[test]
    fn a_damaged_byte_never_panics(at in 0usize..4000, value: u8) {
        let mut bytes = tiny().build();
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.tensors.values().all(|tensor| tensor.bytes.end <= bytes.len()));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("m.gguf"), &bytes).unwrap();
        if let Ok(model) = Checkpoint::open(dir.path()) {
            model.names().for_each(|name| { let _ = model.tensor(name); });
            let _ = (model.tokenizer(), model.chat_template());
        }
    }

    #[test]
    fn split_halves_inverts_llama_cpps_permutation(heads in 1usize..5, half in 1usize..5, columns in 1usize..3) {
        let rows = heads * 2 * half;
        let original: Vec<u8> = (0..rows * columns).map(|i| i as u8).collect();
        // convert_hf_to_gguf.py: reshape(heads, 2, half, columns).swapaxes(1, 2)
        let permuted: Vec<u8> = (0..rows).flat_map(|row| {
            let (head, within) = (row / (2 * half), row % (2 * half));
            let from = head * 2 * half + within % 2 * half + within / 2;
            original[from * columns..(from + 1) * columns].to_vec()
        }).collect();
        prop_assert_eq!(split_halves(&permuted, heads, rows), original);
    }
}
