//! Attention over a paged cache on the device, for decoding and for prompts.

use cudarc::driver::{
    CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg,
    sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_DYNAMIC,
};
use gqla_model::DecodePath;
use half::bf16;

use super::{Buffer, DecodePlan, DecodeShape, Device, DeviceError, Loaded, Splits, Tables, Tiling};
use crate::attention::BLOCK_TOKENS;

/// Warps of a block of the merging kernel, and columns of a row that each merges.
pub(super) const MERGE_WARPS: u32 = 4;
const MERGE_COLUMNS: usize = 128;
/// Blocks of that kernel on a multiprocessor at most: their loads keep its memory busy.
const MERGE_BLOCKS: u32 = 8;

/// `Params` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Params {
    q: u64,
    keys: u64,
    rope_keys: u64,
    values: u64,
    page_table: u64,
    positions: u64,
    work: u64,
    partial: u64,
    partial_lse: u64,
    out: u64,
    query_room: i32,
    q_stride: i32,
    heads: i32,
    groups: i32,
    least_pages: i32,
    most_splits: i32,
    scale_log2: f32,
}

// SAFETY: plain numbers, laid out as the kernel's struct.
unsafe impl DeviceRepr for Params {}

/// What one layer remembers of all tokens, in pages of [`BLOCK_TOKENS`] tokens.
pub enum DecodeCache {
    /// The GQA path's.
    Gqa {
        /// `[pages, groups, tokens, nope]`
        keys: Buffer<bf16>,
        /// `[pages, tokens, rope]`
        rope_keys: Buffer<bf16>,
        /// `[pages, groups, tokens, value]`
        values: Buffer<bf16>,
    },
    /// The absorb path's.
    Absorb {
        /// `[pages, tokens, rank + rope]`
        latents: Buffer<bf16>,
    },
}

impl DecodeCache {
    /// Room for `pages` pages; nothing is written.
    ///
    /// # Errors
    /// When memory is short.
    pub fn new(
        device: &Device,
        shape: &DecodeShape,
        path: DecodePath,
        pages: usize,
    ) -> Result<Self, DeviceError> {
        let tokens = pages * BLOCK_TOKENS;
        let room = |width: u32| device.unwritten("the cache's blocks", tokens * width as usize);
        Ok(match path {
            DecodePath::Gqa => Self::Gqa {
                keys: room(shape.groups * shape.nope)?,
                rope_keys: room(shape.rope)?,
                values: room(shape.groups * shape.value)?,
            },
            DecodePath::MqaAbsorb => Self::Absorb { latents: room(shape.rank + shape.rope)? },
        })
    }

    /// Copies one page over another.
    ///
    /// # Errors
    /// When there is no such page.
    pub fn copy_page(
        &mut self,
        device: &Device,
        pages: usize,
        from: usize,
        to: usize,
    ) -> Result<(), DeviceError> {
        let copy = |buffer: &mut Buffer<bf16>| {
            let page = buffer.len() / pages.max(1);
            device.copy(buffer, from * page, to * page, page)
        };
        match self {
            Self::Gqa { keys, rope_keys, values } => {
                copy(keys)?;
                copy(rope_keys)?;
                copy(values)
            }
            Self::Absorb { latents } => copy(latents),
        }
    }

    /// Addresses of keys, rope keys and values; of latents, and twice 0.
    pub fn addresses(&self) -> [u64; 3] {
        match self {
            Self::Gqa { keys, rope_keys, values } => [keys, rope_keys, values].map(Buffer::address),
            Self::Absorb { latents } => [latents.address(), 0, 0],
        }
    }

    /// Pages it has room for.
    pub(super) fn pages(&self, shape: &DecodeShape) -> usize {
        self.tokens(shape) / BLOCK_TOKENS
    }

    /// Tokens it has room for along `path`.
    fn tokens(&self, shape: &DecodeShape) -> usize {
        let room = |buffer: &Buffer<bf16>, width: u32| buffer.len() / width as usize;
        match self {
            Self::Gqa { keys, rope_keys, values } => room(keys, shape.groups * shape.nope)
                .min(room(rope_keys, shape.rope))
                .min(room(values, shape.groups * shape.value)),
            Self::Absorb { latents } => room(latents, shape.rank + shape.rope),
        }
    }
}

/// What a launch reads besides the cache and writes.
pub struct DecodeInputs<'a> {
    /// Row i's queries from `q_offset + i * q_stride` on, `[heads, width of a key]`.
    pub q: &'a Buffer<bf16>,
    /// Where the first row's begin.
    pub q_offset: usize,
    /// Numbers between two rows' queries.
    pub q_stride: usize,
    /// For what splits have summed, [`Decode::partial_numbers`].
    pub partial: &'a mut Buffer<f32>,
    /// `[rows, heads, width of a value]`, from `out_offset` on.
    pub out: &'a mut Buffer<bf16>,
    /// Where the first row's result begins.
    pub out_offset: usize,
}

/// The attention kernels of one shape and path, loaded.
pub struct Decode {
    shape: DecodeShape,
    plan: DecodePlan,
    decode: Grid,
    merge: Grid,
}

/// A kernel, and how it is launched in every step.
struct Grid {
    name: &'static str,
    function: CudaFunction,
    config: LaunchConfig,
}

impl Grid {
    fn new(
        loaded: &Loaded,
        name: &'static str,
        threads: u32,
        shared_mem_bytes: u32,
        most: u32,
    ) -> Result<Self, DeviceError> {
        let blocks = loaded.blocks(name, threads, shared_mem_bytes)?.min(most);
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes };
        Ok(Self { name, function: loaded.kernel(name)?, config })
    }
}

impl Decode {
    /// Takes the plan's kernels from its program.
    ///
    /// # Errors
    /// When the program lacks them, or the device refuses their shared memory.
    pub fn new(loaded: &Loaded, shape: DecodeShape, plan: DecodePlan) -> Result<Self, DeviceError> {
        let decode = Grid::new(loaded, plan.decode, plan.threads, plan.shared_bytes, u32::MAX)?;
        let most = MERGE_BLOCKS * loaded.multiprocessors().count;
        let merge = Grid::new(loaded, plan.merge, 32 * MERGE_WARPS, 0, most)?;
        let shared = int(plan.decode, "shared memory", plan.shared_bytes as usize)?;
        let doing = format!("giving `{}` {shared} bytes of shared memory", plan.decode);
        decode.function.set_attribute(MAX_DYNAMIC, shared).map_err(DeviceError::driver(doing))?;
        Ok(Self { shape, plan, decode, merge })
    }

    /// The shape that it decodes.
    pub fn shape(&self) -> &DecodeShape {
        &self.shape
    }

    pub(super) fn plan(&self) -> &DecodePlan {
        &self.plan
    }

    /// What tables of steps that it attends in are made for.
    pub fn tiling(&self, division: Splits) -> Tiling {
        Tiling::of(&self.plan, &self.shape, division)
    }

    /// Numbers that a launch of `rows` rows and sequences of up to `longest` tokens needs for what its splits have summed.
    pub fn partial_numbers(
        shape: &DecodeShape,
        path: DecodePath,
        division: Splits,
        rows: usize,
        longest: usize,
    ) -> usize {
        let of_row = shape.heads as usize * (shape.output(path) as usize + 1);
        division.most_of(longest).saturating_mul(rows).saturating_mul(of_row)
    }

    /// Every row of `tables` attends to its sequence up to itself.
    ///
    /// # Errors
    /// When buffers are too small for what `tables` says, memory is short, or the device refuses.
    pub fn launch(
        &self,
        device: &Device,
        cache: &DecodeCache,
        tables: &Tables,
        inputs: DecodeInputs<'_>,
    ) -> Result<(), DeviceError> {
        let (shape, path) = (&self.shape, self.plan.path);
        let heads = shape.heads as usize;
        let (query, output) = (shape.query(path) as usize, shape.output(path) as usize);
        let (room, division) =
            (tables.room, self.check(cache, tables, &inputs, heads * query, heads * output)?);
        let (partial, sums) = (inputs.partial.address(), room.splits * room.rows * heads * output);
        let int = |what: &str, x: usize| int(self.plan.decode, what, x);
        let [keys, rope_keys, values] = cache.addresses();
        let params = Params {
            q: inputs.q.address() + (inputs.q_offset * size_of::<bf16>()) as u64,
            keys,
            rope_keys,
            values,
            page_table: tables.pages.address(),
            positions: tables.positions.address(),
            work: tables.work.address(),
            partial,
            partial_lse: partial + (sums * size_of::<f32>()) as u64,
            out: inputs.out.address() + (inputs.out_offset * size_of::<bf16>()) as u64,
            query_room: int("rows", room.rows)?,
            q_stride: int("q_stride", inputs.q_stride)?,
            heads: int("heads", heads)?,
            groups: int("groups", shape.key_groups(path) as usize)?,
            least_pages: int("pages of a split", division.least_pages.max(1))?,
            most_splits: int("splits", division.most.max(1))?,
            scale_log2: (shape.scale * std::f64::consts::LOG2_E) as f32,
        };
        int("parts of rows", room.rows * heads * output.div_ceil(MERGE_COLUMNS))?;
        device.bind()?;
        for Grid { name, function, config } in [&self.decode, &self.merge] {
            // SAFETY: the kernels take these parameters, `check` held every buffer to what they touch, and `Tables` name
            // pages that are there and units for this kernel's tiles.
            unsafe { device.stream.launch_builder(function).arg(&params).launch(*config) }
                .map_err(DeviceError::driver(format!("launching `{name}`")))?;
        }
        Ok(())
    }

    /// How rows are divided, if everything fits.
    fn check(
        &self,
        cache: &DecodeCache,
        tables: &Tables,
        inputs: &DecodeInputs<'_>,
        query: usize,
        output: usize,
    ) -> Result<Splits, DeviceError> {
        let wrong = |reason: String| Err(DeviceError::arguments(self.plan.decode, reason));
        let (rows, of_path) =
            (tables.rows, matches!(cache, DecodeCache::Gqa { .. }) == (self.plan.path == DecodePath::Gqa));
        if rows == 0 {
            return wrong("no rows".to_owned());
        }
        let division = match tables.tiling {
            Some(tiling) if tiling == self.tiling(tiling.division) => tiling.division,
            other => return wrong(format!("the tables' units are of another kernel: {other:?}")),
        };
        if !of_path || cache.tokens(&self.shape) < tables.page_count * BLOCK_TOKENS {
            return wrong(format!(
                "the cache is not one of {} pages along {}",
                tables.page_count, self.plan.path
            ));
        }
        let DecodeInputs { q, q_offset, q_stride, out_offset, .. } = *inputs;
        if q_stride < query
            || !q_stride.is_multiple_of(8)
            || !q_offset.is_multiple_of(8)
            || q.len() < q_offset + (rows - 1) * q_stride + query
        {
            return wrong(format!(
                "{} queries, {q_stride} apart from {q_offset} on, for {rows} rows of {query}",
                q.len()
            ));
        }
        let partial = tables.room.splits * tables.room.rows * (output + self.shape.heads as usize);
        if inputs.partial.len() < partial {
            return wrong(format!(
                "splits sum {partial} numbers, there is room for {}",
                inputs.partial.len()
            ));
        }
        if inputs.out.len() < out_offset + rows * output || !out_offset.is_multiple_of(8) {
            let room = inputs.out.len();
            return wrong(format!(
                "out holds {room}, {rows} rows of {output} are written from {out_offset} on"
            ));
        }
        Ok(division)
    }
}

/// A number as kernels take it.
pub(super) fn int(kernel: &'static str, what: &str, x: usize) -> Result<i32, DeviceError> {
    i32::try_from(x).map_err(|_| DeviceError::arguments(kernel, format!("{what}: {x} is more than 2^31 - 1")))
}
