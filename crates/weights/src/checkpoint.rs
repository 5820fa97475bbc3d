//! A model on disk, whatever its container.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use gqla_model::{DecodePath, ModelShape, ShapeError};

use crate::{
    ChatTemplateSource, ConfigError, GgufError, LayoutError, MapError, ModelConfig, SafetensorsError, Tensor,
    TensorError, Tokenizer, TokenizerError,
    gguf::GgufModel,
    layout,
    safetensors::{SafetensorsSet, files_with_extension},
    tokenizer::files,
};

/// An opened checkpoint: every tensor its configuration implies is present and has the implied shape.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    config: ModelConfig,
    weights: Weights,
}

#[derive(Debug)]
enum Weights {
    Safetensors(SafetensorsSet),
    Gguf(Box<GgufModel>),
}

impl Checkpoint {
    /// Opens a directory with `config.json` and safetensors, a `.gguf` file, or a directory with exactly one.
    ///
    /// # Errors
    /// A sentence naming the file, and the tensor or field with its expected and actual value.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let checkpoint = match Container::find(path)? {
            Container::Directory(dir) => Self::open_directory(&dir)?,
            Container::Gguf(file) => Self::open_gguf(&file)?,
        };
        layout::check(&checkpoint.config, &checkpoint.root, |name| checkpoint.describe(name))?;
        Ok(checkpoint)
    }

    fn open_directory(dir: &Path) -> Result<Self, OpenError> {
        let file = dir.join("config.json");
        let text = std::fs::read_to_string(&file)
            .map_err(|source| ConfigError::Read { file: file.clone(), source })?;
        let mut config = ModelConfig::parse(&text, &file)?;
        files::add_generation_eos(dir, &mut config)?;
        let weights = Weights::Safetensors(SafetensorsSet::open(dir)?);
        Ok(Self { root: dir.to_owned(), config, weights })
    }

    fn open_gguf(file: &Path) -> Result<Self, OpenError> {
        let model = GgufModel::open(file)?;
        let config = model.config()?;
        Ok(Self { root: file.to_owned(), config, weights: Weights::Gguf(Box::new(model)) })
    }

    /// The directory or file this was opened from.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every tensor by its Hugging Face name, in name order.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.weights {
            Weights::Safetensors(set) => Box::new(set.names()),
            Weights::Gguf(model) => Box::new(model.names()),
        }
    }

    /// Whether there is a tensor of that Hugging Face name.
    pub fn contains(&self, name: &str) -> bool {
        self.describe(name).is_some()
    }

    fn describe(&self, name: &str) -> Option<(&Path, Vec<usize>)> {
        match &self.weights {
            Weights::Safetensors(set) => set.describe(name),
            Weights::Gguf(model) => model.describe(name),
        }
    }

    /// A tensor by its Hugging Face name. Safetensors are borrowed from the map; quantised GGUF tensors are
    /// dequantised to f32, and `q_proj` and `k_proj` put back into Hugging Face's row order, on every call.
    ///
    /// # Errors
    /// [`TensorError::Missing`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, TensorError> {
        let tensor = match &self.weights {
            Weights::Safetensors(set) => set.tensor(name),
            Weights::Gguf(model) => model.tensor(name),
        };
        tensor.ok_or_else(|| TensorError::Missing { file: self.root.clone(), name: name.to_owned() })
    }

    /// The tokenizer, from `tokenizer.json` or GGUF metadata.
    ///
    /// # Errors
    /// When there is none or it is malformed.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        let vocab_size = self.config.vocab_size;
        let tokenizer = match &self.weights {
            Weights::Safetensors(_) => Tokenizer::from_file(&self.root.join("tokenizer.json"))?,
            Weights::Gguf(model) => model.tokenizer()?,
        };
        tokenizer.check_vocabulary(&self.root, vocab_size)?;
        Ok(tokenizer)
    }

    /// The chat template and the tokens it names, or `None` for a model without one.
    ///
    /// # Errors
    /// When `tokenizer_config.json` is malformed.
    pub fn chat_template(&self) -> Result<Option<ChatTemplateSource>, TokenizerError> {
        match &self.weights {
            Weights::Safetensors(_) => files::chat_template(&self.root),
            Weights::Gguf(model) => Ok(model.chat_template()),
        }
    }

    /// Elements of all tensors in the files but those of prediction layers, which not every pod loads.
    pub fn parameters(&self) -> u64 {
        let decoder = self.config.num_hidden_layers;
        self.names()
            .filter(|name| layer_of(name).is_none_or(|layer| layer < decoder))
            .filter_map(|name| self.describe(name))
            .map(|(_, shape)| shape.iter().map(|dim| *dim as u64).product::<u64>())
            .sum()
    }

    /// The shape the planner needs, with parameters counted from the files.
    ///
    /// # Errors
    /// [`ShapeOfCheckpointError::Plain`] for a model that has not been converted.
    pub fn model_shape(&self) -> Result<ModelShape, ShapeOfCheckpointError> {
        let plain = || ShapeOfCheckpointError::Plain { checkpoint: self.root.clone() };
        let mut shape = self.config.model_shape(Some(self.parameters())).ok_or_else(plain)?;
        shape.weights.nextn_key_value_heads = self.nextn_groups(&shape);
        let checkpoint = || self.root.clone();
        shape
            .validate()
            .map_err(|source| ShapeOfCheckpointError::Impossible { checkpoint: checkpoint(), source })?;
        Ok(shape)
    }
}

impl Checkpoint {
    /// Groups of layer `layer`, which may be a prediction layer: a conversion that leaves that layer alone leaves it one
    /// group per head. `None` for plain attention.
    pub fn groups_of_layer(&self, layer: usize) -> Option<usize> {
        if layer < self.config.num_hidden_layers {
            return self.config.groups_of_layer(layer);
        }
        let (_, dims) = self.describe(&layout::kv_b_proj(layer))?;
        self.config.groups_of_rows(*dims.first()?)
    }

    /// Groups of the first prediction layer where they are not the decoder's.
    fn nextn_groups(&self, shape: &ModelShape) -> Option<u32> {
        if shape.num_nextn_predict_layers == 0 {
            return None;
        }
        let groups = u32::try_from(self.groups_of_layer(self.config.num_hidden_layers)?).ok()?;
        (groups != shape.attention.num_key_value_heads).then_some(groups)
    }

    /// The weights of expert `expert` of layer `layer`, whether every expert has tensors of its own or all share one.
    ///
    /// # Errors
    /// [`TensorError::Missing`] where there is no such expert.
    pub fn expert(&self, layer: usize, expert: usize) -> Result<Expert<'_>, TensorError> {
        let own =
            |name: &str| self.tensor(&format!("model.layers.{layer}.mlp.experts.{expert}.{name}.weight"));
        if !self.contains(&layout::packed_experts(layer)) {
            return Ok(Expert { gate_up: vec![own("gate_proj")?, own("up_proj")?], down: own("down_proj")? });
        }
        let part = |name: &str| self.tensor(name)?.part(expert);
        Ok(Expert {
            gate_up: vec![part(&layout::packed_experts(layer))?],
            down: part(&format!("model.layers.{layer}.mlp.experts.down_proj"))?,
        })
    }
}

/// The matrices of one expert.
#[derive(Clone, Debug)]
pub struct Expert<'a> {
    /// Gate rows, then up rows, in one tensor or two: `[2 × moe_intermediate_size, hidden_size]` together.
    pub gate_up: Vec<Tensor<'a>>,
    /// `[hidden_size, moe_intermediate_size]`
    pub down: Tensor<'a>,
}

/// The layer a tensor belongs to by its name, or `None` for the embedding, the last norm and the output head.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

enum Container {
    Directory(PathBuf),
    Gguf(PathBuf),
}

impl Container {
    fn find(path: &Path) -> Result<Self, OpenError> {
        let metadata =
            std::fs::metadata(path).map_err(|source| MapError { path: path.to_owned(), source })?;
        if metadata.is_file() {
            return Ok(Self::Gguf(path.to_owned()));
        }
        if path.join("config.json").is_file() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut files = files_with_extension(path, "gguf")?;
        match (files.pop(), files.len()) {
            (Some(file), 0) => Ok(Self::Gguf(file)),
            (None, _) => Err(OpenError::NoModel { dir: path.to_owned() }),
            (Some(_), others) => Err(OpenError::SeveralGguf { dir: path.to_owned(), count: others + 1 }),
        }
    }
}

/// Why a checkpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path cannot be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The safetensors are refused.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The GGUF file is refused.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Tensors and configuration contradict each other.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Nothing that looks like a model.
    #[error("`{}` contains neither config.json nor a .gguf file, expected a model", dir.display())]
    NoModel {
        /// The directory.
        dir: PathBuf,
    },
    /// More than one GGUF file.
    #[error("`{}` contains {count} .gguf files, expected one: name the file instead", dir.display())]
    SeveralGguf {
        /// The directory.
        dir: PathBuf,
        /// How many.
        count: usize,
    },
}

/// Why a checkpoint has no GQLA shape.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeOfCheckpointError {
    /// Not converted yet.
    #[error(
        "`{}` has plain grouped-query attention, which has no `{}` and `{}` decode paths to choose from: convert it \
         with `gqla convert` first",
        checkpoint.display(), DecodePath::ALL[0], DecodePath::ALL[1]
    )]
    Plain {
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// The dimensions contradict each other.
    #[error("`{}` has an impossible shape: {source}", checkpoint.display())]
    Impossible {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// The arithmetic.
        source: ShapeError,
    },
}
