//! Reads GGUF version 3 files.

use std::path::{Path, PathBuf};

use crate::{ChatTemplateSource, MapError, ModelConfig, Tensor, Tokenizer, TokenizerError};

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct GgufModel {}

impl GgufModel {
    pub(crate) fn open(file: &Path) -> Result<Self, GgufError> {
        Err(GgufError::NotReadYet { file: file.to_owned() })
    }
    pub(crate) fn config(&self) -> Result<ModelConfig, GgufError> {
        Err(GgufError::NotReadYet { file: PathBuf::new() })
    }
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }
    pub(crate) fn describe(&self, _name: &str) -> Option<(&Path, Vec<usize>)> {
        None
    }
    pub(crate) fn tensor(&self, _name: &str) -> Option<Tensor<'_>> {
        None
    }
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        Err(TokenizerError::Load { file: PathBuf::new(), reason: "GGUF is not read yet".to_owned() })
    }
    pub(crate) fn chat_template(&self) -> Option<ChatTemplateSource> {
        None
    }
}

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// GGUF is not read yet.
    #[error("`{}` is a GGUF file, which this build does not read yet", file.display())]
    NotReadYet {
        /// The file.
        file: PathBuf,
    },
}
