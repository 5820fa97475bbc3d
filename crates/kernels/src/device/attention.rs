//! One layer's attention on the device along either path: the path's up-projections, the cache, and what attends over it.

use gqla_model::DecodePath;
use half::bf16;

use super::{
    Append, Buffer, Decode, DecodeCache, DecodeInputs, DecodeShape, Destination, Device, DeviceError, Gemm,
    Heads, PageRun, RowKernels, RowMap, Rows, Splits, Tables, Weights,
};
use crate::{attention::BLOCK_TOKENS, ops::RopeStyle};

/// What the paths do with the up-projections.
pub enum UpProjection {
    /// `[G (d_nope + d_v), r]`
    Gqa(Weights),
    /// `W_UKᵀ` `[G, r, d_nope]` and `W_UV` `[G, d_v, r]`.
    Absorb {
        /// From a group's queries to the latent.
        into_latent: Weights,
        /// From weighted latents to a group's values.
        out_of_latent: Weights,
    },
}

impl UpProjection {
    /// Copies `numbers`, `[G (d_nope + d_v), rank]`, to the device as `path` takes them; `rank` is the width of the latent
    /// before it was padded.
    ///
    /// # Errors
    /// When numbers are missing, or memory is short.
    pub fn upload(
        device: &Device,
        what: &str,
        shape: &DecodeShape,
        path: DecodePath,
        (numbers, rank): (&[bf16], usize),
    ) -> Result<Self, DeviceError> {
        let DecodeShape { groups, nope, value, rank: padded, .. } = *shape;
        let [groups, nope, value, padded] = [groups, nope, value, padded].map(|dim| dim as usize);
        let width = nope + value;
        if numbers.len() != groups * width * rank || rank == 0 || rank > padded {
            let reason = format!("{what}: {} numbers for {groups} groups of {width} x {rank}", numbers.len());
            return Err(DeviceError::arguments("up-projection", reason));
        }
        let row = |group: usize, row: usize| &numbers[(group * width + row) * rank..][..rank];
        let padded_row = |row: &[bf16]| {
            let mut row = row.to_vec();
            row.resize(padded, bf16::ZERO);
            row
        };
        let upload = |numbers: &[bf16], dims| Weights::upload(device, what, numbers, dims);
        if path == DecodePath::Gqa {
            let rows: Vec<bf16> = numbers.chunks(rank).flat_map(padded_row).collect();
            return Ok(Self::Gqa(upload(&rows, [1, groups * width, padded])?));
        }
        let mut into_latent = vec![bf16::ZERO; groups * padded * nope];
        let mut out_of_latent = Vec::with_capacity(groups * value * padded);
        for group in 0..groups {
            for channel in 0..nope {
                for (latent, weight) in row(group, channel).iter().enumerate() {
                    into_latent[(group * padded + latent) * nope + channel] = *weight;
                }
            }
            out_of_latent.extend((nope..width).flat_map(|channel| padded_row(row(group, channel))));
        }
        Ok(Self::Absorb {
            into_latent: upload(&into_latent, [groups, padded, nope])?,
            out_of_latent: upload(&out_of_latent, [groups, value, padded])?,
        })
    }
}

/// Cosine and sine of every position's angles.
pub struct Turns {
    /// `[positions, d_rope / 2, 2]`
    pub numbers: Buffer<f32>,
    /// Which channels turn together.
    pub style: RopeStyle,
}

/// Rows of a step that attend alike: where their tokens are, and which row of the step's activations is their first.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// Of these rows alone.
    pub tables: &'a Tables,
    /// 0 where they are all of the step's.
    pub first_row: usize,
}

/// Rows of a projection: queries of all heads `[H, d_nope + d_rope]`, the latent padded, and the rope key. They are rounded
/// once, when norms and turns are done.
pub struct Projected {
    sums: Buffer<f32>,
    rows: Buffer<bf16>,
    width: usize,
}

impl Projected {
    /// Room for `rows` rows of `shape`.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(device: &Device, shape: &DecodeShape, rows: usize) -> Result<Self, DeviceError> {
        let width = Self::width(shape);
        let (sums, rounded) =
            (device.unwritten("activations", rows * width)?, device.unwritten("activations", rows * width)?);
        Ok(Self { sums, rows: rounded, width })
    }

    /// Bytes of that.
    pub fn bytes(shape: &DecodeShape, rows: usize) -> usize {
        Self::width(shape) * rows * (size_of::<f32>() + size_of::<bf16>())
    }

    /// Numbers of a row.
    pub fn width(shape: &DecodeShape) -> usize {
        Self::latent(shape) + (shape.rank + shape.rope) as usize
    }

    /// Where the latent begins in a row.
    fn latent(shape: &DecodeShape) -> usize {
        (shape.heads * (shape.nope + shape.rope)) as usize
    }

    /// Where the latents are.
    pub fn latents(&self, shape: &DecodeShape) -> Heads {
        self.latents_from(shape, 0)
    }

    /// Those from row `first` on.
    fn latents_from(&self, shape: &DecodeShape, first: usize) -> Heads {
        Heads { offset: self.place(first) + Self::latent(shape), stride: self.width, head_stride: 0 }
    }

    /// Where a row begins.
    pub(super) fn place(&self, row: usize) -> usize {
        row * self.width
    }

    /// The rounded rows.
    pub(super) fn rows(&self) -> &Buffer<bf16> {
        &self.rows
    }

    /// Where products write.
    pub fn sums(&mut self) -> &mut Buffer<f32> {
        &mut self.sums
    }
}

/// What attention writes besides its result, for no later step.
pub struct AttentionScratch {
    /// GQA: keys and values `[rows, G (d_nope + d_v)]`; absorb: queries `[rows, H, r + d_rope]`.
    expanded: Buffer<bf16>,
    /// Absorb: weighted latents, `[rows, H, r]`.
    means: Buffer<bf16>,
    /// What splits have summed.
    partial: Buffer<f32>,
}

impl AttentionScratch {
    /// For steps of up to `rows` rows and sequences of up to `longest` tokens.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(
        device: &Device,
        shape: &DecodeShape,
        path: DecodePath,
        division: Splits,
        [rows, longest]: [usize; 2],
    ) -> Result<Self, DeviceError> {
        let [expanded, means] = Self::widths(shape, path);
        let room = |width: usize| device.unwritten("activations", rows * width);
        let partial = Decode::partial_numbers(shape, path, division, rows, longest);
        Ok(Self {
            expanded: room(expanded)?,
            means: room(means)?,
            partial: device.unwritten("attention's splits", partial)?,
        })
    }

    /// Bytes of that.
    pub fn bytes(
        shape: &DecodeShape,
        path: DecodePath,
        division: Splits,
        [rows, longest]: [usize; 2],
    ) -> usize {
        Self::widths(shape, path).iter().sum::<usize>() * rows * size_of::<bf16>()
            + Decode::partial_numbers(shape, path, division, rows, longest) * size_of::<f32>()
    }

    pub(super) fn partial(&mut self) -> &mut Buffer<f32> {
        &mut self.partial
    }

    fn widths(shape: &DecodeShape, path: DecodePath) -> [usize; 2] {
        match path {
            DecodePath::Gqa => [(shape.groups * (shape.nope + shape.value)) as usize, 0],
            DecodePath::MqaAbsorb => {
                [(shape.heads * (shape.rank + shape.rope)) as usize, (shape.heads * shape.rank) as usize]
            }
        }
    }
}

/// Kernels of a layer's attention; all layers share them.
pub struct Attention {
    /// Products.
    pub gemm: Gemm,
    /// Rotary embedding and cache writes.
    pub rows: RowKernels,
    /// What attends.
    pub decode: Decode,
}

impl Attention {
    /// Turns queries and rope keys of `projected`, rounds all of it, stores the tokens of `part` in `cache`, and lets every row of it
    /// attend up to itself: `out` is `[rows, H, d_v]`, of all rows of the step.
    ///
    /// # Errors
    /// When cache and up-projection are not of one path, buffers are too small, or the device refuses.
    pub fn forward(
        &self,
        device: &Device,
        (up, turns): (&UpProjection, &Turns),
        cache: &mut DecodeCache,
        part: Part<'_>,
        (projected, scratch): (&mut Projected, &mut AttentionScratch),
        out: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        match up {
            UpProjection::Gqa(up) => self.groups(device, (up, turns), cache, part, (projected, scratch), out),
            UpProjection::Absorb { into_latent, out_of_latent } => {
                let up = [into_latent, out_of_latent];
                self.latents(device, (up, turns), cache, part, (projected, scratch), out)
            }
        }
    }

    fn groups(
        &self,
        device: &Device,
        (up, turns): (&Weights, &Turns),
        cache: &mut DecodeCache,
        part: Part<'_>,
        (projected, scratch): (&mut Projected, &mut AttentionScratch),
        out: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let shape = self.decode.shape();
        let [nope, rope, value, rank] =
            [shape.nope, shape.rope, shape.value, shape.rank].map(|dim| dim as usize);
        self.turn(device, part, turns, projected, None)?;
        let Part { tables, first_row } = part;
        let (latents, width) = (projected.latents_from(shape, first_row), projected.width);
        let (from, to) = (Rows::even(latents.offset, width)?, Rows::even(0, up.outputs())?);
        let expanded = Destination::Bf16(&mut scratch.expanded);
        self.gemm.launch_step(device, up, tables, (&projected.rows, from), (expanded, to))?;
        let rope_key = Heads { offset: latents.offset + rank, ..latents };
        let rope_key = Append { from: rope_key, parts: 1, width: rope };
        let groups = (&scratch.expanded, shape.groups as usize, [nope, value]);
        self.rows.append_groups(device, tables, groups, (&projected.rows, rope_key), cache)?;
        self.attend(device, cache, part, (projected, scratch), out)
    }

    fn latents(
        &self,
        device: &Device,
        ([into_latent, out_of_latent], turns): ([&Weights; 2], &Turns),
        cache: &mut DecodeCache,
        part: Part<'_>,
        (projected, scratch): (&mut Projected, &mut AttentionScratch),
        out: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let (shape, rows) = (self.decode.shape(), part.tables.rows());
        let DecodeShape { heads, groups, nope, rope, value, rank, .. } = *shape;
        let [heads, groups, nope, rope, value, rank] =
            [heads, groups, nope, rope, value, rank].map(|dim| dim as usize);
        let (per_group, query, latent, width) = (heads / groups, nope + rope, rank + rope, projected.width);
        let expanded = &mut scratch.expanded;
        let absorbed = Heads { offset: rank, stride: heads * latent, head_stride: latent };
        self.turn(device, part, turns, projected, Some((expanded, absorbed)))?;
        // A group's heads are rows of its product; groups follow each other in a row.
        let of_groups = |first: usize, each: usize, row: usize| -> Result<Rows, DeviceError> {
            let map = RowMap::nested(per_group, each, row)?;
            Ok(Rows { offset: first * row, map, apart: per_group * each })
        };
        let (from, to) = (of_groups(part.first_row, query, width)?, of_groups(0, latent, heads * latent)?);
        let absorbed = Destination::Bf16(expanded);
        self.gemm.launch(device, into_latent, rows * per_group, (&projected.rows, from), (absorbed, to))?;
        self.append_latents(device, part, projected, cache)?;
        self.attend(device, cache, part, (projected, scratch), out)?;
        let (from, to) =
            (of_groups(0, rank, heads * rank)?, of_groups(part.first_row, value, heads * value)?);
        let means = (&scratch.means, from);
        self.gemm.launch(device, out_of_latent, rows * per_group, means, (Destination::Bf16(out), to))
    }

    /// Stores latents and turned rope keys.
    pub(super) fn append_latents(
        &self,
        device: &Device,
        Part { tables, first_row }: Part<'_>,
        projected: &Projected,
        cache: &mut DecodeCache,
    ) -> Result<(), DeviceError> {
        let shape = self.decode.shape();
        let DecodeCache::Absorb { latents } = cache else {
            return Err(DeviceError::arguments("append", "the cache holds keys"));
        };
        let from = projected.latents_from(shape, first_row);
        let row = Append { from, parts: 1, width: (shape.rank + shape.rope) as usize };
        self.rows.append(device, tables, &projected.rows, row, latents)
    }

    /// Fills the pages of `run` in the GQA path's `cache` from those of the absorb path's `latents`, to the bits that the GQA
    /// path would have made of these. `up` and `scratch` are the GQA path's; the scratch has a row for every token of the run.
    ///
    /// # Errors
    /// When something is the other path's or too small, or the device refuses.
    pub fn expand(
        &self,
        device: &Device,
        up: &UpProjection,
        (latents, cache): (&DecodeCache, &mut DecodeCache),
        run: &PageRun,
        scratch: &mut AttentionScratch,
    ) -> Result<(), DeviceError> {
        let (UpProjection::Gqa(up), DecodeCache::Absorb { latents }) = (up, latents) else {
            return Err(DeviceError::arguments(
                "expand",
                "expected latents, and the GQA path's up-projection",
            ));
        };
        let shape = self.decode.shape();
        let [nope, rope, value, rank] =
            [shape.nope, shape.rope, shape.value, shape.rank].map(|dim| dim as usize);
        let (width, tables) = (rank + rope, &run.tables);
        let start = run.first * BLOCK_TOKENS * width;
        let (from, to) = (Rows::even(start, width)?, Rows::even(0, up.outputs())?);
        let expanded = Destination::Bf16(&mut scratch.expanded);
        self.gemm.launch(device, up, tables.rows(), (latents, from), (expanded, to))?;
        let rope_key = Heads { offset: start + rank, stride: width, head_stride: 0 };
        let rope_key = Append { from: rope_key, parts: 1, width: rope };
        let groups = (&scratch.expanded, shape.groups as usize, [nope, value]);
        self.rows.append_groups(device, tables, groups, (latents, rope_key), cache)
    }

    /// The part of [`Self::forward`] that reads the cache: queries are in `projected` or `scratch`, where the path has them,
    /// and results go to `out` along GQA, to weighted latents in `scratch` along absorb.
    pub(super) fn attend(
        &self,
        device: &Device,
        cache: &DecodeCache,
        part: Part<'_>,
        (projected, scratch): (&Projected, &mut AttentionScratch),
        out: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let AttentionScratch { expanded, means, partial } = scratch;
        let shape = self.decode.shape();
        let inputs = match cache {
            DecodeCache::Gqa { .. } => DecodeInputs {
                q: &projected.rows,
                q_offset: projected.place(part.first_row),
                q_stride: projected.width,
                partial,
                out,
                out_offset: part.first_row * (shape.heads * shape.value) as usize,
            },
            DecodeCache::Absorb { .. } => {
                let q_stride = (shape.heads * (shape.rank + shape.rope)) as usize;
                DecodeInputs { q: expanded, q_offset: 0, q_stride, partial, out: means, out_offset: 0 }
            }
        };
        self.decode.launch(device, cache, part.tables, inputs)
    }

    /// Rounds queries, latents and rope keys, turned where they are to be; queries' rope channels may go to where `absorbed` says.
    pub(super) fn turn(
        &self,
        device: &Device,
        Part { tables, first_row }: Part<'_>,
        turns: &Turns,
        projected: &mut Projected,
        absorbed: Option<(&mut Buffer<bf16>, Heads)>,
    ) -> Result<(), DeviceError> {
        let shape = self.decode.shape();
        let [nope, rope, rank] = [shape.nope, shape.rope, shape.rank].map(|dim| dim as usize);
        let turns = (&turns.numbers, rope / 2, turns.style);
        let latents = projected.latents_from(shape, first_row);
        let offset = projected.place(first_row);
        let queries = Heads { offset, stride: projected.width, head_stride: nope + rope };
        let Projected { sums, rows, .. } = projected;
        let heads = [shape.heads as usize, nope];
        self.rows.rope(device, tables, turns, heads, (sums, queries), (rows, absorbed))?;
        self.rows.rope(device, tables, turns, [1, rank], (sums, latents), (rows, None))
    }
}
