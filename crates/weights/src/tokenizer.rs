//! Text to token ids and back.
//!
//! Wraps the `tokenizers` crate for what a server needs beyond it: text from users in which `<|im_end|>` is just
//! text, and answers that arrive one token at a time without ever showing half a character.

mod detokenizer;
pub(crate) mod files;
mod gpt2;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub use detokenizer::Detokenizer;
pub use files::ChatTemplateSource;
pub(crate) use gpt2::Gpt2Vocabulary;

/// A model's tokenizer. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// Matches special tokens in its input.
    special: Arc<tokenizers::Tokenizer>,
    /// Takes special tokens in its input for ordinary text.
    plain: Arc<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Load`] when it is absent or malformed.
    pub fn from_file(file: &Path) -> Result<Self, TokenizerError> {
        let tokenizer = tokenizers::Tokenizer::from_file(file)
            .map_err(|source| TokenizerError::Load { file: file.to_owned(), reason: source.to_string() })?;
        Ok(Self::new(tokenizer))
    }

    fn new(tokenizer: tokenizers::Tokenizer) -> Self {
        let mut plain = tokenizer.clone();
        plain.set_encode_special_tokens(true);
        Self { special: Arc::new(tokenizer), plain: Arc::new(plain) }
    }

    /// Token ids of `text`. With `allow_special`, text that spells a special token becomes it, as rendered chat
    /// templates need; without, it is text, as anything a user typed should be. Nothing is added around the text.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, allow_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let tokenizer = if allow_special { &self.special } else { &self.plain };
        let encoding = tokenizer
            .encode_fast(text, false)
            .map_err(|source| TokenizerError::Encode { reason: source.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`; bytes that are not UTF-8 become U+FFFD, unknown ids nothing. With `skip_special`, special
    /// tokens are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        // Decoding fails only in decoders with fallible patterns, which no supported family has.
        self.special.decode(ids, skip_special).unwrap_or_default()
    }

    /// Decodes one sequence token by token.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), skip_special)
    }

    /// The id of a token by its exact content, e.g. `<|im_end|>`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.special.token_to_id(token)
    }

    /// Ids of all special tokens, ascending.
    pub fn special_ids(&self) -> Vec<u32> {
        let added = self.special.get_added_tokens_decoder();
        let mut ids: Vec<u32> = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// Tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.special.get_vocab_size(true)
    }

    /// Writes a `tokenizer.json` that [`Self::from_file`] reads back.
    ///
    /// # Errors
    /// [`TokenizerError::Save`].
    pub fn save(&self, file: &Path) -> Result<(), TokenizerError> {
        self.special
            .save(file, false)
            .map_err(|source| TokenizerError::Save { file: file.to_owned(), reason: source.to_string() })
    }

    /// The content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Json`].
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        self.special.to_string(false).map_err(|source| TokenizerError::Json { reason: source.to_string() })
    }

    /// Refuses a tokenizer that can produce ids the embedding has no row for.
    pub(crate) fn check_vocabulary(&self, checkpoint: &Path, rows: usize) -> Result<(), TokenizerError> {
        let largest = self.special.get_vocab(true).into_values().max().unwrap_or(0);
        if (largest as usize) < rows {
            return Ok(());
        }
        Err(TokenizerError::Vocabulary { checkpoint: checkpoint.to_owned(), largest, rows })
    }
}

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// Absent or malformed.
    #[error("cannot read the tokenizer `{}`: {reason}", file.display())]
    Load {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Not written.
    #[error("cannot write the tokenizer to `{}`: {reason}", file.display())]
    Save {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Not to be written as JSON.
    #[error("the tokenizer cannot be written as JSON: {reason}")]
    Json {
        /// What the library said.
        reason: String,
    },
    /// A text has no tokens.
    #[error("the text cannot be tokenized: {reason}")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// The tokenizer belongs to a larger model.
    #[error(
        "the tokenizer of `{}` has a token with id {largest}, but the embedding only {rows} rows (vocab_size): the \
         files belong to different models",
        checkpoint.display()
    )]
    Vocabulary {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The largest id.
        largest: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A file beside the tokenizer is malformed.
    #[error("`{}` is malformed: {reason}", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
}
