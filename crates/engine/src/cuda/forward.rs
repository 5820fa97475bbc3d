//! One step through the layers, launch by launch.

use gqla_kernels::{
    attention::Segment,
    device::{
        Append, Buffer, DecodeCache, DecodeInputs, Destination, Device, DeviceError, Heads, RowMap, Rows,
        Tables, Weights,
    },
    ops::RopeStyle,
};
use half::bf16;

use super::model::{CudaModel, Layer, Up};
use crate::blocks::BlockCopy;

/// Everything a step writes: the caches, and activations that no later step reads.
pub(super) struct Workspace {
    caches: Vec<DecodeCache>,
    pages: usize,
    activations: Activations,
}

struct Activations {
    /// The residual stream, `[rows, hidden]`.
    residual: Buffer<f32>,
    normed: Buffer<bf16>,
    projected: Buffer<bf16>,
    /// GQA: keys and values `[rows, G (d_nope + d_v)]`; absorb: queries `[rows, H, r + d_rope]`.
    expanded: Buffer<bf16>,
    /// Absorb: weighted latents, `[rows, H, r]`.
    means: Buffer<bf16>,
    attended: Buffer<bf16>,
    gate_up: Buffer<bf16>,
    activated: Buffer<bf16>,
    logits: Buffer<f32>,
}

/// Numbers of each activation per row; the logits' row is per token that is drawn.
struct Widths {
    hidden: usize,
    projected: usize,
    expanded: usize,
    means: usize,
    attended: usize,
    inner: usize,
    vocab: usize,
}

impl Widths {
    fn of(model: &CudaModel) -> Self {
        let (shape, parameters) = (&model.shape, &model.parameters);
        let widest = |width: &dyn Fn(&Layer) -> usize| parameters.layers.iter().map(width).max().unwrap_or(0);
        let heads = shape.heads as usize;
        Self {
            hidden: parameters.embedding.inputs(),
            projected: widest(&|layer| layer.projection.outputs()),
            expanded: widest(&|layer| match &layer.up {
                Up::Gqa(up) => up.outputs(),
                Up::Absorb { .. } => heads * (shape.rank + shape.rope) as usize,
            }),
            means: widest(&|layer| match &layer.up {
                Up::Gqa(_) => 0,
                Up::Absorb { .. } => heads * shape.rank as usize,
            }),
            attended: heads * shape.value as usize,
            inner: widest(&|layer| layer.down.inputs()),
            vocab: parameters.embedding.outputs(),
        }
    }
}

impl CudaModel {
    /// Bytes of the buffers of a step of `rows` tokens that draws for `wanted`, of a context of `context` tokens.
    pub(super) fn workspace_bytes(&self, rows: usize, wanted: usize, context: usize) -> usize {
        let w = Widths::of(self);
        let of_bf16 = w.hidden + w.projected + w.expanded + w.means + w.attended + 3 * w.inner;
        let of_f32 = rows * w.hidden + wanted * w.vocab;
        rows * of_bf16 * size_of::<bf16>()
            + of_f32 * size_of::<f32>()
            + self.decode.workspace_bytes(rows, context)
    }
}

impl Workspace {
    /// Caches of `pages` pages for every layer, and buffers for steps of up to `rows` tokens that draw for `wanted`.
    pub fn new(model: &CudaModel, pages: usize, rows: usize, wanted: usize) -> Result<Self, DeviceError> {
        let (device, w) = (&model.device, Widths::of(model));
        let cache = |_: &Layer| DecodeCache::new(device, &model.shape, model.path, pages);
        let room = |width: usize| device.unwritten("activations", rows * width);
        Ok(Self {
            caches: model.parameters.layers.iter().map(cache).collect::<Result<_, _>>()?,
            pages,
            activations: Activations {
                residual: device.unwritten("activations", rows * w.hidden)?,
                normed: device.unwritten("activations", rows.max(wanted) * w.hidden)?,
                projected: room(w.projected)?,
                expanded: room(w.expanded)?,
                means: room(w.means)?,
                attended: room(w.attended)?,
                gate_up: room(2 * w.inner)?,
                activated: room(w.inner)?,
                logits: device.unwritten("logits", wanted * w.vocab)?,
            },
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
    /// Computes `tokens`, which `segments` describe, and answers `[wanted.len(), vocab]` logits of the rows `wanted`.
    pub(super) fn forward(
        &self,
        workspace: &mut Workspace,
        tokens: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<Vec<f32>, DeviceError> {
        let Workspace { caches, pages, activations: a } = workspace;
        let tables = Tables::new(&self.device, segments, *pages)?;
        self.rows.embed(&self.device, &self.parameters.embedding, tokens, &mut a.residual)?;
        for (layer, cache) in self.parameters.layers.iter().zip(caches) {
            self.attend(layer, cache, &tables, a)?;
            self.feed_forward(layer, tables.rows(), a)?;
        }
        self.head(wanted, a)
    }

    /// `y = x Wᵀ` of whole rows.
    fn multiply(
        &self,
        weights: &Weights,
        rows: usize,
        x: &Buffer<bf16>,
        y: Destination<'_>,
    ) -> Result<(), DeviceError> {
        let (from, to) = (Rows::even(0, weights.inputs())?, Rows::even(0, weights.outputs())?);
        self.gemm.launch(&self.device, weights, rows, (x, from), (y, to))
    }

    fn attend(
        &self,
        layer: &Layer,
        cache: &mut DecodeCache,
        tables: &Tables,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        let (device, rows) = (&self.device, tables.rows());
        self.rows.norm(device, &layer.input_norm, &a.residual, Ok(rows), &mut a.normed)?;
        self.multiply(&layer.projection, rows, &a.normed, Destination::Bf16(&mut a.projected))?;
        let (width, latent) = (layer.projection.outputs(), self.latent_offset());
        if let Some(norm) = &layer.latent_norm {
            let at = Heads { offset: latent, stride: width, head_stride: 0 };
            self.rows.norm_in_place(device, norm, &mut a.projected, at, rows)?;
        }
        match &layer.up {
            Up::Gqa(up) => self.attend_groups(up, cache, tables, width, a)?,
            Up::Absorb { into_latent, out_of_latent } => {
                self.attend_latents(into_latent, out_of_latent, cache, tables, width, a)?;
            }
        }
        self.multiply(&layer.output, rows, &a.attended, Destination::Add(&mut a.residual))
    }

    /// Where the latent begins in a projected row.
    fn latent_offset(&self) -> usize {
        (self.shape.heads * (self.shape.nope + self.shape.rope)) as usize
    }

    /// Turns the rope key in place, and the queries' rope channels in place or to where `absorbed` says.
    fn rope(
        &self,
        tables: &Tables,
        width: usize,
        projected: &mut Buffer<bf16>,
        absorbed: Option<(&mut Buffer<bf16>, Heads)>,
    ) -> Result<(), DeviceError> {
        let [nope, rope, rank] = [self.shape.nope, self.shape.rope, self.shape.rank].map(|dim| dim as usize);
        let turns = (&self.parameters.turns, rope / 2, RopeStyle::Interleaved);
        let queries = Heads { offset: nope, stride: width, head_stride: nope + rope };
        let heads = self.shape.heads as usize;
        self.rows.rope(&self.device, tables, turns, heads, (projected, queries), absorbed)?;
        let key = Heads { offset: self.latent_offset() + rank, stride: width, head_stride: 0 };
        self.rows.rope(&self.device, tables, turns, 1, (projected, key), None)
    }

    fn attend_groups(
        &self,
        up: &Weights,
        cache: &mut DecodeCache,
        tables: &Tables,
        width: usize,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        let (device, rows) = (&self.device, tables.rows());
        let [nope, rope, value, rank] =
            [self.shape.nope, self.shape.rope, self.shape.value, self.shape.rank].map(|dim| dim as usize);
        self.rope(tables, width, &mut a.projected, None)?;
        let (from, to) = (Rows::even(self.latent_offset(), width)?, Rows::even(0, up.outputs())?);
        self.gemm.launch(device, up, rows, (&a.projected, from), (Destination::Bf16(&mut a.expanded), to))?;
        let rope_key = Heads { offset: self.latent_offset() + rank, stride: width, head_stride: 0 };
        let rope_key = Append { from: rope_key, parts: 1, width: rope };
        let groups = (&a.expanded, self.shape.groups as usize, [nope, value]);
        self.rows.append_groups(device, tables, groups, (&a.projected, rope_key), cache)?;
        let inputs = DecodeInputs { q: &a.projected, q_stride: width, out: &mut a.attended };
        self.decode.launch(device, cache, tables, inputs)
    }

    fn attend_latents(
        &self,
        into_latent: &Weights,
        out_of_latent: &Weights,
        cache: &mut DecodeCache,
        tables: &Tables,
        width: usize,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        let (device, rows) = (&self.device, tables.rows());
        let [heads, groups, nope, rope, value, rank] = [
            self.shape.heads,
            self.shape.groups,
            self.shape.nope,
            self.shape.rope,
            self.shape.value,
            self.shape.rank,
        ]
        .map(|dim| dim as usize);
        let (per_group, query, latent) = (heads / groups, nope + rope, rank + rope);
        let absorbed = Heads { offset: rank, stride: heads * latent, head_stride: latent };
        self.rope(tables, width, &mut a.projected, Some((&mut a.expanded, absorbed)))?;
        // A group's heads are rows of its product; groups follow each other in a row.
        let of_groups = |each: usize, row: usize| -> Result<Rows, DeviceError> {
            Ok(Rows { offset: 0, map: RowMap::nested(per_group, each, row)?, apart: per_group * each })
        };
        let (from, to) = (of_groups(query, width)?, of_groups(latent, heads * latent)?);
        let absorbed = Destination::Bf16(&mut a.expanded);
        self.gemm.launch(device, into_latent, rows * per_group, (&a.projected, from), (absorbed, to))?;
        let DecodeCache::Absorb { latents } = cache else {
            return Err(DeviceError::Arguments {
                kernel: "append",
                reason: "the cache holds keys".to_owned(),
            });
        };
        let row = Heads { offset: self.latent_offset(), stride: width, head_stride: 0 };
        self.rows.append(
            device,
            tables,
            &a.projected,
            Append { from: row, parts: 1, width: latent },
            latents,
        )?;
        let inputs = DecodeInputs { q: &a.expanded, q_stride: heads * latent, out: &mut a.means };
        self.decode.launch(device, cache, tables, inputs)?;
        let (from, to) = (of_groups(rank, heads * rank)?, of_groups(value, heads * value)?);
        let attended = Destination::Bf16(&mut a.attended);
        self.gemm.launch(device, out_of_latent, rows * per_group, (&a.means, from), (attended, to))
    }

    fn feed_forward(&self, layer: &Layer, rows: usize, a: &mut Activations) -> Result<(), DeviceError> {
        self.rows.norm(&self.device, &layer.post_norm, &a.residual, Ok(rows), &mut a.normed)?;
        self.multiply(&layer.gate_up, rows, &a.normed, Destination::Bf16(&mut a.gate_up))?;
        self.rows.swiglu(&self.device, &a.gate_up, rows, layer.down.inputs(), &mut a.activated)?;
        self.multiply(&layer.down, rows, &a.activated, Destination::Add(&mut a.residual))
    }

    fn head(&self, wanted: &[usize], a: &mut Activations) -> Result<Vec<f32>, DeviceError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.rows.norm(&self.device, &self.parameters.norm, &a.residual, Err(wanted), &mut a.normed)?;
        let head = self.parameters.head.as_ref().unwrap_or(&self.parameters.embedding);
        self.multiply(head, wanted.len(), &a.normed, Destination::F32(&mut a.logits))?;
        self.device.download(&a.logits, wanted.len() * head.outputs())
    }
}
