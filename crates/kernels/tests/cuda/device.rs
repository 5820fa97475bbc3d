//! Compiles and launches through cudarc.

use std::sync::Arc;

use cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig,
        PushKernelArg,
        sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_DYNAMIC,
    },
    nvrtc::{CompileOptions, compile_ptx_with_opts},
};
use gqla_fakecuda::Config;
use half::bf16;
use serde_json::Value;

use crate::case::{Case, Noise, PAGE};

const HEADER: &str = include_str!("../../cuda/dev.cuh");
const SOURCE: &str = include_str!("../../cuda/gqa_decode.cu");

/// The kernels' text in one piece.
pub fn source() -> String {
    assert_eq!(SOURCE.matches("#include \"dev.cuh\"").count(), 1);
    SOURCE.replace("#include \"dev.cuh\"", HEADER)
}

/// `Params` of `gqa_decode.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Params {
    q: u64,
    k_nope: u64,
    k_rope: u64,
    v: u64,
    page_table: u64,
    lengths: u64,
    partial: u64,
    partial_lse: u64,
    out: u64,
    batch: i32,
    s_q: i32,
    heads: i32,
    groups: i32,
    table_width: i32,
    splits: i32,
    pages_per_split: i32,
    scale_log2: f32,
}

// SAFETY: plain numbers, laid out as the kernel's struct.
unsafe impl DeviceRepr for Params {}

/// One device with kernels compiled for some head dimensions.
pub struct Device {
    stream: Arc<CudaStream>,
    decode: CudaFunction,
    merge: CudaFunction,
    warps: usize,
}

/// What a step gave and what it took.
pub struct Outcome {
    /// Per sequence, `[s_q, heads, value]`; the error when a kernel failed.
    pub out: Result<Vec<Vec<f64>>, DriverError>,
    /// Reports of both launches, as far as they ran.
    pub reports: Vec<Value>,
    /// Bytes read of k_nope, k_rope and v.
    pub read: [u64; 3],
}

impl Device {
    /// Compiles `source` for the case's head dimensions and rows.
    pub fn new(ordinal: usize, source: &str, case: &Case) -> Self {
        let [nope, rope, value] = case.dims;
        let options = CompileOptions {
            options: vec![
                "--gpu-architecture=compute_80".into(),
                "--std=c++17".into(),
                format!("-DD_NOPE={nope}"),
                format!("-DD_ROPE={rope}"),
                format!("-DD_V={value}"),
            ],
            ..Default::default()
        };
        let ptx = compile_ptx_with_opts(source, options).unwrap();
        let context = CudaContext::new(ordinal).unwrap();
        let module = context.load_module(ptx).unwrap();
        let (name, warps) = match case.rows() {
            ..=16 => ("gqa_decode_rows16", 4),
            17..=32 => ("gqa_decode_rows32", 8),
            _ => ("gqa_decode_rows64", 8),
        };
        let function = |name: &str| module.load_function(name).unwrap();
        Self { stream: context.default_stream(), decode: function(name), merge: function("gqa_merge"), warps }
    }

    /// Runs one step. Only what the sequences own is ever written: tokens beyond their end, pages of nobody and splits
    /// that are not there may not be read.
    pub fn run(&self, case: &Case) -> Outcome {
        let [nope, rope, value] = case.dims;
        let (batch, groups, splits) = (case.lengths.len(), case.groups, case.splits());
        let table_width = (0..batch).map(|i| case.pages(i)).max().unwrap();
        let pages = (0..batch).map(|i| case.pages(i)).sum::<usize>() + 2;
        let mut free = Noise::new(99).shuffled(pages).into_iter();
        let mut table = vec![-1i32; batch * table_width];
        let mut k_nope = self.unwritten::<bf16>(pages * groups * PAGE * nope);
        let mut k_rope = self.unwritten::<bf16>(pages * PAGE * rope);
        let mut v = self.unwritten::<bf16>(pages * groups * PAGE * value);
        let mut q = Vec::new();
        for index in 0..batch {
            let sequence = case.sequence(index);
            q.extend(sequence.q);
            for i in 0..case.pages(index) {
                let page = free.next().unwrap();
                table[index * table_width + i] = page as i32;
                let (first, end) = (i * PAGE, ((i + 1) * PAGE).min(case.lengths[index]));
                self.write(&mut k_rope, page * PAGE * rope, &sequence.k_rope[first * rope..end * rope]);
                for group in 0..groups {
                    let place = (page * groups + group) * PAGE;
                    self.write(&mut k_nope, place * nope, &sequence.k_nope[group][first * nope..end * nope]);
                    self.write(&mut v, place * value, &sequence.v[group][first * value..end * value]);
                }
            }
        }
        let lengths: Vec<i32> = case.lengths.iter().map(|length| *length as i32).collect();
        let (q, table, lengths) = (self.upload(&q), self.upload(&table), self.upload(&lengths));
        let rows = batch * case.s_q * case.heads;
        let (partial, lse) =
            (self.unwritten::<f32>(splits * rows * value), self.unwritten::<f32>(splits * rows));
        let out = self.unwritten::<bf16>(rows * value);
        let params = Params {
            q: self.address(&q),
            k_nope: self.address(&k_nope),
            k_rope: self.address(&k_rope),
            v: self.address(&v),
            page_table: self.address(&table),
            lengths: self.address(&lengths),
            partial: self.address(&partial),
            partial_lse: self.address(&lse),
            out: self.address(&out),
            batch: batch as i32,
            s_q: case.s_q as i32,
            heads: case.heads as i32,
            groups: groups as i32,
            table_width: table_width as i32,
            splits: splits as i32,
            pages_per_split: case.pages_per_split as i32,
            scale_log2: (std::f64::consts::LOG2_E / ((nope + rope) as f64).sqrt()) as f32,
        };
        let already = reports().len();
        let launched = self.launch(&params, case).and_then(|()| self.stream.clone_dtoh(&out));
        let reports = reports().split_off(already);
        let read = [params.k_nope, params.k_rope, params.v].map(|buffer| {
            reports
                .iter()
                .map(|report| report["buffers"][buffer.to_string()]["read"].as_u64().unwrap_or(0))
                .sum()
        });
        let by_sequence = |out: Vec<bf16>| {
            let of_sequence = case.s_q * case.heads * value;
            out.chunks(of_sequence).map(|chunk| chunk.iter().map(|x| x.to_f64()).collect()).collect()
        };
        Outcome { out: launched.map(by_sequence), reports, read }
    }

    fn launch(&self, params: &Params, case: &Case) -> Result<(), DriverError> {
        let [nope, rope, value] = case.dims;
        let (two_pages, sums) = (2 * PAGE * (nope + rope + value) * 2, self.warps * 16 * (value + 4 + 2) * 4);
        let shared_mem_bytes = two_pages.max(sums) as u32;
        self.decode.set_attribute(MAX_DYNAMIC, shared_mem_bytes as i32)?;
        let grid_dim = (params.splits as u32, case.groups as u32, case.lengths.len() as u32);
        let decode = LaunchConfig { grid_dim, block_dim: (32 * self.warps as u32, 1, 1), shared_mem_bytes };
        let rows = (case.lengths.len() * case.s_q * case.heads) as u32;
        let merge =
            LaunchConfig { grid_dim: (rows.div_ceil(4), 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
        for (function, config) in [(&self.decode, decode), (&self.merge, merge)] {
            // SAFETY: the kernels take these parameters, and the buffers are as large as they say.
            unsafe { self.stream.launch_builder(function).arg(params).launch(config) }?;
        }
        Ok(())
    }

    fn unwritten<T: DeviceRepr>(&self, count: usize) -> CudaSlice<T> {
        // SAFETY: the stand-in tells whoever reads what nobody wrote.
        unsafe { self.stream.alloc(count) }.unwrap()
    }

    fn upload<T: DeviceRepr>(&self, numbers: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(numbers).unwrap()
    }

    fn write(&self, to: &mut CudaSlice<bf16>, at: usize, numbers: &[bf16]) {
        self.stream.memcpy_htod(numbers, &mut to.slice_mut(at..at + numbers.len())).unwrap();
    }

    fn address<T>(&self, slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(&self.stream).0
    }
}

/// All launches so far.
fn reports() -> Vec<Value> {
    let text = std::fs::read_to_string(std::env::var(Config::REPORT_ENV).unwrap()).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Relative root mean square error of all sequences; not a number counts as infinite.
pub fn error_of(out: &[Vec<f64>], case: &Case) -> f64 {
    let (mut off, mut all) = (0.0, 0.0);
    for (index, got) in out.iter().enumerate() {
        for (got, expected) in got.iter().zip(case.expected(index)) {
            off += (got - expected).powi(2);
            all += expected.powi(2);
        }
    }
    let error: f64 = f64::sqrt(off / all);
    if error.is_nan() { f64::INFINITY } else { error }
}
