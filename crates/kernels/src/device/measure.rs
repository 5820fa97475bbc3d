//! What a device reaches: bytes copied per second, and the time of a layer's attention along either path.
//!
//! Launches follow each other as the engine's do, and the host's clock is read when all are done: what launching takes
//! counts where kernels are shorter. Each figure is the median of many samples.

use std::time::{Duration, Instant};

use gqla_model::{AttentionShape, DecodePath};
use half::bf16;

use super::{
    Attention, AttentionScratch, Buffer, Decode, DecodeCache, DecodeShape, Destination, Device, DeviceError,
    Gemm, Images, Loaded, Part, Program, Projected, RowKernels, Rows, Splits, Tables, Tiling, Turns,
    UpProjection, Weights, plan_decode,
};
use crate::{
    attention::{BLOCK_TOKENS, Segment},
    measure::{AttentionCase, Figure, PassTimes},
    ops::RopeStyle,
    reference::counter_noise,
};

/// A sample takes at least so long, by passes in a row.
const LEAST_SECONDS: f64 = 4e-3;
const MOST_PASSES: f64 = 4e3;
const LEAST_SAMPLES: usize = 3;
/// Numbers of noise that fill caches over and over; their values do not change the time.
const NOISE: usize = 1 << 20;
/// Different blocks that passes take in turn, at most.
const MOST_TURNS: usize = 256;

/// Seconds of each pass of `work`.
fn sample(
    device: &Device,
    time: Duration,
    mut work: impl FnMut() -> Result<(), DeviceError>,
) -> Result<Figure, DeviceError> {
    let mut seconds_of = |passes: usize| -> Result<f64, DeviceError> {
        let start = Instant::now();
        for _ in 0..passes {
            work()?;
        }
        device.wait()?;
        Ok(start.elapsed().as_secs_f64() / passes as f64)
    };
    let began = Instant::now();
    // The first pass loads what was never used.
    seconds_of(1)?;
    let passes = (LEAST_SECONDS / seconds_of(1)?).ceil().clamp(1.0, MOST_PASSES) as usize;
    let mut seconds = Vec::new();
    while seconds.len() < LEAST_SAMPLES || began.elapsed() < time {
        seconds.push(seconds_of(passes)?);
    }
    Ok(Figure::of(seconds))
}

/// Bytes read and written per second by copies within `bytes` bytes of the device's memory.
///
/// # Errors
/// When memory is short, or the device fails.
pub fn copy_rate(device: &Device, bytes: usize, time: Duration) -> Result<Figure, DeviceError> {
    let half = (bytes / 2 / size_of::<bf16>()).max(1);
    let mut buffer = noise_on(device, "a buffer to copy", 2 * half)?;
    let seconds = sample(device, time, || device.copy(&mut buffer, 0, half, half))?;
    let rate = |seconds: f64| (2 * half * size_of::<bf16>()) as f64 / seconds;
    let Figure { median, lower, upper, samples } = seconds;
    Ok(Figure { median: rate(median), lower: rate(upper), upper: rate(lower), samples })
}

/// Seconds of a product of `rows` rows with a matrix of `outputs` x `inputs`, as the engine multiplies. Matrices are taken in
/// turn, so that as much is read as takes `bytes` bytes.
///
/// # Errors
/// When memory is short, no kernel loads, or the device fails.
pub fn product_seconds(
    device: &Device,
    images: &Images,
    [rows, outputs, inputs]: [usize; 3],
    bytes: usize,
    time: Duration,
) -> Result<Figure, DeviceError> {
    let gemm = Gemm::new(&images.load(device, &Program::gemm())?)?;
    let (numbers, count) = (noise(outputs * inputs), bytes.div_ceil(outputs * inputs * size_of::<bf16>()));
    let matrix = |_| Weights::upload(device, "a matrix", &numbers, [1, outputs, inputs]);
    let matrices = (0..count.max(1)).map(matrix).collect::<Result<Vec<_>, _>>()?;
    let x = noise_on(device, "activations", rows * inputs)?;
    let mut y: Buffer<bf16> = device.unwritten("activations", rows * outputs)?;
    let (from, to) = (Rows::even(0, inputs)?, Rows::even(0, outputs)?);
    let mut turn = 0;
    sample(device, time, || {
        turn = (turn + 1) % matrices.len();
        gemm.launch(device, &matrices[turn], rows, (&x, from), (Destination::Bf16(&mut y), to))
    })
}

/// One layer of attention, as the engine runs it, over a cache of noise.
pub struct AttentionTimer<'a> {
    device: &'a Device,
    /// Of decoding, products and rows.
    programs: [Loaded; 3],
    shape: DecodeShape,
    path: DecodePath,
    division: Splits,
    up: UpProjection,
    cache: DecodeCache,
    blocks: usize,
}

impl<'a> AttentionTimer<'a> {
    /// A layer of `shape` on `path` with a cache of `blocks` blocks, which passes take in turn: a cache several times as large
    /// as a pass keeps the device's own from answering for memory.
    ///
    /// # Errors
    /// When there is no kernel for the shape, or memory is short.
    pub fn new(
        device: &'a Device,
        images: &Images,
        attention: &AttentionShape,
        path: DecodePath,
        blocks: usize,
        division: Splits,
    ) -> Result<Self, DeviceError> {
        let shape = DecodeShape::of(attention);
        plan_decode(&shape, path, 1, device.limits())?;
        let load = |program: &Program| images.load(device, program);
        let programs =
            [load(&Program::decode(&shape, path))?, load(&Program::gemm())?, load(&Program::rows())?];
        let rank = attention.kv_lora_rank as usize;
        let up = noise((shape.groups * (shape.nope + shape.value)) as usize * rank);
        let up = UpProjection::upload(device, "up-projections", &shape, path, (&up, rank))?;
        let mut cache = DecodeCache::new(device, &shape, path, blocks)?;
        let mut fill = |buffer: &mut Buffer<bf16>| fill(device, buffer);
        match &mut cache {
            DecodeCache::Gqa { keys, rope_keys, values } => {
                [keys, rope_keys, values].into_iter().try_for_each(&mut fill)?;
            }
            DecodeCache::Absorb { latents } => fill(latents)?,
        }
        Ok(Self { device, programs, shape, path, division, up, cache, blocks })
    }

    /// Times `case` for about `time`, half of it for the reading of the cache and half for whole calls.
    ///
    /// # Errors
    /// When the case is none or has more blocks than there are, or the device fails.
    pub fn time(&mut self, case: &AttentionCase, time: Duration) -> Result<PassTimes, DeviceError> {
        let (device, mut ready) = (self.device, self.ready(case)?);
        // The first whole call leaves the queries that the core then reads.
        let call = sample(device, time / 2, || self.call(&mut ready))?;
        let core = sample(device, time / 2, || self.core(&mut ready))?;
        Ok(PassTimes { core, call })
    }

    /// Makes `case` ready for [`Self::core_seconds`], with a whole call that leaves the queries the core reads.
    ///
    /// # Errors
    /// As [`Self::time`].
    pub fn prepare(&mut self, case: &AttentionCase) -> Result<Prepared, DeviceError> {
        let mut ready = self.ready(case)?;
        self.call(&mut ready)?;
        self.device.wait()?;
        Ok(ready)
    }

    /// Seconds of one pass of the core, which is the mean of `passes` in a row. `prepared` must be this timer's.
    ///
    /// # Errors
    /// When the device fails.
    pub fn core_seconds(&mut self, prepared: &mut Prepared, passes: u32) -> Result<f64, DeviceError> {
        let start = Instant::now();
        for _ in 0..passes.max(1) {
            self.core(prepared)?;
        }
        self.device.wait()?;
        Ok(start.elapsed().as_secs_f64() / f64::from(passes.max(1)))
    }

    fn ready(&self, case: &AttentionCase) -> Result<Prepared, DeviceError> {
        let (device, shape, path) = (self.device, self.shape, self.path);
        case.validate().map_err(|error| DeviceError::arguments("attention", error.to_string()))?;
        let (rows, needed) = (case.batch * case.query_tokens, case.blocks());
        if needed > self.blocks {
            let reason = format!("{needed} cache blocks are needed, of which there are {}", self.blocks);
            return Err(DeviceError::arguments("attention", reason));
        }
        let [decode, gemm, row_kernels] = &self.programs;
        let queries = u32::try_from(case.query_tokens).unwrap_or(u32::MAX);
        let plan = plan_decode(&shape, path, queries, device.limits())?;
        let attention = Attention {
            gemm: Gemm::new(gemm)?,
            rows: RowKernels::new(row_kernels)?,
            decode: Decode::new(decode, shape, plan)?,
        };
        let turns = (self.blocks / needed).min(MOST_TURNS);
        let tiling = attention.decode.tiling(self.division);
        let tables =
            (0..turns).map(|turn| self.tables(case, tiling, turn * needed)).collect::<Result<Vec<_>, _>>()?;
        let angles = noise(case.context * shape.rope as usize);
        let angles: Vec<f32> = angles.iter().map(|x| x.to_f32()).collect();
        let numbers = device.upload("rotary angles", &angles)?;
        let mut projected = Projected::new(device, &shape, rows)?;
        let queries: Vec<f32> = noise(projected.sums().len()).iter().map(|x| x.to_f32()).collect();
        device.write(projected.sums(), 0, &queries)?;
        Ok(Prepared {
            attention,
            tables,
            turn: 0,
            turns: Turns { numbers, style: RopeStyle::Interleaved },
            projected,
            scratch: AttentionScratch::new(device, &shape, path, self.division, [rows, case.context])?,
            out: device.unwritten("outputs", rows * (shape.heads * shape.value) as usize)?,
        })
    }

    fn call(&mut self, ready: &mut Prepared) -> Result<(), DeviceError> {
        let Prepared { attention, tables, turn, turns, projected, scratch, out } = ready;
        let (up, tables) = ((&self.up, &*turns), next(tables, turn));
        let part = Part { tables, first_row: 0 };
        attention.forward(self.device, up, &mut self.cache, part, (projected, scratch), out)
    }

    fn core(&mut self, ready: &mut Prepared) -> Result<(), DeviceError> {
        let Prepared { attention, tables, turn, projected, scratch, out, .. } = ready;
        let part = Part { tables: next(tables, turn), first_row: 0 };
        attention.attend(self.device, &self.cache, part, (projected, scratch), out)
    }

    /// Sequences on blocks from `first` on.
    fn tables(&self, case: &AttentionCase, tiling: Tiling, first: usize) -> Result<Tables, DeviceError> {
        let each = case.context.div_ceil(BLOCK_TOKENS);
        let blocks: Vec<u32> = (first as u32..(first + case.blocks()) as u32).collect();
        let rows = case.query_tokens;
        let segment =
            |(index, blocks)| Segment { first_row: index * rows, rows, start: case.context - rows, blocks };
        let segments: Vec<_> = blocks.chunks_exact(each).enumerate().map(segment).collect();
        Tables::new(self.device, &segments, self.blocks, Some(tiling))
    }
}

/// A case, and what its passes read and write besides the cache.
pub struct Prepared {
    attention: Attention,
    /// By blocks that passes take in turn.
    tables: Vec<Tables>,
    turn: usize,
    turns: Turns,
    projected: Projected,
    scratch: AttentionScratch,
    out: Buffer<bf16>,
}

/// The next pass's sequences, on the blocks that were read longest ago.
fn next<'a>(tables: &'a [Tables], turn: &mut usize) -> &'a Tables {
    *turn = (*turn + 1) % tables.len();
    &tables[*turn]
}

fn noise(len: usize) -> Vec<bf16> {
    let noise: Vec<bf16> = counter_noise(1, len.min(NOISE), 0.5).map(bf16::from_f64).collect();
    noise.iter().copied().cycle().take(len).collect()
}

fn noise_on(device: &Device, what: &str, len: usize) -> Result<Buffer<bf16>, DeviceError> {
    let mut buffer = device.unwritten(what, len)?;
    fill(device, &mut buffer)?;
    Ok(buffer)
}

/// Writes noise once and copies it on the device until the buffer is full.
fn fill(device: &Device, buffer: &mut Buffer<bf16>) -> Result<(), DeviceError> {
    let len = buffer.len();
    let mut filled = len.min(NOISE);
    device.write(buffer, 0, &noise(filled))?;
    while filled < len {
        let more = filled.min(len - filled);
        device.copy(buffer, 0, filled, more)?;
        filled += more;
    }
    Ok(())
}
