//! Runs a step on the device, and tells what it took.

use gqla_fakecuda::Config;
use gqla_kernels::{
    attention::Segment,
    device::{
        Buffer, Decode, DecodeCache, DecodeInputs, DecodePlan, Device, DeviceError, Images, Loaded, Program,
        Tables,
    },
};
use half::bf16;
use serde_json::Value;

use crate::case::{Case, Noise, PAGE};

/// One device with kernels loaded for some head dimensions.
pub struct Bench {
    device: Device,
    loaded: Loaded,
}

/// What a step gave and what it took.
pub struct Outcome {
    /// What the device's limits chose for it.
    pub plan: DecodePlan,
    /// Per sequence, `[s_q, heads, value]`; the error when a kernel failed.
    pub out: Result<Vec<Vec<f64>>, DeviceError>,
    /// Reports of both launches, as far as they ran.
    pub reports: Vec<Value>,
    /// Bytes read of keys, rope keys and values.
    pub read: [u64; 3],
}

/// A case's kernels.
pub fn program(case: &Case) -> Program {
    Program::decode(&case.shape(), case.path)
}

impl Bench {
    pub fn new(ordinal: usize, program: &Program) -> Self {
        let device = Device::open(ordinal).unwrap();
        let loaded = Images::default().load(&device, program).unwrap();
        Self { device, loaded }
    }

    pub fn of(case: &Case) -> Self {
        Self::on(0, case)
    }

    pub fn on(ordinal: usize, case: &Case) -> Self {
        Self::new(ordinal, &program(case))
    }

    fn plan(&self, case: &Case) -> DecodePlan {
        case.plan(self.device.limits())
    }

    pub fn self_test(&self, case: &Case) -> Result<f64, DeviceError> {
        let decode = Decode::new(&self.loaded, case.shape(), self.plan(case))?;
        decode.self_test(&self.device)
    }

    /// Runs one step. Only what the sequences own is ever written: tokens beyond their end, pages of nobody and splits
    /// that are not there may not be read.
    pub fn run(&self, case: &Case) -> Outcome {
        self.run_in(case, None).unwrap()
    }

    /// The same in tables with room for steps of so many rows and sequences of so many tokens, where another step was before.
    pub fn run_in(&self, case: &Case, room: Option<[usize; 2]>) -> Result<Outcome, DeviceError> {
        let (shape, device) = (case.shape(), &self.device);
        let plan = self.plan(case);
        let decode = Decode::new(&self.loaded, shape, plan).unwrap();
        let batch = case.lengths.len();
        let pages = (0..batch).map(|i| case.pages(i)).sum::<usize>() + 2;
        let mut free = Noise::new(99).shuffled(pages).into_iter().map(|page| page as u32);
        let blocks: Vec<Vec<u32>> = (0..batch).map(|i| free.by_ref().take(case.pages(i)).collect()).collect();
        let mut cache = DecodeCache::new(device, &shape, case.path, pages).unwrap();
        let mut q = Vec::new();
        for (index, blocks) in blocks.iter().enumerate() {
            q.extend(self.fill(case, index, blocks, &mut cache));
        }
        let segments: Vec<_> = (0..batch)
            .map(|i| Segment {
                first_row: i * case.s_q,
                rows: case.s_q,
                start: case.lengths[i] - case.s_q,
                blocks: &blocks[i],
            })
            .collect();
        let tiling = decode.tiling(case.splits);
        let longest = case.lengths.iter().copied().max().unwrap();
        let (tables, [rows, longest]) = match room {
            None => (Tables::new(device, &segments, pages, Some(tiling))?, [batch * case.s_q, longest]),
            Some(room) => {
                let mut tables = Tables::room(device, tiling, room)?;
                let before = Segment { first_row: 0, rows: room[0], start: 0, blocks: &blocks[0] };
                tables.set(device, &[before], pages)?;
                tables.set(device, &segments, pages)?;
                (tables, room)
            }
        };
        let of_row = case.heads * case.dims[2];
        let mut out: Buffer<bf16> = device.unwritten("out", tables.rows() * of_row).unwrap();
        let q_stride = q.len() / tables.rows();
        let q = device.upload("queries", &q).unwrap();
        let already = reports().len();
        let partial = Decode::partial_numbers(&shape, case.path, case.splits, rows, longest);
        let mut partial = device.unwritten("splits", partial).unwrap();
        let inputs = DecodeInputs {
            q: &q,
            q_offset: 0,
            q_stride,
            partial: &mut partial,
            out: &mut out,
            out_offset: 0,
        };
        let launched = decode
            .launch(device, &cache, &tables, inputs)
            .and_then(|()| device.download(&out, tables.rows() * of_row));
        let reports = reports().split_off(already);
        let read = cache.addresses().map(|address| {
            reports
                .iter()
                .map(|report| report["buffers"][address.to_string()]["read"].as_u64().unwrap_or(0))
                .sum()
        });
        let by_sequence = |out: Vec<bf16>| {
            out.chunks(case.s_q * of_row).map(|chunk| chunk.iter().map(|x| x.to_f64()).collect()).collect()
        };
        Ok(Outcome { plan, out: launched.map(by_sequence), reports, read })
    }

    /// Writes a sequence's tokens to its pages and gives its queries.
    fn fill(&self, case: &Case, index: usize, blocks: &[u32], cache: &mut DecodeCache) -> Vec<bf16> {
        let [nope, rope, value] = case.dims;
        let sequence = case.sequence(index);
        let write = |to: &mut Buffer<bf16>, at: usize, numbers: &[bf16]| {
            self.device.write(to, at, numbers).unwrap();
        };
        for (i, page) in blocks.iter().enumerate() {
            let (page, first, end) = (*page as usize, i * PAGE, ((i + 1) * PAGE).min(case.lengths[index]));
            match cache {
                DecodeCache::Gqa { keys, rope_keys, values } => {
                    write(rope_keys, page * PAGE * rope, &sequence.k_rope[first * rope..end * rope]);
                    for group in 0..case.groups {
                        let place = (page * case.groups + group) * PAGE;
                        write(keys, place * nope, &sequence.k_nope[group][first * nope..end * nope]);
                        write(values, place * value, &sequence.v[group][first * value..end * value]);
                    }
                }
                DecodeCache::Absorb { latents } => {
                    let rows: Vec<bf16> = (first..end)
                        .flat_map(|token| {
                            let latent = &sequence.k_nope[0][token * nope..][..nope];
                            [latent, &sequence.k_rope[token * rope..][..rope]].concat()
                        })
                        .collect();
                    write(latents, page * PAGE * (nope + rope), &rows);
                }
            }
        }
        sequence.q
    }
}

/// All launches so far.
pub fn reports() -> Vec<Value> {
    let text = std::fs::read_to_string(std::env::var(Config::REPORT_ENV).unwrap()).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Relative root mean square error of the sequence that is furthest off, which others must not hide; not a number counts as
/// infinite.
pub fn error_of(out: &[Vec<f64>], case: &Case) -> f64 {
    assert_eq!(out.len(), case.lengths.len(), "{case:?}");
    let of_sequence = |(index, got): (usize, &Vec<f64>)| {
        let (mut off, mut all) = (0.0, 0.0);
        for (got, expected) in got.iter().zip(case.expected(index)) {
            off += (got - expected).powi(2);
            all += expected.powi(2);
        }
        let error: f64 = f64::sqrt(off / all);
        if error.is_nan() { f64::INFINITY } else { error }
    };
    out.iter().enumerate().map(of_sequence).fold(0.0, f64::max)
}
