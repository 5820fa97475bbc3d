//! One step through the layers, launch by launch.

use gqla_kernels::{
    attention::Segment,
    device::{
        AttentionScratch, Buffer, Decode, DecodeCache, Destination, Device, DeviceError, GroupedRoom, Norm,
        Projected, RouterShape, Rows, Splits, Tables, Weights,
    },
    sample::{Choice, Draw, NoToken},
};
use half::bf16;

use super::{
    feed_forward::Routed,
    model::{CudaModel, FactoredQuery, Layer, Projection},
    step::Step,
};
use crate::blocks::BlockCopy;

/// Everything a step writes: the caches, and activations that no later step reads.
pub(super) struct Workspace {
    pub caches: Vec<DecodeCache>,
    pub pages: usize,
    pub tables: Tables,
    /// Tokens of a step at most.
    pub rows: usize,
    /// Tokens of a sequence at most.
    pub longest: usize,
    pub activations: Activations,
    /// Whose the residual stream is.
    pub stream: Stream,
}

/// Whose rows are in the residual stream since the last call; drafts go on from them.
pub(super) enum Stream {
    /// Those are normed first, as for the output head.
    OfDecoder,
    OfPredictionLayer,
}

pub(super) struct Activations {
    /// The residual stream, `[rows, hidden]`.
    pub residual: Buffer<f32>,
    pub normed: Buffer<bf16>,
    /// The prediction layer's input, `[rows, 2 hidden]`; none without one.
    pub joined: Buffer<bf16>,
    /// Queries before their second factor, and before the norm between.
    query_latent: Buffer<bf16>,
    query_sums: Buffer<f32>,
    pub projected: Projected,
    pub scratch: AttentionScratch,
    /// Of a model whose prompts attend in groups.
    pub grouped: Option<GroupedRoom>,
    pub attended: Buffer<bf16>,
    /// In f32: rounded before the activation, these put logits as far off as all else that a CPU in bf16 does not round.
    pub gate_up: Buffer<f32>,
    pub activated: Buffer<bf16>,
    /// Of a model with experts.
    pub routed: Option<Routed>,
    logits: Buffer<f32>,
}

/// Numbers of each activation per row; the logits' row is per token that is drawn.
struct Widths {
    hidden: usize,
    joined: usize,
    query_latent: usize,
    attended: usize,
    inner: usize,
    vocab: usize,
    router: Option<RouterShape>,
}

impl Widths {
    fn of(model: &CudaModel) -> Self {
        let (shape, parameters) = (&model.shape, &model.parameters);
        let widest = |width: &dyn Fn(&Layer) -> usize| parameters.all_layers().map(width).max().unwrap_or(0);
        Self {
            hidden: parameters.embedding.inputs(),
            joined: parameters.draft.as_ref().map_or(0, |draft| draft.projection.inputs()),
            query_latent: widest(&|layer| {
                layer.projection.query.as_ref().map_or(0, |query| query.up.inputs())
            }),
            attended: (shape.heads * shape.value) as usize,
            inner: widest(&|layer| layer.feed_forward.inner()),
            vocab: parameters.embedding.outputs(),
            router: parameters.all_layers().find_map(|layer| layer.feed_forward.router()).copied(),
        }
    }
}

impl CudaModel {
    /// Bytes of the buffers of a step of `rows` tokens that draws for `wanted`, of a context of `context` tokens; while the
    /// path changes, both have theirs.
    pub(super) fn workspace_bytes(&self, rows: usize, wanted: usize, context: usize) -> usize {
        let w = Widths::of(self);
        let widths = [w.hidden, w.joined, w.query_latent, w.attended, w.inner];
        let of_f32 = rows * (w.hidden + w.query_latent + 2 * w.inner) + wanted * w.vocab;
        let scratch = |path| AttentionScratch::bytes(&self.shape, path, Splits::ENGINE, [rows, context]);
        let tables = |decode: &Decode| Tables::bytes(decode.tiling(Splits::ENGINE), [rows, context]);
        let decodes = [Some(&self.attention.decode), self.expanded.as_ref().map(|expanded| &expanded.decode)];
        rows * widths.iter().sum::<usize>() * size_of::<bf16>()
            + of_f32 * size_of::<f32>()
            + Projected::bytes(&self.shape, rows)
            + w.router.map_or(0, |router| Routed::bytes(&router, rows, w.hidden))
            + self.paths().map(scratch).sum::<usize>()
            + decodes.into_iter().flatten().map(tables).sum::<usize>()
            + self
                .grouped
                .as_ref()
                .map_or(0, |_| GroupedRoom::bytes(&self.shape, Splits::ENGINE, [rows, context]))
    }
}

impl Workspace {
    /// Caches of `pages` pages for every layer, and buffers for steps of up to `rows` tokens, of sequences of up to `longest`,
    /// that draw for `wanted`.
    pub fn new(
        model: &CudaModel,
        pages: usize,
        [rows, longest]: [usize; 2],
        wanted: usize,
    ) -> Result<Self, DeviceError> {
        let (device, w) = (&model.device, Widths::of(model));
        let cache = |_: &Layer| -> Result<DecodeCache, DeviceError> {
            let mut cache = DecodeCache::new(device, &model.shape, model.path, pages)?;
            // Pages are expanded whole, also where no token is yet.
            let expands = model.expanded.is_some() || model.grouped.is_some();
            if let (true, DecodeCache::Absorb { latents }) = (expands, &mut cache) {
                device.clear(latents)?;
            }
            Ok(cache)
        };
        let room = |width: usize| device.unwritten("activations", rows * width);
        Ok(Self {
            caches: model.parameters.all_layers().map(cache).collect::<Result<_, _>>()?,
            pages,
            tables: Tables::room(device, model.attention.decode.tiling(Splits::ENGINE), [rows, longest])?,
            rows,
            longest,
            activations: Activations {
                residual: device.unwritten("activations", rows * w.hidden)?,
                normed: device.unwritten("activations", rows.max(wanted) * w.hidden)?,
                joined: room(w.joined)?,
                query_latent: room(w.query_latent)?,
                query_sums: device.unwritten("activations", rows * w.query_latent)?,
                projected: Projected::new(device, &model.shape, rows)?,
                scratch: AttentionScratch::new(
                    device,
                    &model.shape,
                    model.path,
                    Splits::ENGINE,
                    [rows, longest],
                )?,
                grouped: match model.grouped {
                    Some(_) => Some(GroupedRoom::new(device, &model.shape, Splits::ENGINE, [rows, longest])?),
                    None => None,
                },
                attended: room(w.attended)?,
                gate_up: device.unwritten("activations", rows * 2 * w.inner)?,
                activated: room(w.inner)?,
                routed: match w.router {
                    Some(router) => Some(Routed::new(device, router, rows, w.hidden)?),
                    None => None,
                },
                logits: device.unwritten("logits", wanted * w.vocab)?,
            },
            stream: Stream::OfDecoder,
        })
    }

    /// Copies blocks in every layer, in this order.
    pub fn copy(&mut self, device: &Device, copies: &[BlockCopy]) -> Result<(), DeviceError> {
        for copy in copies {
            for cache in &mut self.caches {
                cache.copy_page(device, self.pages, copy.from as usize, copy.to as usize)?;
            }
        }
        Ok(())
    }
}

impl CudaModel {
    /// Computes `tokens`, which `segments` describe, and keeps `[wanted.len(), vocab]` logits of the rows `wanted`.
    pub(super) fn forward(
        &self,
        workspace: &mut Workspace,
        tokens: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<(), DeviceError> {
        let Workspace { caches, pages, tables, activations: a, stream, .. } = workspace;
        tables.set(&self.device, segments, *pages)?;
        tables.give_library(self.prompt_gemm.library_rows(segments, self.decoding_rows));
        let step = self.step(tables, segments, *pages, a.grouped.as_ref())?;
        self.attention.rows.embed(&self.device, &self.parameters.embedding, tokens, &mut a.residual)?;
        *stream = Stream::OfDecoder;
        for (layer, cache) in self.parameters.layers.iter().enumerate().zip(caches) {
            self.layer(layer, cache, &step, a)?;
        }
        if let Some(reason) = self.attention.gemm.take_refusal() {
            tracing::warn!(
                reason,
                "cuBLASLt has no algorithm for some products of prompts: our kernels do those"
            );
        }
        self.head(&self.parameters.norm, wanted, a)
    }

    /// Chooses a token for each of `draws` from the logits that the last step or draft kept.
    pub(super) fn choose(
        &self,
        workspace: &mut Workspace,
        draws: &[Draw],
    ) -> Result<Vec<Result<Choice, NoToken>>, DeviceError> {
        self.sample.choose(&self.device, &mut workspace.activations.logits, self.vocab_size(), draws)
    }

    /// The first `rows` rows of logits that the last step or draft kept.
    pub(super) fn kept_logits(&self, workspace: &Workspace, rows: usize) -> Result<Vec<f32>, DeviceError> {
        self.device.download(&workspace.activations.logits, rows * self.vocab_size())
    }

    /// `y = x Wᵀ` of whole rows.
    pub(super) fn multiply(
        &self,
        weights: &Weights,
        rows: usize,
        x: &Buffer<bf16>,
        y: Destination<'_>,
    ) -> Result<(), DeviceError> {
        let (from, to) = (Rows::even(0, weights.inputs())?, Rows::even(0, weights.outputs())?);
        self.attention.gemm.launch(&self.device, weights, rows, (x, from), (y, to))
    }

    /// The same for the rows of a step, those of prompts by whoever multiplies these.
    pub(super) fn multiply_step(
        &self,
        weights: &Weights,
        tables: &Tables,
        x: &Buffer<bf16>,
        y: Destination<'_>,
    ) -> Result<(), DeviceError> {
        let (from, to) = (Rows::even(0, weights.inputs())?, Rows::even(0, weights.outputs())?);
        self.attention.gemm.launch_step(&self.device, weights, tables, (x, from), (y, to))
    }

    /// One layer's rows through attention and feed-forward block.
    pub(super) fn layer(
        &self,
        (index, layer): (usize, &Layer),
        cache: &mut DecodeCache,
        step: &Step<'_>,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        self.attend((index, layer), cache, step, a)?;
        let (tables, rows) = (step.tables, Ok(step.tables.rows()));
        self.attention.rows.norm(&self.device, &layer.post_norm, &a.residual, rows, &mut a.normed)?;
        self.feed_forward(&layer.feed_forward, tables, a)
    }

    fn attend(
        &self,
        (index, layer): (usize, &Layer),
        cache: &mut DecodeCache,
        step: &Step<'_>,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        let tables = step.tables;
        let (device, kernels, rows) = (&self.device, &self.attention.rows, tables.rows());
        kernels.norm(device, &layer.input_norm, &a.residual, Ok(rows), &mut a.normed)?;
        self.project(&layer.projection, tables, a)?;
        let latents = a.projected.latents(&self.shape);
        if let Some(norm) = &layer.latent_norm {
            kernels.norm_in_place(device, norm, a.projected.sums(), latents, rows)?;
        }
        self.attend_to((index, layer), cache, step, a)?;
        self.multiply_step(&layer.output, tables, &a.attended, Destination::Add(&mut a.residual))
    }

    /// Queries, latent and rope key of the normed rows.
    fn project(
        &self,
        Projection { stacked, query }: &Projection,
        tables: &Tables,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        let width = Projected::width(&self.shape);
        let mut place = 0;
        if let Some(FactoredQuery { down, norm, up }) = query {
            let to = match norm {
                Some(_) => Destination::F32(&mut a.query_sums),
                None => Destination::Bf16(&mut a.query_latent),
            };
            self.multiply_step(down, tables, &a.normed, to)?;
            if let Some(norm) = norm {
                let (kernels, rows) = (&self.attention.rows, Ok(tables.rows()));
                kernels.norm(&self.device, norm, &a.query_sums, rows, &mut a.query_latent)?;
            }
            let queries = (Destination::F32(a.projected.sums()), Rows::even(0, width)?);
            let latents = (&a.query_latent, Rows::even(0, up.inputs())?);
            self.attention.gemm.launch_step(&self.device, up, tables, latents, queries)?;
            place = a.projected.latents(&self.shape).offset;
        }
        let to = (Destination::F32(a.projected.sums()), Rows::even(place, width)?);
        let from = (&a.normed, Rows::even(0, stacked.inputs())?);
        self.attention.gemm.launch_step(&self.device, stacked, tables, from, to)
    }

    /// Logits of the rows `wanted` of the residual stream, after a norm.
    pub(super) fn head(&self, norm: &Norm, wanted: &[usize], a: &mut Activations) -> Result<(), DeviceError> {
        if wanted.is_empty() {
            return Ok(());
        }
        self.attention.rows.norm(&self.device, norm, &a.residual, Err(wanted), &mut a.normed)?;
        let head = self.parameters.head.as_ref().unwrap_or(&self.parameters.embedding);
        self.multiply(head, wanted.len(), &a.normed, Destination::F32(&mut a.logits))
    }
}
