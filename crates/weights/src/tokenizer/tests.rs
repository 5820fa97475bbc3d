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
    assert_eq!(text, ["", "\u{FFFD}", "\u{FFFD}a", ""]);
    let endless = stream(&tokenizer, &[continuation; 1000]);
    assert_eq!(endless.concat(), "\u{FFFD}".repeat(1000));
}

#[test]
fn a_real_replacement_character_does_not_break_the_next_one() {
    let tokenizer = bytes();
    let ids = tokenizer.encode("\u{FFFD}Σ", true).unwrap();
    assert_eq!(stream(&tokenizer, &ids), ["", "", "", "\u{FFFD}", "Σ", ""]);
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
        prop_assert_eq!(stream(&tokenizer, &ids).concat(), text);
    }

    #[test]
    fn arbitrary_ids_stream_without_panic(ids in proptest::collection::vec(0u32..300, 0..40)) {
        let tokenizer = bytes();
        let _ = stream(&tokenizer, &ids);
    }
}
