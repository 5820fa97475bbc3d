//! Row-wise operations on the device.

use cudarc::driver::{CudaFunction, DeviceRepr, LaunchConfig, PushKernelArg};
use half::bf16;

use super::{Buffer, DecodeCache, Device, DeviceError, Loaded, Tables, decode::int};
use crate::{attention::BLOCK_TOKENS, ops::RopeStyle};

/// The structs of `rows.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct EmbedParams {
    table: u64,
    tokens: u64,
    out: u64,
    width: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct NormParams {
    x: u64,
    weight: u64,
    rows: u64,
    out: u64,
    width: i32,
    x_stride: i32,
    out_stride: i32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RopeParams {
    x: u64,
    out: u64,
    turned: u64,
    turns: u64,
    positions: u64,
    rows: i32,
    heads: i32,
    plain: i32,
    pairs: i32,
    interleaved: i32,
    stride: i32,
    head_stride: i32,
    turned_stride: i32,
    turned_head_stride: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AppendParams {
    x: u64,
    cache: u64,
    slots: u64,
    rows: i32,
    parts: i32,
    width: i32,
    page_tokens: i32,
    x_stride: i32,
    x_part_stride: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct SwigluParams {
    gate_up: u64,
    out: u64,
    rows: i32,
    width: i32,
}

// SAFETY: plain numbers, laid out as the kernels' structs.
unsafe impl DeviceRepr for EmbedParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for NormParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for RopeParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for AppendParams {}
// SAFETY: as above.
unsafe impl DeviceRepr for SwigluParams {}

/// Threads of a block of the kernels that give each thread its own numbers, or each row a block.
pub(super) const THREADS: usize = 256;
/// Threads of a block of `embed`.
pub(super) const EMBED_THREADS: usize = 128;

/// A norm's weights, on the device.
pub struct Norm {
    /// `[width]`
    pub weight: Buffer<f32>,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// Rows that a norm reads, each as wide as its weights.
#[derive(Clone, Copy)]
pub enum NormInput<'a> {
    /// Of the residual stream.
    F32(&'a Buffer<f32>),
    /// Of what lies between products, or of an embedding.
    Bf16(&'a Buffer<bf16>),
}

/// Heads in rows: the first of row i from `offset + i * stride` on, the others `head_stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Where the first begins.
    pub offset: usize,
    /// Numbers between two rows.
    pub stride: usize,
    /// Numbers between two heads.
    pub head_stride: usize,
}

impl Heads {
    fn end(&self, rows: usize, heads: usize, width: usize) -> usize {
        self.offset
            + rows.saturating_sub(1) * self.stride
            + heads.saturating_sub(1) * self.head_stride
            + width
    }
}

/// Numbers of every row that go to its slot in a cache: `parts` of `width`.
#[derive(Clone, Copy, Debug)]
pub struct Append {
    /// Where they are.
    pub from: Heads,
    /// Groups, or 1.
    pub parts: usize,
    /// Numbers of a part.
    pub width: usize,
}

/// The loaded kernels.
pub struct RowKernels {
    embed: CudaFunction,
    norm_f32: CudaFunction,
    norm_bf16: CudaFunction,
    norm_unrounded: CudaFunction,
    rope: CudaFunction,
    append: CudaFunction,
    swiglu: CudaFunction,
}

impl RowKernels {
    /// Takes them from [`Program::rows`](super::Program::rows).
    ///
    /// # Errors
    /// When the program lacks one.
    pub fn new(loaded: &Loaded) -> Result<Self, DeviceError> {
        Ok(Self {
            embed: loaded.kernel("embed")?,
            norm_f32: loaded.kernel("rms_norm_f32")?,
            norm_bf16: loaded.kernel("rms_norm_bf16")?,
            norm_unrounded: loaded.kernel("rms_norm_unrounded")?,
            rope: loaded.kernel("rope")?,
            append: loaded.kernel("append")?,
            swiglu: loaded.kernel("swiglu")?,
        })
    }

    /// Row i of `out` becomes the row of `table` that `tokens` names; ids must be below the table's rows.
    ///
    /// # Errors
    /// When an id is not, a buffer is too small or rows are of odd width; when the device refuses.
    pub fn embed(
        &self,
        device: &Device,
        table: &super::Weights,
        tokens: &[u32],
        out: &mut Buffer<f32>,
    ) -> Result<(), DeviceError> {
        let (rows, width) = (tokens.len(), table.inputs());
        if tokens.iter().any(|id| *id as usize >= table.outputs()) || out.len() < rows * width {
            let reason = format!("{rows} tokens of {} of width {width} into {}", table.outputs(), out.len());
            return Err(DeviceError::arguments("embed", reason));
        }
        let ids: Vec<i32> = tokens.iter().map(|id| id.cast_signed()).collect();
        let ids = device.upload("token ids", &ids)?;
        let params = EmbedParams {
            table: table.numbers().address(),
            tokens: ids.address(),
            out: out.address(),
            width: int("embed", "width", width)?,
        };
        launch(device, &self.embed, "embed", &params, rows, EMBED_THREADS)
    }

    /// Row i of `out`, `[rows, width]`, is the norm of row `wanted[i]` of `x`, or of row i without `wanted`.
    ///
    /// # Errors
    /// When a buffer is too small or a wanted row is not there; when the device refuses.
    pub fn norm(
        &self,
        device: &Device,
        norm: &Norm,
        x: &Buffer<f32>,
        rows: Result<usize, &[usize]>,
        out: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let whole = Heads { offset: 0, stride: norm.weight.len(), head_stride: 0 };
        self.norm_into(device, norm, NormInput::F32(x), rows, (out, whole))
    }

    /// The same to part of every row of `out`, numbers from `at.offset` on; what is around it stays.
    ///
    /// # Errors
    /// As [`Self::norm`].
    pub fn norm_into(
        &self,
        device: &Device,
        norm: &Norm,
        x: NormInput<'_>,
        rows: Result<usize, &[usize]>,
        (out, at): (&mut Buffer<bf16>, Heads),
    ) -> Result<(), DeviceError> {
        let width = norm.weight.len();
        let (kernel, name, address, room) = match x {
            NormInput::F32(x) => (&self.norm_f32, "rms_norm_f32", x.address(), x.len()),
            NormInput::Bf16(x) => (&self.norm_bf16, "rms_norm_bf16", x.address(), x.len()),
        };
        let (count, last) = match rows {
            Ok(rows) => (rows, rows),
            Err(wanted) => (wanted.len(), wanted.iter().max().map_or(0, |row| row + 1)),
        };
        if room < last * width || out.len() < at.end(count, 1, width) {
            let reason = format!(
                "rows up to {last} of {room} and {count} at {at:?} of {}, of width {width}",
                out.len()
            );
            return Err(DeviceError::arguments(name, reason));
        }
        let wanted = match rows {
            Ok(_) => None,
            Err(wanted) => {
                let wanted: Result<Vec<i32>, _> = wanted.iter().map(|row| int(name, "row", *row)).collect();
                Some(device.upload("wanted rows", &wanted?)?)
            }
        };
        let width = int(name, "width", width)?;
        let params = NormParams {
            x: address,
            weight: norm.weight.address(),
            rows: wanted.as_ref().map_or(0, Buffer::address),
            out: out.address() + (at.offset * size_of::<bf16>()) as u64,
            width,
            x_stride: width,
            out_stride: int(name, "stride", at.stride)?,
            eps: norm.eps,
        };
        launch(device, kernel, name, &params, count, THREADS)
    }

    /// Norms part of every row in place, and rounds nothing: those numbers from `at.offset` on.
    ///
    /// # Errors
    /// When the buffer is too small; when the device refuses.
    pub fn norm_in_place(
        &self,
        device: &Device,
        norm: &Norm,
        x: &mut Buffer<f32>,
        at: Heads,
        rows: usize,
    ) -> Result<(), DeviceError> {
        const NAME: &str = "rms_norm_unrounded";
        let width = norm.weight.len();
        if x.len() < at.end(rows, 1, width) {
            let reason = format!("{rows} rows of {width} at {at:?} of {}", x.len());
            return Err(DeviceError::arguments(NAME, reason));
        }
        let place = x.address() + (at.offset * size_of::<f32>()) as u64;
        let stride = int(NAME, "stride", at.stride)?;
        let params = NormParams {
            x: place,
            weight: norm.weight.address(),
            rows: 0,
            out: place,
            width: int(NAME, "width", width)?,
            x_stride: stride,
            out_stride: stride,
            eps: norm.eps,
        };
        launch(device, &self.norm_unrounded, NAME, &params, rows, THREADS)
    }

    /// Rounds what was projected: of `heads` heads of every row, which begin at `at`, the first `plain` numbers go to the same
    /// places of `out`, and the others, turned by the row's position, behind them or to `apart`. `turns` is
    /// `[positions, pairs, 2]`, cosine and sine; every position of `tables` must be below its first dimension.
    ///
    /// # Errors
    /// When a buffer is too small or a head begins at an odd place; when the device refuses.
    pub fn rope(
        &self,
        device: &Device,
        tables: &Tables,
        (turns, pairs, style): (&Buffer<f32>, usize, RopeStyle),
        [heads, plain]: [usize; 2],
        (x, at): (&Buffer<f32>, Heads),
        (out, apart): (&mut Buffer<bf16>, Option<(&mut Buffer<bf16>, Heads)>),
    ) -> Result<(), DeviceError> {
        let (rows, bytes) = (tables.rows, |numbers: usize| (numbers * size_of::<bf16>()) as u64);
        let out_place = out.address() + bytes(at.offset);
        let (turned_place, turned_room, turned) = match &apart {
            Some((buffer, to)) => (buffer.address() + bytes(to.offset), buffer.len(), *to),
            None => (out_place + bytes(plain), out.len(), Heads { offset: at.offset + plain, ..at }),
        };
        let even = [at.offset, at.stride, at.head_stride, plain].iter().all(|x| x.is_multiple_of(2));
        let fits = at.end(rows, heads, plain + 2 * pairs) <= x.len()
            && at.end(rows, heads, plain) <= out.len()
            && turned.end(rows, heads, 2 * pairs) <= turned_room;
        if !even || !fits || turns.len() < tables.longest * pairs * 2 {
            let reason = format!(
                "{heads} heads of {plain} and {pairs} pairs in {rows} rows at {at:?} of {}, to {} and at {turned:?} of \
                 {turned_room}, up to position {} of {}",
                x.len(),
                out.len(),
                tables.longest,
                turns.len() / (2 * pairs).max(1)
            );
            return Err(DeviceError::arguments("rope", reason));
        }
        let int = |what: &str, x: usize| int("rope", what, x);
        let params = RopeParams {
            x: x.address() + (at.offset * size_of::<f32>()) as u64,
            out: out_place,
            turned: turned_place,
            turns: turns.address(),
            positions: tables.positions.address(),
            rows: int("rows", rows)?,
            heads: int("heads", heads)?,
            plain: int("head", plain)?,
            pairs: int("pairs", pairs)?,
            interleaved: i32::from(style == RopeStyle::Interleaved),
            stride: int("stride", at.stride)?,
            head_stride: int("stride", at.head_stride)?,
            turned_stride: int("stride", turned.stride)?,
            turned_head_stride: int("stride", turned.head_stride)?,
        };
        let each = plain / 2 + pairs;
        launch(device, &self.rope, "rope", &params, (rows * heads * each).div_ceil(THREADS), THREADS)
    }

    /// Puts latents, or rope keys, of every row into the cache.
    ///
    /// # Errors
    /// When a buffer is too small or not aligned to 8 numbers; when the device refuses.
    pub fn append(
        &self,
        device: &Device,
        tables: &Tables,
        x: &Buffer<bf16>,
        append: Append,
        cache: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        let Append { from, parts, width } = append;
        let rows = tables.rows;
        let aligned = [from.offset, from.stride, from.head_stride, width].iter().all(|x| x.is_multiple_of(8));
        let room = tables.page_count * BLOCK_TOKENS * parts * width;
        if !aligned || from.end(rows, parts, width) > x.len() || room > cache.len() {
            let reason =
                format!("{append:?} of {rows} rows in {}, {room} of {} in the cache", x.len(), cache.len());
            return Err(DeviceError::arguments("append", reason));
        }
        let int = |what: &str, x: usize| int("append", what, x);
        let params = AppendParams {
            x: x.address() + (from.offset * size_of::<bf16>()) as u64,
            cache: cache.address(),
            slots: tables.slots.address(),
            rows: int("rows", rows)?,
            parts: int("parts", parts)?,
            width: int("width", width)?,
            page_tokens: int("page", BLOCK_TOKENS)?,
            x_stride: int("stride", from.stride)?,
            x_part_stride: int("stride", from.head_stride)?,
        };
        launch(device, &self.append, "append", &params, (rows * parts * width / 8).div_ceil(THREADS), THREADS)
    }

    /// Puts keys, rope keys and values of every row into the GQA path's cache: `kv` is `[rows, groups, nope + value]`.
    ///
    /// # Errors
    /// As [`Self::append`]; when the cache is the other path's.
    pub fn append_groups(
        &self,
        device: &Device,
        tables: &Tables,
        (kv, groups, [nope, value]): (&Buffer<bf16>, usize, [usize; 2]),
        (rope, rope_at): (&Buffer<bf16>, Append),
        cache: &mut DecodeCache,
    ) -> Result<(), DeviceError> {
        let DecodeCache::Gqa { keys, rope_keys, values } = cache else {
            return Err(DeviceError::arguments("append", "the cache holds latents"));
        };
        let at = |offset| Heads { offset, stride: groups * (nope + value), head_stride: nope + value };
        self.append(device, tables, kv, Append { from: at(0), parts: groups, width: nope }, keys)?;
        self.append(device, tables, kv, Append { from: at(nope), parts: groups, width: value }, values)?;
        self.append(device, tables, rope, rope_at, rope_keys)
    }

    /// `out = silu(gate) · up` for `rows` rows `[gate | up]`, each `width` wide.
    ///
    /// # Errors
    /// When a buffer is too small or the width is odd; when the device refuses.
    pub fn swiglu(
        &self,
        device: &Device,
        gate_up: &Buffer<f32>,
        rows: usize,
        width: usize,
        out: &mut Buffer<bf16>,
    ) -> Result<(), DeviceError> {
        if gate_up.len() < 2 * rows * width || out.len() < rows * width || !width.is_multiple_of(2) {
            let reason = format!("{rows} rows of width {width} of {} into {}", gate_up.len(), out.len());
            return Err(DeviceError::arguments("swiglu", reason));
        }
        let params = SwigluParams {
            gate_up: gate_up.address(),
            out: out.address(),
            rows: int("swiglu", "rows", rows)?,
            width: int("swiglu", "width", width)?,
        };
        launch(device, &self.swiglu, "swiglu", &params, (rows * width / 2).div_ceil(THREADS), THREADS)
    }
}

/// Launches blocks in one row, if there are any. Callers have checked every buffer against what the kernel touches.
pub(super) fn launch<P: DeviceRepr>(
    device: &Device,
    function: &CudaFunction,
    name: &'static str,
    params: &P,
    blocks: usize,
    threads: usize,
) -> Result<(), DeviceError> {
    if blocks == 0 {
        return Ok(());
    }
    let blocks = int(name, "blocks", blocks)?.cast_unsigned();
    let config =
        LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads as u32, 1, 1), shared_mem_bytes: 0 };
    launch_grid(device, function, name, params, config)
}

/// The same for any grid.
pub(super) fn launch_grid<P: DeviceRepr>(
    device: &Device,
    function: &CudaFunction,
    name: &'static str,
    params: &P,
    config: LaunchConfig,
) -> Result<(), DeviceError> {
    device.bind()?;
    // SAFETY: callers are methods of kernels that take these parameters, and checked every buffer against what they touch.
    unsafe { device.stream.launch_builder(function).arg(params).launch(config) }
        .map_err(DeviceError::driver(format!("launching `{name}`")))?;
    Ok(())
}
