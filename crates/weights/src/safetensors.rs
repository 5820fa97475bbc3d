//! Reads safetensors files, single or sharded.
//!
//! The header is parsed here rather than by the `safetensors` crate because its errors do not name the tensor that
//! lies, and because a header's offsets are all that stands between a damaged download and garbage logits.

mod error;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use serde::Deserialize;

use crate::{
    Dtype, Tensor,
    mmap::{MapError, map},
};
pub use error::SafetensorsError;

/// The format's own limit on the header.
const MAX_HEADER: usize = 100_000_000;

/// Every tensor of a directory, over all its shards.
#[derive(Debug)]
pub(crate) struct SafetensorsSet {
    shards: Vec<Shard>,
    /// Tensor name to index into `shards`.
    location: BTreeMap<String, usize>,
}

/// One mapped file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    entries: BTreeMap<String, Entry>,
}

/// Where a tensor lies in its file. `bytes` is in bounds and as long as `shape` and `dtype` say.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

impl SafetensorsSet {
    /// Opens the weights of `dir`: `model.safetensors.index.json` and its shards, or the one `*.safetensors` file.
    pub(crate) fn open(dir: &Path) -> Result<Self, SafetensorsError> {
        let index = dir.join("model.safetensors.index.json");
        if index.is_file() { Self::open_sharded(dir, &index) } else { Self::open_single(&single_file(dir)?) }
    }

    fn open_single(path: &Path) -> Result<Self, SafetensorsError> {
        let shard = Shard::open(path)?;
        let location = shard.entries.keys().map(|name| (name.clone(), 0)).collect();
        Ok(Self { shards: vec![shard], location })
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self, SafetensorsError> {
        let text =
            std::fs::read_to_string(index).map_err(|source| MapError { path: index.to_owned(), source })?;
        let Index { weight_map } = serde_json::from_str(&text)
            .map_err(|source| SafetensorsError::Index { file: index.to_owned(), source })?;
        let mut set = Self { shards: Vec::new(), location: BTreeMap::new() };
        let mut opened = BTreeMap::new();
        for (name, file) in weight_map {
            let shard = match opened.get(&file) {
                Some(shard) => *shard,
                None => {
                    if Path::new(&file).file_name().is_none_or(|plain| plain != file.as_str()) {
                        return Err(SafetensorsError::ShardName { index: index.to_owned(), file });
                    }
                    set.shards.push(Shard::open(&dir.join(&file))?);
                    opened.insert(file.clone(), set.shards.len() - 1);
                    set.shards.len() - 1
                }
            };
            if !set.shards[shard].entries.contains_key(&name) {
                return Err(SafetensorsError::NotInShard { index: index.to_owned(), file, tensor: name });
            }
            set.location.insert(name, shard);
        }
        Ok(set)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.location.keys().map(String::as_str)
    }

    fn locate(&self, name: &str) -> Option<(&Shard, &Entry)> {
        let shard = &self.shards[*self.location.get(name)?];
        Some((shard, shard.entries.get(name)?))
    }

    /// File and shape of a tensor, without touching its bytes.
    pub(crate) fn describe(&self, name: &str) -> Option<(&Path, Vec<usize>)> {
        self.locate(name).map(|(shard, entry)| (shard.path.as_path(), entry.shape.clone()))
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (shard, entry) = self.locate(name)?;
        let bytes = Cow::Borrowed(&shard.map[entry.bytes.clone()]);
        Some(Tensor::new(name, &shard.path, entry.dtype, entry.shape.clone(), bytes))
    }
}

/// The only `*.safetensors` file of `dir`.
fn single_file(dir: &Path) -> Result<PathBuf, SafetensorsError> {
    let named = dir.join("model.safetensors");
    if named.is_file() {
        return Ok(named);
    }
    let mut files = files_with_extension(dir, "safetensors")?;
    match (files.pop(), files.len()) {
        (Some(file), 0) => Ok(file),
        (None, _) => Err(SafetensorsError::NoFile { dir: dir.to_owned() }),
        (Some(_), others) => Err(SafetensorsError::SeveralFiles { dir: dir.to_owned(), count: others + 1 }),
    }
}

/// Files of `dir` that end in `.extension`.
pub(crate) fn files_with_extension(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, MapError> {
    let failed = |source| MapError { path: dir.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == extension) && path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

impl Shard {
    fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let map = map(path)?;
        let entries = parse(&map, path)?;
        Ok(Self { path: path.to_owned(), map, entries })
    }
}

/// Parses and checks the header of `data`; `file` is only for messages.
fn parse(data: &[u8], file: &Path) -> Result<BTreeMap<String, Entry>, SafetensorsError> {
    let truncated = |needed: u64| SafetensorsError::Truncated {
        file: file.to_owned(),
        needed,
        actual: data.len() as u64,
    };
    let length = data.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)).ok_or(truncated(8))?;
    if length > MAX_HEADER as u64 {
        return Err(SafetensorsError::HeaderTooLong { file: file.to_owned(), length });
    }
    let start = 8 + length as usize;
    let header = data.get(8..start).ok_or(truncated(start as u64))?;
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|source| SafetensorsError::Header { file: file.to_owned(), source })?;
    let mut entries = BTreeMap::new();
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let raw = serde_json::from_value(value).map_err(|source| SafetensorsError::Entry {
            file: file.to_owned(),
            tensor: name.clone(),
            source,
        })?;
        let entry = check(raw, &name, start, data.len(), file)?;
        entries.insert(name, entry);
    }
    Ok(entries)
}

/// Turns a header's claim into a range that is known to lie in the file.
fn check(
    raw: RawEntry,
    name: &str,
    start: usize,
    file_len: usize,
    file: &Path,
) -> Result<Entry, SafetensorsError> {
    let (file, tensor) = (file.to_owned(), name.to_owned());
    let Some(dtype) = Dtype::ALL.into_iter().find(|d| d.safetensors_name() == raw.dtype) else {
        return Err(SafetensorsError::UnknownDtype { file, tensor, dtype: raw.dtype });
    };
    let [from, to] = raw.data_offsets;
    let bytes = raw.shape.iter().try_fold(dtype.size(), |bytes, dim| bytes.checked_mul(*dim));
    if from > to || bytes != Some(to - from) {
        return Err(SafetensorsError::Size { file, tensor, dtype, shape: raw.shape, from, to });
    }
    match (start.checked_add(from), start.checked_add(to)) {
        (Some(from), Some(to)) if to <= file_len => Ok(Entry { dtype, shape: raw.shape, bytes: from..to }),
        _ => Err(SafetensorsError::OutOfBounds {
            file,
            tensor,
            needed: (start as u64).saturating_add(to as u64),
            actual: file_len as u64,
        }),
    }
}
