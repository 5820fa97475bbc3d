//! Writes a converted checkpoint, one tensor at a time.
//!
//! Everything is written under temporary names in the destination directory, and `model.safetensors` gets its own name
//! last. A conversion that is killed therefore leaves a directory that [`Checkpoint::open`](crate::Checkpoint::open)
//! refuses, never one that looks whole.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{ChatTemplateSource, Dtype, Tokenizer, TokenizerError};

const WEIGHTS: &str = "model.safetensors";

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Hugging Face name.
    pub name: String,
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The files beside the weights.
#[derive(Clone, Copy, Debug)]
pub struct Sidecars<'a> {
    /// `config.json`, see [`ModelConfig::to_json`](crate::ModelConfig::to_json).
    pub config: &'a Map<String, Value>,
    /// `tokenizer.json`; `None` for a model that came without one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Goes into `tokenizer_config.json`.
    pub chat_template: Option<&'a ChatTemplateSource>,
}

/// Writes `DIR/model.safetensors` and the files beside it. Dropping it unfinished removes what it wrote.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    weights: Staged,
    file: File,
    /// Tensors not written yet, with the offset of each in the file.
    pending: BTreeMap<String, (TensorSpec, u64)>,
    buffer: Vec<u8>,
}

impl CheckpointWriter {
    /// Creates `dir` if needed and writes the header for `tensors`.
    ///
    /// # Errors
    /// When `dir` already holds a model, a name appears twice, or the disk refuses.
    pub fn create(dir: &Path, tensors: Vec<TensorSpec>) -> Result<Self, WriteError> {
        fs::create_dir_all(dir).map_err(|source| WriteError::Io { file: dir.to_owned(), source })?;
        for taken in [WEIGHTS, "model.safetensors.index.json", "config.json"] {
            if dir.join(taken).exists() {
                return Err(WriteError::Exists { file: dir.join(taken) });
            }
        }
        let (header, pending) = header(dir, tensors)?;
        let weights = Staged::new(dir, WEIGHTS);
        let mut file = File::create(&weights.temporary).map_err(|source| weights.failed(source))?;
        file.write_all(&header).map_err(|source| weights.failed(source))?;
        Ok(Self { dir: dir.to_owned(), weights, file, pending, buffer: Vec::new() })
    }

    /// Writes one of the announced tensors, in any order, rounding `values` to its dtype.
    ///
    /// # Errors
    /// When the tensor was not announced, was written before, or has another number of elements.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<(), WriteError> {
        let (spec, offset) = self
            .pending
            .remove(name)
            .ok_or_else(|| WriteError::NotPending { dir: self.dir.clone(), tensor: name.to_owned() })?;
        if values.len() != spec.len() {
            return Err(WriteError::Length { tensor: spec.name, shape: spec.shape, actual: values.len() });
        }
        self.buffer.clear();
        spec.dtype.encode(values, &mut self.buffer);
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(&self.buffer));
        written.map_err(|source| self.weights.failed(source))
    }

    /// Writes the files beside the weights and gives everything its final name, the weights last.
    ///
    /// # Errors
    /// When an announced tensor was never written, or the disk refuses.
    pub fn finish(self, sidecars: &Sidecars<'_>) -> Result<(), WriteError> {
        if let Some(missing) = self.pending.keys().next() {
            return Err(WriteError::Unfinished {
                dir: self.dir.clone(),
                tensor: missing.clone(),
                count: self.pending.len(),
            });
        }
        self.file.sync_all().map_err(|source| self.weights.failed(source))?;
        let mut staged = vec![
            stage_json(&self.dir, "config.json", sidecars.config)?,
            stage_json(&self.dir, "generation_config.json", &generation_config(sidecars.config))?,
        ];
        if let Some(tokenizer) = sidecars.tokenizer {
            let file = Staged::new(&self.dir, "tokenizer.json");
            tokenizer.save(&file.temporary)?;
            staged.push(file);
            let config = tokenizer_config(sidecars.chat_template);
            staged.push(stage_json(&self.dir, "tokenizer_config.json", &config)?);
        }
        staged.push(self.weights);
        for file in staged {
            file.publish()?;
        }
        Ok(())
    }
}

/// The safetensors header, and where in the file each tensor goes.
type Header = (Vec<u8>, BTreeMap<String, (TensorSpec, u64)>);

fn header(dir: &Path, tensors: Vec<TensorSpec>) -> Result<Header, WriteError> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut end = 0u64;
    for spec in &tensors {
        let start = end;
        end += (spec.len() * spec.dtype.size()) as u64;
        let entry = json!({
            "dtype": spec.dtype.safetensors_name(), "shape": spec.shape, "data_offsets": [start, end],
        });
        if entries.insert(spec.name.clone(), entry).is_some() {
            return Err(WriteError::Twice { dir: dir.to_owned(), tensor: spec.name.clone() });
        }
        offsets.push(start);
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    // Eight-byte alignment of the data, as the format asks of writers.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    let data = bytes.len() as u64;
    let pending = tensors.into_iter().zip(offsets);
    Ok((bytes, pending.map(|(spec, start)| (spec.name.clone(), (spec, data + start))).collect()))
}

fn generation_config(config: &Map<String, Value>) -> Map<String, Value> {
    let fields = ["bos_token_id", "eos_token_id"];
    let known = fields.into_iter().filter_map(|field| Some((field.to_owned(), config.get(field)?.clone())));
    known.filter(|(_, value)| !value.is_null()).collect()
}

fn tokenizer_config(template: Option<&ChatTemplateSource>) -> Map<String, Value> {
    // Any other class makes transformers replace the pre-tokenizer that tokenizer.json states.
    let mut fields = Map::new();
    fields.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    if let Some(template) = template {
        fields.insert("chat_template".to_owned(), json!(template.template));
        fields.extend(template.bos_token.iter().map(|token| ("bos_token".to_owned(), json!(token))));
        fields.extend(template.eos_token.iter().map(|token| ("eos_token".to_owned(), json!(token))));
    }
    fields
}

fn stage_json(dir: &Path, name: &str, fields: &Map<String, Value>) -> Result<Staged, WriteError> {
    let staged = Staged::new(dir, name);
    let text = format!("{:#}\n", Value::Object(fields.clone()));
    fs::write(&staged.temporary, text).map_err(|source| staged.failed(source))?;
    Ok(staged)
}

/// A file under its temporary name, removed on drop unless it has been published.
#[derive(Debug)]
struct Staged {
    temporary: PathBuf,
    name: PathBuf,
}

impl Staged {
    fn new(dir: &Path, name: &str) -> Self {
        Self { temporary: dir.join(format!("{name}.partial")), name: dir.join(name) }
    }

    fn failed(&self, source: io::Error) -> WriteError {
        WriteError::Io { file: self.temporary.clone(), source }
    }

    fn publish(self) -> Result<(), WriteError> {
        fs::rename(&self.temporary, &self.name).map_err(|source| self.failed(source))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After publishing there is nothing under the temporary name; otherwise a leftover is harmless.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk refuses.
    #[error("cannot write `{}`: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The destination is taken.
    #[error("`{}` already exists: choose an empty directory", file.display())]
    Exists {
        /// The file that is there.
        file: PathBuf,
    },
    /// A name was announced twice.
    #[error("tensor `{tensor}` was announced twice for `{}`", dir.display())]
    Twice {
        /// The destination.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor nobody announced, or one already written.
    #[error("tensor `{tensor}` was not announced for `{}`, or was written before", dir.display())]
    NotPending {
        /// The destination.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The values do not fill the announced shape.
    #[error("tensor `{tensor}` has {actual} elements, expected as many as its shape {shape:?} holds")]
    Length {
        /// The tensor.
        tensor: String,
        /// The announced shape.
        shape: Vec<usize>,
        /// The number of values.
        actual: usize,
    },
    /// Tensors are missing at the end.
    #[error("{count} announced tensors were never written to `{}`, the first is `{tensor}`", dir.display())]
    Unfinished {
        /// The destination.
        dir: PathBuf,
        /// The first one.
        tensor: String,
        /// How many.
        count: usize,
    },
    /// The tokenizer was not saved.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}
