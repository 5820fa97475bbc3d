//! A tokenizer whose token ids are bytes, so that scripts can be written as text and split characters.

use gqla_weights::Tokenizer;
use serde_json::{Map, Value, json};

/// GPT-2's printable stand-in for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + rank).unwrap()
}

/// Ids 0 to 255 are bytes, 256 is the special token `<eos>`.
pub fn bytes() -> Tokenizer {
    let vocabulary: Map<String, Value> =
        (0..=255u8).map(|byte| (stand_in(byte).to_string(), json!(byte))).collect();
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 256, "content": "<eos>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocabulary, "merges": []},
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokenizer.json");
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    Tokenizer::from_file(&file).unwrap()
}
