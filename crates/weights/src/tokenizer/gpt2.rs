//! Byte-level BPE as GPT-2 defines it, built from a list of tokens and merges.

use std::path::Path;

use tokenizers::{
    AddedToken,
    models::bpe::BPE,
    pre_tokenizers::{PreTokenizerWrapper, byte_level::ByteLevel, digits::Digits, sequence::Sequence},
};

use super::{Tokenizer, TokenizerError};

/// What a GGUF file says of a byte-level BPE tokenizer.
pub(crate) struct Gpt2Vocabulary {
    /// Tokens in id order, in GPT-2's printable byte alphabet.
    pub(crate) tokens: Vec<String>,
    /// Merges in rank order, each two tokens with a space between.
    pub(crate) merges: Vec<String>,
    /// Ids of control tokens.
    pub(crate) control: Vec<u32>,
}

impl Gpt2Vocabulary {
    /// Builds the tokenizer of the `smollm` family: every digit stands alone, then GPT-2's own splitting; no
    /// normaliser, no leading space, nothing added around the text.
    pub(crate) fn smollm(self, file: &Path) -> Result<Tokenizer, TokenizerError> {
        let failed = |reason: String| TokenizerError::Load { file: file.to_owned(), reason };
        let special: Vec<AddedToken> = self
            .control
            .iter()
            .filter_map(|id| self.tokens.get(*id as usize))
            .map(|token| AddedToken::from(token.clone(), true).normalized(false))
            .collect();
        let merges = self.merges.iter().map(|merge| split_merge(merge)).collect::<Result<_, _>>();
        let merges = merges.map_err(failed)?;
        let vocabulary = self.tokens.into_iter().zip(0..).collect::<std::collections::HashMap<_, u32>>();
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
            .build()
            .map_err(|source| failed(source.to_string()))?;
        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        ])));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        tokenizer.add_special_tokens(&special);
        Ok(Tokenizer::new(tokenizer))
    }
}

fn split_merge(merge: &str) -> Result<(String, String), String> {
    let (left, right) =
        merge.split_once(' ').ok_or_else(|| format!("the merge `{merge}` is not two tokens"))?;
    Ok((left.to_owned(), right.to_owned()))
}
