//! `gqla bench attn`: one layer's decode attention along both paths, as the engine runs it.

pub(super) mod grid;
mod view;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use gqla_engine::cpu::measure::{AttentionCase, Figure, PassTimes};
use gqla_model::{AttentionShape, DecodePath};
use gqla_planner::{Calibration, GpuSpec, KernelFit, Runtime, Timed, TimedPass};

use super::{
    machine::VERSION,
    place::{Place, PlaceArgs},
};
use crate::{model, table::TableFormat};

/// Time decode attention along both paths over batches, contexts and query tokens, of all heads and of few.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A built-in shape such as deepseek-v3-gqla, a checkpoint, or its config.json
    #[arg(long, value_name = "SHAPE|PATH", default_value = "llama-3-8b-gqla")]
    model: String,
    /// Sequences per step, with commas between
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4")]
    batch: Vec<usize>,
    /// Cached tokens per sequence, with commas between
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "1024,4096")]
    context: Vec<usize>,
    /// Query tokens per sequence, with commas between
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4")]
    s_q: Vec<usize>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Time to measure for; a pass under way when it is up still ends
    #[arg(long, value_name = "N", default_value = "20", value_parser = super::seconds)]
    seconds: Duration,
    /// Memory that caches and activations may take
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..))]
    memory_mib: u32,
    /// Write the calibration here too
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Output format: json is a calibration [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// Measures and prints.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let shape = model::resolve(&args.model)?.attention;
    let cases = grid::cases(&args.batch, &args.context, &args.s_q)?;
    let memory = u64::from(args.memory_mib) << 20;
    let scratch = |path, case: &AttentionCase| args.place.scratch_bytes(&shape, path, case);
    grid::check_memory(&shape, args.place.cache_format(), &cases, (memory, scratch))?;
    let place = args.place.measure(memory, args.seconds / HOST_SHARE)?;
    let time = args.seconds - args.seconds / HOST_SHARE;
    let layer = Layer { model: &args.model, shape: &shape, cases: &cases, memory };
    let bench = layer.measure(&*place, time)?;
    let calibration = bench.calibration()?;
    if let Some(file) = &args.calibration {
        std::fs::write(file, serde_json::to_vec_pretty(&calibration)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    TableFormat::or_default(args.output).print(&calibration, |_| view::table(&bench))?;
    Ok(())
}

/// What is timed: a layer of a model over some passes, in so many bytes at most.
pub(crate) struct Layer<'a> {
    pub model: &'a str,
    pub shape: &'a AttentionShape,
    pub cases: &'a [AttentionCase],
    pub memory: u64,
}

/// What was measured.
pub(crate) struct Bench<'a> {
    place: &'a dyn Place,
    gpu: GpuSpec,
    paths: Vec<PathBench>,
    /// Passes that time did not suffice for.
    left_out: usize,
}

/// One path's part of it.
struct PathBench {
    times: PathTimes,
    fit: KernelFit,
}

/// The times of one path.
pub(crate) struct PathTimes {
    path: DecodePath,
    /// Seconds of a pass with next to nothing to read.
    floor: f64,
    /// The largest.
    cache_bytes: u64,
    passes: Vec<Pass>,
}

/// A pass of a layer of this shape.
#[derive(Clone, Copy)]
struct Pass {
    shape: AttentionShape,
    case: AttentionCase,
    times: PassTimes,
}

/// A pass with next to nothing to read.
const FLOOR: AttentionCase = AttentionCase { batch: 1, context: 1, query_tokens: 1 };
/// Share of the time that measuring the place takes, and that the floors take.
pub(super) const HOST_SHARE: u32 = 8;
const FLOOR_SHARE: u32 = 50;

impl Layer<'_> {
    /// Times both paths for about `time` and fits what they reach.
    pub(crate) fn measure<'a>(&self, place: &'a dyn Place, time: Duration) -> anyhow::Result<Bench<'a>> {
        self.fit(place, &[self.time(place, time)?])
    }

    /// Times both paths for about `time`.
    pub(super) fn time(&self, place: &dyn Place, time: Duration) -> anyhow::Result<Vec<PathTimes>> {
        let (deadline, mut paths) = (Instant::now() + time, Vec::new());
        for (index, path) in DecodePath::ALL.into_iter().enumerate() {
            let shares = u32::try_from(DecodePath::ALL.len() - index).unwrap_or(1);
            let ends = Instant::now() + deadline.saturating_duration_since(Instant::now()) / shares;
            paths.push(self.time_path(place, path, ends, time / FLOOR_SHARE)?);
        }
        Ok(paths)
    }

    fn time_path(
        &self,
        place: &dyn Place,
        path: DecodePath,
        ends: Instant,
        floor_time: Duration,
    ) -> anyhow::Result<PathTimes> {
        let Self { cases, memory, .. } = *self;
        let (format, shapes) = (place.cache_format(), grid::shapes(self.shape));
        let last_level_cache = place.last_level_cache().unwrap_or(0);
        let (mut floor, mut cache_bytes, mut passes) = (f64::INFINITY, 0, Vec::new());
        for shape in &shapes {
            let blocks = grid::blocks(shape, path, format, cases, memory, last_level_cache);
            let mut timer = place.timer(shape, path, blocks)?;
            floor = floor.min(timer.time(&FLOOR, floor_time)?.core.median);
            cache_bytes = cache_bytes.max(blocks as u64 * grid::block_bytes(shape, path, format));
            for case in cases {
                let left = ends.saturating_duration_since(Instant::now());
                // Without any pass there is nothing to report.
                if left.is_zero() && !passes.is_empty() {
                    break;
                }
                let to_come = shapes.len() * cases.len() - passes.len();
                passes.push(Pass {
                    shape: *shape,
                    case: *case,
                    times: timer.time(case, left / u32::try_from(to_come).unwrap_or(u32::MAX))?,
                });
            }
        }
        Ok(PathTimes { path, floor, cache_bytes, passes })
    }

    /// What paths reach of the place's rates, by what all `rounds` amount to.
    pub(super) fn fit<'a>(
        &self,
        place: &'a dyn Place,
        rounds: &[Vec<PathTimes>],
    ) -> anyhow::Result<Bench<'a>> {
        let (gpu, mut paths) = (place.gpu()?, Vec::new());
        for path in DecodePath::ALL {
            let rounds: Vec<_> = rounds.iter().flatten().filter(|times| times.path == path).collect();
            let times = PathTimes::of_rounds(path, &rounds);
            paths.push(PathBench { fit: self.fit_path(place, &gpu, &times)?, times });
        }
        let timed: usize = paths.iter().map(|path| path.times.passes.len()).sum();
        let all = paths.len() * self.cases.len() * grid::shapes(self.shape).len();
        Ok(Bench { place, gpu, paths, left_out: all - timed })
    }

    fn fit_path(&self, place: &dyn Place, gpu: &GpuSpec, times: &PathTimes) -> anyhow::Result<KernelFit> {
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let timed = |Pass { shape, case, times }: &Pass| TimedPass {
            shape: *shape,
            query_tokens: count(case.query_tokens),
            batch: count(case.batch),
            context: count(case.context),
            ns: times.core.median * 1e9,
        };
        let PathTimes { path, floor, passes, .. } = times;
        let samples = passes.iter().fold(0, |sum: u32, pass| sum.saturating_add(pass.times.core.samples));
        let provenance = place.provenance(format!("gqla bench attn on {}", self.model), samples);
        let what = Timed {
            shape: self.shape,
            path: *path,
            gpu,
            cache_format: place.cache_format(),
            runtime: Runtime::Native,
            build: VERSION,
            floor_us: floor * 1e6,
            tile_rows: place.tile_rows(),
        };
        Ok(what.fit(&passes.iter().map(timed).collect::<Vec<_>>(), &provenance)?)
    }
}

impl PathTimes {
    /// What rounds over the same passes amount to. Passes that time did not suffice for are missing at a round's end.
    fn of_rounds(path: DecodePath, rounds: &[&Self]) -> Self {
        let most = rounds.iter().map(|round| round.passes.len()).max().unwrap_or(0);
        let passes = (0..most).filter_map(|index| {
            let of_rounds: Vec<_> = rounds.iter().filter_map(|round| round.passes.get(index)).collect();
            let figure = |of: fn(&PassTimes) -> Figure| {
                Figure::of_rounds(&of_rounds.iter().map(|pass| of(&pass.times)).collect::<Vec<_>>())
            };
            let times = PassTimes { core: figure(|times| times.core), call: figure(|times| times.call) };
            Some(Pass { times, ..**of_rounds.first()? })
        });
        Self {
            path,
            floor: rounds.iter().map(|round| round.floor).fold(f64::INFINITY, f64::min),
            cache_bytes: rounds.iter().map(|round| round.cache_bytes).max().unwrap_or(0),
            passes: passes.collect(),
        }
    }
}

impl Bench<'_> {
    /// The place's rates and an entry per path whose shares are of these rates.
    pub(crate) fn calibration(&self) -> anyhow::Result<Calibration> {
        let kernels = self.paths.iter().map(|path| path.fit.kernel.clone()).collect();
        Ok(Calibration { kernels, ..self.place.calibration()? })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use gqla_engine::cpu::{InstructionSet, Pool};
    use gqla_planner::{CPU_CLASS, ModelName, shape};

    use super::*;
    use crate::bench::place::Processor;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// Whatever the machine has: a card the catalogue knows, or a sentence.
    #[test]
    fn without_a_gpu_cuda_is_refused_in_a_sentence() {
        let args = Line::try_parse_from(["attn", "--device", "cuda", "--seconds", "0.1"]).unwrap().args;
        if let Err(error) = run(&args) {
            let sentence = error.to_string();
            let expected = [
                "libcuda.so.1 is not on this machine",
                "CUDA device 0 cannot be opened",
                "the catalogue has no class",
            ];
            assert!(expected.iter().any(|start| sentence.starts_with(start)), "{sentence}");
        }
    }

    #[test]
    fn too_much_is_refused_before_anything_is_allocated() {
        let line = ["attn", "--batch", "64", "--context", "131072"];
        let sentence = run(&Line::try_parse_from(line).unwrap().args).unwrap_err().to_string();
        assert!(sentence.contains("--memory-mib 1024"), "{sentence}");
    }

    #[test]
    fn both_paths_are_timed_fitted_and_shown() {
        let pool = Pool::new(Some(2)).unwrap();
        let shape = shape(ModelName::Smollm2135mGqla).attention;
        let cases = grid::cases(&[1, 2], &[64], &[1]).unwrap();
        let time = Duration::from_millis(50);
        let place = Processor::measure(pool, 16 << 20, time);
        let layer = Layer { model: "smollm2-135m-gqla", shape: &shape, cases: &cases, memory: 16 << 20 };
        let bench = layer.measure(&place, time).unwrap();
        let calibration = bench.calibration().unwrap();
        calibration.validate().unwrap();
        let paths: Vec<_> = calibration.kernels.iter().map(|kernel| kernel.path).collect();
        assert_eq!(paths, DecodePath::ALL);
        for kernel in &calibration.kernels {
            assert_eq!((kernel.gpu.as_str(), kernel.runtime), (CPU_CLASS, Runtime::Native));
            assert!(kernel.provenance.build.ends_with(InstructionSet::in_use().name()), "{kernel:?}");
        }
        let table = view::table(&bench);
        assert!(table.contains("mqa-absorb") && table.contains("GB/s"), "{table}");
    }
}
