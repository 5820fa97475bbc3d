//! A model on a device: weights and kernels, and nothing that a sequence leaves behind.

use gqla_kernels::{
    attention::{BLOCK_TOKENS, Segment},
    device::{
        Attention, Decode, DecodePlan, DecodeShape, Device, DeviceError, ExpertKernels, Gemm, Images, Loaded,
        Norm, Program, PromptAttention, PromptGemm, RowKernels, SampleKernel, Turns, UpProjection, Weights,
        plan_decode,
    },
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;
use half::bf16;

use super::{
    CudaEngineConfig, CudaLoadError, draft::DraftLayer, expand::Expanded, feed_forward::FeedForward,
    forward::Workspace, load,
};
use crate::DraftSource;

/// Tokens that [`CudaModel::logits`] computes at a time.
const CHUNK: usize = 128;

/// One decoder layer.
pub(super) struct Layer {
    pub input_norm: Norm,
    pub projection: Projection,
    pub latent_norm: Option<Norm>,
    pub up: UpProjection,
    pub output: Weights,
    pub post_norm: Norm,
    pub feed_forward: FeedForward,
}

/// From a layer's normed rows to what its attention takes.
pub(super) struct Projection {
    /// Queries, unless they are factored, then latent and rope key.
    pub stacked: Weights,
    pub query: Option<FactoredQuery>,
}

/// `up norm(down x)`
pub(super) struct FactoredQuery {
    pub down: Weights,
    pub norm: Option<Norm>,
    pub up: Weights,
}

/// The weights of a model.
pub(super) struct Parameters {
    pub embedding: Weights,
    /// `None` when the embedding is the head.
    pub head: Option<Weights>,
    pub layers: Vec<Layer>,
    /// The prediction layer, if drafts come from one.
    pub draft: Option<DraftLayer>,
    pub norm: Norm,
    pub turns: Turns,
    /// Bytes of the checkpoint's tensors, as the files store them.
    pub stored_bytes: u64,
}

impl Parameters {
    /// The decoder's layers, then the prediction layer: the order of the caches.
    pub fn all_layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().chain(self.draft.iter().map(|draft| &draft.layer))
    }

    /// As [`Self::all_layers`], to be changed.
    pub fn all_layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.layers.iter_mut().chain(self.draft.iter_mut().map(|draft| &mut draft.layer))
    }
}

/// A model on a GPU, on one decode path.
pub struct CudaModel {
    pub(super) device: Device,
    pub(super) attention: Attention,
    pub(super) sample: SampleKernel,
    /// Of a model with experts.
    pub(super) experts: Option<ExpertKernels>,
    pub(super) shape: DecodeShape,
    pub(super) path: DecodePath,
    pub(super) parameters: Parameters,
    /// What takes its place when the path changes.
    pub(super) expanded: Option<Expanded>,
    /// What prompts attend with that are stored as latents, where that is not what decodes.
    pub(super) grouped: Option<Expanded>,
    pub(super) prompt_gemm: PromptGemm,
    /// Rows of a token with all its drafts, which are no prompt.
    pub(super) decoding_rows: usize,
    context: usize,
}

impl CudaModel {
    /// Loads a checkpoint onto device `ordinal`; `path` defaults to GQA. The kernels' images come from `images` or NVRTC.
    ///
    /// # Errors
    /// When the model is not one this backend runs, or the device cannot or computes something else than the references.
    pub fn load(
        checkpoint: &Checkpoint,
        path: Option<DecodePath>,
        ordinal: usize,
        images: &Images,
    ) -> Result<Self, CudaLoadError> {
        let images = images.clone();
        Self::prepare(checkpoint, &CudaEngineConfig { path, device: ordinal, images, ..Default::default() })
    }

    /// The same for an engine, which may draft and change its path. A prediction layer is loaded if drafts come from one.
    ///
    /// # Errors
    /// As [`Self::load`], and when the checkpoint has no such layer.
    pub fn prepare(checkpoint: &Checkpoint, config: &CudaEngineConfig) -> Result<Self, CudaLoadError> {
        let CudaEngineConfig { images, speculation, expandable, prompt_gemm, prompt_attention, .. } = config;
        let attention = load::attention(checkpoint)?;
        let s_q = 1 + speculation.map_or(0, |speculation| speculation.tokens() as u32);
        let shape = load::decode_shape(&attention, checkpoint.config());
        let path = config.path.unwrap_or(DecodePath::Gqa);
        if *expandable && path != DecodePath::MqaAbsorb {
            return Err(CudaLoadError::NotExpandable);
        }
        let device = Device::open(config.device)?;
        // Rows of a token and all its drafts decide, whether a step has them or not: kernels must not change with what
        // shares a step.
        let decode = |path| decode(&device, images, shape, plan_decode(&shape, path, s_q, device.limits())?);
        let own = decode(path)?;
        let gemm = gemm(&device, images, *prompt_gemm)?;
        let rows = RowKernels::new(&kernels(&device, images, &Program::rows())?)?;
        let sample = SampleKernel::new(&kernels(&device, images, &Program::sample())?)?;
        let experts = match checkpoint.config().experts {
            Some(_) => Some(ExpertKernels::new(&kernels(&device, images, &Program::experts())?)?),
            None => None,
        };
        gemm.self_test(&device)?;
        rows.self_test(&device)?;
        sample.self_test(&device)?;
        experts.as_ref().map_or(Ok(()), |experts| experts.self_test(&device))?;
        tracing::info!("products, what is done row by row, and draws are those of the references");
        let source = speculation.map(|speculation| speculation.source());
        let drafting = source == Some(DraftSource::PredictionLayer);
        let parameters = load::parameters(checkpoint, &device, &attention, path, drafting)?;
        let in_groups = || -> Result<Expanded, CudaLoadError> {
            let up = load::expanded(checkpoint, &device, &attention, parameters.all_layers().count())?;
            Ok(Expanded { decode: decode(DecodePath::Gqa)?, up })
        };
        let expanded = if *expandable { Some(in_groups()?) } else { None };
        let grouped = path == DecodePath::MqaAbsorb && *prompt_attention == PromptAttention::Groups;
        let grouped = if grouped { Some(in_groups()?) } else { None };
        device.release_staging();
        tracing::info!(device = device.name(), path = path.flag(), "the model is on the device");
        let attention = Attention { gemm, rows, decode: own };
        let context = checkpoint.config().max_position_embeddings;
        Ok(Self {
            device,
            attention,
            sample,
            experts,
            shape,
            path,
            parameters,
            expanded,
            grouped,
            prompt_gemm: *prompt_gemm,
            decoding_rows: s_q as usize,
            context,
        })
    }

    /// Whether a model of this checkpoint can be prepared to draft with its prediction layer.
    ///
    /// # Errors
    /// When the checkpoint has no such layer, or one that this backend does not run.
    pub fn can_draft(checkpoint: &Checkpoint) -> Result<(), CudaLoadError> {
        load::can_draft(checkpoint)
    }

    /// The decode path.
    pub fn path(&self) -> DecodePath {
        self.path
    }

    /// Rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.parameters.embedding.outputs()
    }

    /// Longest sequence, in tokens.
    pub fn context_length(&self) -> usize {
        self.context
    }

    /// Cache elements one token takes in one layer, padding included.
    pub fn kv_elements_per_token_layer(&self) -> usize {
        self.shape.kv_elements(self.path) as usize
    }

    /// Bytes of a page in the caches of all layers, along whichever path it takes; one layer's is there along both while
    /// the path changes.
    pub(super) fn page_bytes(&self) -> usize {
        let widths = || self.paths().map(|path| self.shape.kv_elements(path) as usize);
        let (all, most) = (widths().sum::<usize>(), widths().max().unwrap_or(0));
        (self.cached_layers().saturating_sub(1) * most + all) * BLOCK_TOKENS * size_of::<bf16>()
    }

    /// Its path, and the one it can change to.
    pub(super) fn paths(&self) -> impl Iterator<Item = DecodePath> {
        std::iter::once(self.path).chain(self.expanded.as_ref().map(|_| DecodePath::Gqa))
    }

    /// Layers that have a cache: the decoder's, and the prediction layer if drafts come from one.
    pub fn cached_layers(&self) -> usize {
        self.parameters.all_layers().count()
    }

    /// Logits of every position of one sequence, `[tokens, vocab]`, computed in chunks as the engine does.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, the sequence is longer than the context, or the device fails.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, CudaLoadError> {
        self.in_chunks(tokens, |workspace, chunk, segment| {
            let wanted: Vec<usize> = (0..chunk.len()).collect();
            self.forward(workspace, chunk, &[segment], &wanted)
        })
    }

    /// The logits of all rows that `compute` keeps of each chunk of one sequence.
    pub(super) fn in_chunks(
        &self,
        tokens: &[u32],
        mut compute: impl FnMut(&mut Workspace, &[u32], Segment<'_>) -> Result<(), DeviceError>,
    ) -> Result<Vec<f32>, CudaLoadError> {
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_TOKENS) as u32).collect();
        let mut workspace = Workspace::new(self, blocks.len(), [CHUNK, tokens.len()], CHUNK)?;
        let mut logits = Vec::with_capacity(tokens.len() * self.vocab_size());
        for (index, chunk) in tokens.chunks(CHUNK).enumerate() {
            let segment = Segment { first_row: 0, rows: chunk.len(), start: index * CHUNK, blocks: &blocks };
            compute(&mut workspace, chunk, segment)?;
            logits.extend(self.kept_logits(&workspace, chunk.len())?);
        }
        Ok(logits)
    }
}

fn decode(
    device: &Device,
    images: &Images,
    shape: DecodeShape,
    plan: DecodePlan,
) -> Result<Decode, CudaLoadError> {
    let loaded = kernels(device, images, &Program::decode(&shape, plan.path))?;
    let decode = Decode::new(&loaded, shape, plan)?;
    let error = decode.self_test(device)?;
    tracing::info!(kernel = plan.decode, error, "the device attends as the float64 reference does");
    Ok(decode)
}

fn gemm(device: &Device, images: &Images, prompts: PromptGemm) -> Result<Gemm, CudaLoadError> {
    let own = Gemm::new(&kernels(device, images, &Program::gemm())?)?;
    if prompts == PromptGemm::Own {
        return Ok(own);
    }
    let gemm = own.with_cublaslt(device)?;
    tracing::info!(
        version = gemm.library_version(),
        "cuBLASLt multiplies prompts: their bits depend on the batch"
    );
    Ok(gemm)
}

fn kernels(device: &Device, images: &Images, program: &Program) -> Result<Loaded, CudaLoadError> {
    let loaded = images.load(device, program)?;
    let refusals = loaded.refusals.join("; ");
    tracing::info!(kernels = program.stem(), source = %loaded.source, refusals, "kernels loaded");
    Ok(loaded)
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
