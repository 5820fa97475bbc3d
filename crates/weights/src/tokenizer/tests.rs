use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Every byte a token of its own (id = position in GPT-2's alphabet), one merge and one control token.
fn bytes() -> Tokenizer {
    let mut tokens: Vec<String> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort();
    tokens.push("he".to_owned());
    tokens.push("<|end|>".to_owned());
    let vocabulary = Gpt2Vocabulary { tokens, merges: vec!["h e".to_owned()], control: vec![257] };
    vocabulary.smollm(Path::new("m.gguf")).unwrap()
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let mut detokenizer = tokenizer.detokenizer(true);
    let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id)).collect();
    pieces.push(detokenizer.finish());
    pieces
}

#[test]
fn special_tokens_are_text_unless_allowed() {
    let tokenizer = bytes();
    assert_eq!(tokenizer.encode("<|end|>", true).unwrap(), [257]);
    assert_eq!(tokenizer.encode("<|end|>", false).unwrap().len(), 7);
    assert_eq!((tokenizer.special_ids(), tokenizer.vocab_size()), (vec![257], 258));
    assert_eq!(tokenizer.decode(&[256, 257], false), "he<|end|>");
    assert_eq!(tokenizer.decode(&[256, 257], true), "he");
}

#[test]
fn half_a_character_is_held_back() {
    let tokenizer = bytes();
    let ids = tokenizer.encode("é🙂", true).unwrap();
    assert_eq!(ids.len(), 6);
    assert_eq!(stream(&tokenizer, &ids), ["", "é", "", "", "", "🙂", ""]);
    assert_eq!(stream(&tokenizer, &ids[..4]), ["", "é", "", "", "\u{FFFD}"]);
}

#[test]
fn bytes_that_never_become_a_character_do_not_block_the_stream() {
    let tokenizer = bytes();
    let continuation = tokenizer.encode("é", true).unwrap()[1];
    let a = tokenizer.encode("a", true).unwrap()[0];
    let text = stream(&tokenizer, &[continuation, continuation, a]);
    assert_eq!(text, ["", "", "\u{FFFD}\u{FFFD}a", ""]);
    let endless = stream(&tokenizer, &[continuation; 1000]);
    assert_eq!(endless.concat(), "\u{FFFD}".repeat(1000));
}

#[test]
fn a_real_replacement_character_arrives_with_the_next_one() {
    let tokenizer = bytes();
    let ids = tokenizer.encode("\u{FFFD}Σ", true).unwrap();
    assert_eq!(stream(&tokenizer, &ids), ["", "", "", "", "\u{FFFD}Σ", ""]);
}

/// Every byte a token of its own (id = byte), as in LLaMA-2's vocabulary, and the token `a` (256).
fn byte_fallback() -> Tokenizer {
    let mut vocabulary: serde_json::Map<String, serde_json::Value> =
        (0..256).map(|byte| (format!("<0x{byte:02X}>"), byte.into())).collect();
    vocabulary.insert("a".to_owned(), 256.into());
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocabulary, "merges": []},
    });
    Tokenizer::new(json.to_string().parse().unwrap())
}

#[test]
fn characters_of_byte_tokens_are_given_whole_and_once() {
    let tokenizer = byte_fallback();
    let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    assert_eq!(stream(&tokenizer, &bytes("é🙂")), ["", "é", "", "", "", "🙂", ""]);
    assert_eq!(stream(&tokenizer, &[bytes("🙂"), vec![256]].concat()).concat(), "🙂a");
    // The second character never ends: the first one stays, and what broke is told.
    let broken = [bytes("é"), vec![0xF0, 0x9F, 256]].concat();
    assert_eq!(stream(&tokenizer, &broken).concat(), "é\u{FFFD}\u{FFFD}\u{FFFD}a");
}

#[test]
fn a_broken_file_is_named() {
    let message = Tokenizer::from_file(Path::new("absent/tokenizer.json")).unwrap_err().to_string();
    assert!(message.starts_with("cannot read the tokenizer `absent/tokenizer.json`"), "{message}");
    let broken = Gpt2Vocabulary { tokens: vec!["a".into()], merges: vec!["a".into()], control: vec![] };
    let message = broken.smollm(Path::new("m.gguf")).unwrap_err().to_string();
    assert!(message.contains("the merge `a` is not two tokens"), "{message}");
}

proptest! {
    #[test]
    fn text_survives_ids_and_streaming(text in "\\PC{0,40}") {
        let tokenizer = bytes();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true), text.as_str());
        prop_assert_eq!(stream(&tokenizer, &ids).concat(), text.as_str());
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        prop_assert_eq!(stream(&byte_fallback(), &bytes).concat(), text);
    }

    #[test]
    fn arbitrary_ids_stream_without_panic(ids in proptest::collection::vec(0u32..300, 0..40)) {
        for tokenizer in [bytes(), byte_fallback()] {
            let _ = stream(&tokenizer, &ids);
        }
    }
}
