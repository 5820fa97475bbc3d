//! Every kernel on a small problem whose answer is known: what shows that a card computes as the float64 references do, and
//! what traffic and multiplications are counted on.

mod decode;
mod experts;
mod product;
mod row;
mod sample;

use std::{collections::BTreeMap, ops::RangeInclusive};

use gqla_model::{AttentionShape, DecodePath};
use half::bf16;

pub use decode::DecodeTrial;
pub use experts::ExpertTrial;
pub use product::{ProductTrial, Sum};
pub use row::RowTrial;
pub use sample::SampleTrial;

use super::{
    Decode, DecodePlan, DecodeShape, Device, DeviceError, ExpertKernels, Gemm, ImageSource, Images, Loaded,
    NoKernel, Program, PromptGemm, Resources, RowKernels, SampleKernel, Splits, decode::MERGE_WARPS, gemm,
    plan_decode, sample::THREADS as SAMPLE_THREADS,
};
use crate::{attention::BLOCK_TOKENS, reference::counter_noise};

/// Query tokens of a sequence: one, and one to three drafts.
const QUERIES: RangeInclusive<usize> = 1..=4;
/// Pages follow each other within a split, and splits are merged.
const SPLITS: Splits = Splits { least_pages: 2, most: 32 };

/// Whether a problem fills its tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Pages, rows and columns of which the last tile has only some: what kernels must get right.
    Ragged,
    /// Whole pages, and whole tiles where the shape allows: what has a least traffic without rounding up.
    Whole,
}

/// A kernel, and the numbers it is tried on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trial {
    /// Attention over a cache.
    Decode(DecodeTrial),
    /// A product of matrices.
    Product(ProductTrial),
    /// A mixture of experts.
    Experts(ExpertTrial),
    /// What is done row by row.
    Row(RowTrial),
    /// Tokens chosen from logits.
    Sample(SampleTrial),
}

/// What a trial gave.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Root of the mean square error, relative to that of the reference; not a number when the result has one.
    pub error: f64,
    /// The largest error that bf16 explains.
    pub bound: f64,
    /// The step that gave the image.
    pub source: ImageSource,
    /// Kernels in the order in which they were launched.
    pub launched: Vec<Launched>,
    /// Addresses of keys, rope keys and values, or of latents; none but for attention.
    pub cache: Vec<u64>,
}

impl Outcome {
    /// Whether the kernel computes what the reference does.
    pub fn is_right(&self) -> bool {
        self.error <= self.bound
    }
}

/// A kernel as it was launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Its name.
    pub kernel: String,
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block, bytes: declared and added by the launch.
    pub shared_bytes: u32,
    /// What a thread takes, from the driver or else from NVRTC's assembler; `None` where neither tells.
    pub resources: Option<Resources>,
}

impl Trial {
    /// All kernels, those of attention for every shape, path and number of query tokens.
    pub fn all(shapes: &[AttentionShape], extent: Extent) -> Vec<Self> {
        let tokens = match extent {
            Extent::Ragged => 3 * BLOCK_TOKENS + 7,
            Extent::Whole => 5 * BLOCK_TOKENS,
        };
        let of_shape = |shape: &AttentionShape| {
            let shape = DecodeShape::of(shape);
            let of_path = move |path| {
                QUERIES.map(move |queries| Self::Decode(DecodeTrial { shape, path, queries, tokens }))
            };
            DecodePath::ALL.into_iter().flat_map(of_path)
        };
        let products = ProductTrial::all(extent).into_iter().map(Self::Product);
        let experts = ExpertTrial::all(extent).into_iter().map(Self::Experts);
        let rows = RowTrial::ALL.into_iter().map(Self::Row);
        shapes
            .iter()
            .flat_map(of_shape)
            .chain(products)
            .chain(experts)
            .chain(rows)
            .chain([Self::Sample(SampleTrial)])
            .collect()
    }

    /// Prompts' products by cuBLASLt, which has to be there.
    pub fn by_cublaslt() -> [Self; 3] {
        ProductTrial::by_cublaslt().map(Self::Product)
    }

    /// The kernels that it takes one of.
    pub fn program(&self) -> Program {
        match self {
            Self::Decode(trial) => Program::decode(&trial.shape, trial.path),
            Self::Product(_) => Program::gemm(),
            Self::Experts(_) => Program::experts(),
            Self::Row(_) => Program::rows(),
            Self::Sample(_) => Program::sample(),
        }
    }

    /// The kernel that does it on `device`, the one that multiplies where there are several, and for attention its plan.
    ///
    /// # Errors
    /// When the device has room for none.
    pub fn kernel(&self, device: &Device) -> Result<(String, Option<DecodePlan>), NoKernel> {
        Ok(match self {
            Self::Decode(trial) => {
                let queries = u32::try_from(trial.queries).unwrap_or(u32::MAX);
                let plan = plan_decode(&trial.shape, trial.path, queries, device.limits())?;
                (plan.decode.to_owned(), Some(plan))
            }
            Self::Product(trial) => (trial.kernel().0, None),
            Self::Experts(trial) => (trial.kernels()[3].0.clone(), None),
            Self::Row(trial) => (trial.kernel().to_owned(), None),
            Self::Sample(_) => ("sample".to_owned(), None),
        })
    }
}

/// A device, and the programs that trials have loaded on it.
pub struct Bench<'a> {
    device: &'a Device,
    images: &'a Images,
    programs: BTreeMap<String, Loaded>,
    /// By program, then kernel.
    assembled: BTreeMap<String, BTreeMap<String, Resources>>,
}

impl<'a> Bench<'a> {
    /// Nothing is loaded yet.
    pub fn new(device: &'a Device, images: &'a Images) -> Self {
        Self { device, images, programs: BTreeMap::new(), assembled: BTreeMap::new() }
    }

    /// Runs a trial.
    ///
    /// # Errors
    /// When the device has no kernel for it, no image loads, or the device fails.
    pub fn run(&mut self, trial: &Trial) -> Result<Outcome, DeviceError> {
        let (kernel, plan) = trial.kernel(self.device)?;
        let program = trial.program();
        let device = self.device;
        let loaded = self.load(&program)?;
        let source = loaded.source;
        let tried = |error, bound, launched| Outcome { error, bound, source, launched, cache: Vec::new() };
        Ok(match (trial, plan) {
            (Trial::Decode(trial), Some(plan)) => {
                let decode = Decode::new(loaded, trial.shape, plan)?;
                let attended = trial.run(device, &decode)?;
                let launched = vec![
                    self.launched(&program, plan.decode, plan.threads, plan.shared_bytes)?,
                    self.launched(&program, plan.merge, 32 * MERGE_WARPS, 0)?,
                ];
                let buffers = if trial.path == DecodePath::Gqa { 3 } else { 1 };
                let cache = attended.cache[..buffers].to_vec();
                Outcome { cache, ..tried(attended.error, decode::MAX_ERROR, launched) }
            }
            (Trial::Product(trial @ ProductTrial { by: PromptGemm::CublasLt, .. }), _) => {
                let gemm = Gemm::new(loaded)?.with_cublaslt(device)?;
                tried(trial.run(device, &gemm)?, trial.bound(), Vec::new())
            }
            (Trial::Product(trial), _) => {
                let error = trial.run(device, &Gemm::new(loaded)?)?;
                tried(
                    error,
                    trial.bound(),
                    vec![self.launched(&program, &kernel, gemm::THREADS, trial.kernel().1)?],
                )
            }
            (Trial::Experts(trial), _) => {
                let error = trial.run(device, &ExpertKernels::new(loaded)?)?;
                let launched = trial
                    .kernels()
                    .iter()
                    .map(|(kernel, threads, shared)| self.launched(&program, kernel, *threads, *shared))
                    .collect::<Result<_, _>>()?;
                tried(error, ExpertTrial::BOUND, launched)
            }
            (Trial::Row(trial), _) => {
                let error = trial.run(device, &RowKernels::new(loaded)?)?;
                tried(error, trial.bound(), vec![self.launched(&program, &kernel, trial.threads(), 0)?])
            }
            (Trial::Sample(trial), _) => {
                let error = trial.run(device, &SampleKernel::new(loaded)?)?;
                let launched = vec![self.launched(&program, &kernel, SAMPLE_THREADS, 0)?];
                tried(error, SampleTrial::BOUND, launched)
            }
            (Trial::Decode(_), None) => return Err(DeviceError::arguments("decode", "there is no plan")),
        })
    }

    fn load(&mut self, program: &Program) -> Result<&Loaded, DeviceError> {
        let stem = program.stem();
        if !self.programs.contains_key(&stem) {
            self.programs.insert(stem.clone(), self.images.load(self.device, program)?);
        }
        Ok(&self.programs[&stem])
    }

    fn launched(
        &mut self,
        program: &Program,
        kernel: &str,
        threads: u32,
        added: u32,
    ) -> Result<Launched, DeviceError> {
        let loaded = self.load(program)?;
        let shared_bytes = loaded.declared_shared(kernel)? + added;
        let told = loaded.resources(kernel)?;
        let resources = told.or_else(|| self.assembled(program).get(kernel).copied());
        Ok(Launched { kernel: kernel.to_owned(), threads, shared_bytes, resources })
    }

    fn assembled(&mut self, program: &Program) -> &BTreeMap<String, Resources> {
        let loaded = self.programs.get(&program.stem());
        self.assembled
            .entry(program.stem())
            .or_insert_with(|| loaded.map(Loaded::assembled).unwrap_or_default())
    }
}

/// The error, unless it is above what rounding explains.
fn held(device: &Device, kernel: &str, error: f64, bound: f64) -> Result<f64, DeviceError> {
    // A result that is not a number is no pass either.
    if error <= bound {
        return Ok(error);
    }
    let (kernel, device) = (kernel.to_owned(), device.name().to_owned());
    Err(DeviceError::SelfTest { kernel, device, error, bound })
}

/// Numbers of variance 1, evenly spread.
fn noise(seed: u64, len: usize) -> Vec<bf16> {
    counter_noise(seed, len, 12f64.sqrt() / 2.0).map(bf16::from_f64).collect()
}

fn wide(x: &[bf16]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Root of the mean square error, relative to that of what was expected.
fn relative_rms(got: &[f64], expected: &[f64]) -> f64 {
    let off: f64 = got.iter().zip(expected).map(|(x, y)| (x - y).powi(2)).sum();
    (off / expected.iter().map(|y| y * y).sum::<f64>()).sqrt()
}
