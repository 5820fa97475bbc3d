//! What is done row by row, against the same in float64.

use half::bf16;

use super::{counter_noise, held, noise, relative_rms, wide};
use crate::{
    attention::{BLOCK_TOKENS, Segment},
    device::{
        Append, Buffer, Device, DeviceError, Heads, Norm, NormInput, RowKernels, Tables, Weights,
        rows::{EMBED_THREADS, THREADS},
    },
    ops::RopeStyle,
};

/// A kernel, on [`RowTrial::ROWS`] rows of [`RowTrial::WIDTH`] numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowTrial {
    /// Rows of a table.
    Embed,
    /// Norms of chosen rows of the residual stream.
    NormF32,
    /// Norms of rows of a table.
    NormBf16,
    /// Norms in place, unrounded.
    NormUnrounded,
    /// Rotations by position, interleaved.
    Rope,
    /// Writes to the cache.
    Append,
    /// The activation between products.
    Swiglu,
}

/// Where the rows are in their sequence: at the end of page 3, and on in page 1.
const START: usize = BLOCK_TOKENS - 2;
const BLOCKS: [u32; 2] = [3, 1];
const PAGES: usize = 4;
const EPS: f32 = 1e-5;

/// Numbers of the kernel's, and of the reference.
type Both = (Vec<f64>, Vec<f64>);

impl RowTrial {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Embed,
        Self::NormF32,
        Self::NormBf16,
        Self::NormUnrounded,
        Self::Rope,
        Self::Append,
        Self::Swiglu,
    ];
    /// Rows.
    pub const ROWS: usize = 5;
    /// Numbers of a row.
    pub const WIDTH: usize = 328;

    pub(super) fn kernel(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::NormF32 => "rms_norm_f32",
            Self::NormBf16 => "rms_norm_bf16",
            Self::NormUnrounded => "rms_norm_unrounded",
            Self::Rope => "rope",
            Self::Append => "append",
            Self::Swiglu => "swiglu",
        }
    }

    pub(super) fn threads(self) -> u32 {
        (if self == Self::Embed { EMBED_THREADS } else { THREADS }) as u32
    }

    /// Copies are exact. Rounding to bf16 is off by 2^-9 at most, and what comes before it by far less.
    pub(super) fn bound(self) -> f64 {
        match self {
            Self::Embed | Self::Append => 0.0,
            Self::NormUnrounded => 1e-6,
            Self::NormF32 | Self::NormBf16 | Self::Rope | Self::Swiglu => 2.5e-3,
        }
    }

    pub(super) fn run(self, device: &Device, kernels: &RowKernels) -> Result<f64, DeviceError> {
        let (got, expected) = match self {
            Self::Embed => embed(device, kernels),
            Self::NormF32 => norm(device, kernels),
            Self::NormBf16 => norm_of_table(device, kernels),
            Self::NormUnrounded => norm_in_place(device, kernels),
            Self::Rope => rope(device, kernels),
            Self::Append => append(device, kernels),
            Self::Swiglu => swiglu(device, kernels),
        }?;
        Ok(relative_rms(&got, &expected))
    }
}

const ROWS: usize = RowTrial::ROWS;
const WIDTH: usize = RowTrial::WIDTH;

/// As much noise as [`noise`], in f32.
fn unrounded(seed: u64, len: usize) -> Vec<f32> {
    counter_noise(seed, len, 12f64.sqrt() / 2.0).map(|x| x as f32).collect()
}

fn narrow(x: Vec<f32>) -> Vec<f64> {
    x.into_iter().map(f64::from).collect()
}

fn embed(device: &Device, kernels: &RowKernels) -> Result<Both, DeviceError> {
    let (table, tokens) = (noise(1, 10 * WIDTH), [6u32, 0, 3, 3, 9]);
    let weights = Weights::upload(device, "embedding", &table, [1, 10, WIDTH])?;
    let mut out: Buffer<f32> = device.unwritten("rows", ROWS * WIDTH)?;
    kernels.embed(device, &weights, &tokens, &mut out)?;
    let row = |token: u32| wide(&table[token as usize * WIDTH..][..WIDTH]);
    Ok((narrow(device.download(&out, ROWS * WIDTH)?), tokens.into_iter().flat_map(row).collect()))
}

fn normed(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + f64::from(EPS)).sqrt() * w).collect()
}

/// Numbers in f32, and a norm with weights for rows of `width`.
fn weights(device: &Device, width: usize) -> Result<(Vec<f64>, Norm), DeviceError> {
    let weight = unrounded(2, width);
    let norm = Norm { weight: device.upload("norm", &weight)?, eps: EPS };
    Ok((narrow(weight), norm))
}

fn norm(device: &Device, kernels: &RowKernels) -> Result<Both, DeviceError> {
    let (weight, norm) = weights(device, WIDTH)?;
    let x = unrounded(3, ROWS * WIDTH);
    let (wanted, rows) = ([4, 1], device.upload("rows", &x)?);
    let mut out: Buffer<bf16> = device.unwritten("norms", wanted.len() * WIDTH)?;
    kernels.norm(device, &norm, &rows, Err(&wanted), &mut out)?;
    let x = narrow(x);
    let expected = wanted.into_iter().flat_map(|row| normed(&x[row * WIDTH..][..WIDTH], &weight));
    Ok((wide(&device.download(&out, wanted.len() * WIDTH)?), expected.collect()))
}

fn norm_of_table(device: &Device, kernels: &RowKernels) -> Result<Both, DeviceError> {
    let (weight, norm) = weights(device, WIDTH)?;
    let x = noise(8, ROWS * WIDTH);
    let (wanted, rows) = ([2, 0], device.upload("rows", &x)?);
    let mut out: Buffer<bf16> = device.unwritten("norms", wanted.len() * WIDTH)?;
    let whole = Heads { offset: 0, stride: WIDTH, head_stride: 0 };
    kernels.norm_into(device, &norm, NormInput::Bf16(&rows), Err(&wanted), (&mut out, whole))?;
    let x = wide(&x);
    let expected = wanted.into_iter().flat_map(|row| normed(&x[row * WIDTH..][..WIDTH], &weight));
    Ok((wide(&device.download(&out, wanted.len() * WIDTH)?), expected.collect()))
}

/// Part of each row, in place; what is around it stays.
fn norm_in_place(device: &Device, kernels: &RowKernels) -> Result<Both, DeviceError> {
    let (offset, width) = (8, 36);
    let (weight, norm) = weights(device, width)?;
    let x = unrounded(4, ROWS * WIDTH);
    let mut rows = device.upload("rows", &x)?;
    let at = Heads { offset, stride: WIDTH, head_stride: 0 };
    kernels.norm_in_place(device, &norm, &mut rows, at, ROWS)?;
    let mut expected = narrow(x);
    for row in expected.chunks_mut(WIDTH) {
        let norms = normed(&row[offset..][..width], &weight);
        row[offset..][..width].copy_from_slice(&norms);
    }
    Ok((narrow(device.download(&rows, expected.len())?), expected))
}

fn tables(device: &Device) -> Result<Tables, DeviceError> {
    let segment = Segment { first_row: 0, rows: ROWS, start: START, blocks: &BLOCKS };
    Tables::new(device, &[segment], PAGES, None)
}

fn rope(device: &Device, kernels: &RowKernels) -> Result<Both, DeviceError> {
    let (heads, plain, pairs) = (3, 12, 8);
    let at = Heads { offset: 8, stride: WIDTH, head_stride: 32 };
    let angle = |position: usize, pair: usize| position as f64 / 100f64.powf(pair as f64 / pairs as f64);
    let turns: Vec<f32> = (0..START + ROWS)
        .flat_map(|position| (0..pairs).map(move |pair| angle(position, pair)))
        .flat_map(|angle| [angle.cos() as f32, angle.sin() as f32])
        .collect();
    let (x, turns) = (unrounded(5, ROWS * WIDTH), device.upload("angles", &turns)?);
    let (rows, around) = (device.upload("rows", &x)?, noise(9, ROWS * WIDTH));
    let mut out = device.upload("rounded", &around)?;
    let turn = (&turns, pairs, RopeStyle::Interleaved);
    kernels.rope(device, &tables(device)?, turn, [heads, plain], (&rows, at), (&mut out, None))?;
    // What is around the heads stays.
    let mut expected = wide(&around);
    for (row, (to, x)) in expected.chunks_mut(WIDTH).zip(narrow(x).chunks(WIDTH)).enumerate() {
        for head in 0..heads {
            let first = at.offset + head * at.head_stride;
            to[first..][..plain].copy_from_slice(&x[first..][..plain]);
            for pair in 0..pairs {
                let place = first + plain + 2 * pair;
                let ((sin, cos), [a, b]) = (angle(START + row, pair).sin_cos(), [x[place], x[place + 1]]);
                (to[place], to[place + 1]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
    Ok((wide(&device.download(&out, expected.len())?), expected))
}

fn append(device: &Device, kernels: &RowKernels) -> Result<Both, DeviceError> {
    let (parts, width) = (3, 16);
    let from = Heads { offset: 16, stride: WIDTH, head_stride: 24 };
    let x = noise(6, ROWS * WIDTH);
    let (rows, size) = (device.upload("rows", &x)?, PAGES * parts * BLOCK_TOKENS * width);
    let mut cache = device.upload("cache", &vec![bf16::ZERO; size])?;
    kernels.append(device, &tables(device)?, &rows, Append { from, parts, width }, &mut cache)?;
    let (x, mut expected) = (wide(&x), vec![0.0; size]);
    for (row, part) in (0..ROWS).flat_map(|row| (0..parts).map(move |part| (row, part))) {
        let (page, place) = (BLOCKS[(START + row) / BLOCK_TOKENS] as usize, (START + row) % BLOCK_TOKENS);
        let to = ((page * parts + part) * BLOCK_TOKENS + place) * width;
        let at = row * WIDTH + from.offset + part * from.head_stride;
        expected[to..][..width].copy_from_slice(&x[at..][..width]);
    }
    Ok((wide(&device.download(&cache, size)?), expected))
}

fn swiglu(device: &Device, kernels: &RowKernels) -> Result<Both, DeviceError> {
    let (x, width) = (unrounded(7, ROWS * WIDTH), WIDTH / 2);
    let rows = device.upload("rows", &x)?;
    let mut out: Buffer<bf16> = device.unwritten("activations", ROWS * width)?;
    kernels.swiglu(device, &rows, ROWS, width, &mut out)?;
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let of_row = |row: &[f64]| -> Vec<f64> {
        let (gate, up) = row.split_at(width);
        gate.iter().zip(up).map(|(gate, up)| silu(*gate) * up).collect()
    };
    let expected = narrow(x).chunks(WIDTH).flat_map(of_row).collect();
    Ok((wide(&device.download(&out, ROWS * width)?), expected))
}

impl RowKernels {
    /// As [`Decode::self_test`](crate::device::Decode::self_test), each kernel.
    ///
    /// # Errors
    /// As there.
    pub fn self_test(&self, device: &Device) -> Result<(), DeviceError> {
        RowTrial::ALL.into_iter().try_for_each(|trial| {
            held(device, trial.kernel(), trial.run(device, self)?, trial.bound()).map(drop)
        })
    }
}
