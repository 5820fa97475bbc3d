//! `gqla bench paths`: whether the path the planner chooses is the faster one on this machine.
//!
//! The machine's rates and what kernels make of them are measured on a shape that is not judged, both paths of every judged
//! shape are timed in turn, pass by pass, and all that in rounds: whatever else runs for a minute disturbs both paths and
//! what predicts them alike. A choice costs its regret: how much longer the chosen path takes than the faster one, by
//! medians.

mod pairs;
mod view;

use std::time::Duration;

use anyhow::bail;
use gqla_engine::cpu::measure::AttentionCase;
use gqla_model::{AttentionShape, CacheFormat, DecodePath, ModelShape};
use gqla_planner::{Calibration, Constraints, Goal, GpuSpec, ModelName, Scope, plan_calibrated, shape};

use self::{pairs::Pairs, view::View};
use super::{
    attn::{HOST_SHARE, Layer, grid},
    place::{Place, PlaceArgs, Timer},
};
use crate::{model, table::TableFormat};

/// What the kernels' shares are measured on: no shape that is judged by default.
const CALIBRATED_ON: ModelName = ModelName::Llama370bGqla;
const CALIBRATED_CONTEXTS: [usize; 2] = [2048, 8192];
const CALIBRATED_QUERIES: [usize; 3] = [1, 2, 4];

/// Compare the planner's choice of path with what both paths take on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Built-in shapes, checkpoints or their config.json, with commas between
    #[arg(
        long,
        value_name = "SHAPE|PATH",
        value_delimiter = ',',
        default_value = "smollm2-135m-gqla,llama-3-8b-gqla,glm-4.7-flash-gqla,deepseek-v3-gqla"
    )]
    model: Vec<String>,
    /// Tensor-parallel degrees, with commas between: one rank's share of heads and groups is timed. Degrees that do not divide
    /// a shape are left out
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,3,4,8")]
    tp: Vec<u32>,
    /// Sequences per step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=512))]
    batch: u32,
    /// Cached tokens per sequence, with commas between
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_value = "1024,4096,16384")]
    context: Vec<usize>,
    /// Query tokens per sequence, with commas between
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,4")]
    s_q: Vec<usize>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Pairs of timings per pass, one of each path; their medians count
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(5..=999))]
    pairs: u32,
    /// Times to calibrate and to judge anew, between which the pairs are shared out
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Time to calibrate for in all rounds; judging takes what its pairs take
    #[arg(long, value_name = "N", default_value = "20", value_parser = super::seconds)]
    seconds: Duration,
    /// Memory that the cache of one path may take
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..))]
    memory_mib: u32,
    /// Output format [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// Measures, judges and prints.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let judge = Judge::new(args)?;
    let load = view::load();
    let shape = shape(CALIBRATED_ON).attention;
    let cases = grid::cases(&[args.batch as usize], &CALIBRATED_CONTEXTS, &CALIBRATED_QUERIES)?;
    let layer = Layer { model: CALIBRATED_ON.name(), shape: &shape, cases: &cases, memory: judge.memory };
    let (time, place_time) = (args.seconds / args.rounds, args.seconds / args.rounds / HOST_SHARE);
    let mut place = args.place.measure(judge.memory, place_time)?;
    let (mut times, mut pairs) = (Vec::new(), judge.pairs());
    for round in 0..args.rounds {
        if round > 0 {
            place.measure_again(judge.memory, place_time)?;
        }
        eprintln!("round {} of {}: the place and its kernels on {CALIBRATED_ON} ...", round + 1, args.rounds);
        times.push(layer.time(&*place, time - place_time)?);
        judge.time(&*place, &mut pairs, args.pairs * (round + 1) / args.rounds)?;
    }
    let calibration = layer.fit(&*place, &times)?.calibration()?;
    let judged = judge.all(&*place, &calibration, pairs)?;
    let view = View::new(&*place, &calibration, load, (args.pairs, args.rounds), judged);
    TableFormat::or_default(args.output).print(&view, view::table)?;
    Ok(())
}

/// What is to be judged.
struct Judge {
    models: Vec<(String, ModelShape)>,
    degrees: Vec<u32>,
    cases: Vec<AttentionCase>,
    memory: u64,
}

/// A pass, what the planner thought of it, and what it took.
struct Judged {
    model: String,
    tensor_parallel: u32,
    case: AttentionCase,
    /// With rates and kernels measured.
    calibrated: Prediction,
    /// With rates measured and the built-in kernels, as gqla-server plans at its start.
    by_rates: Prediction,
    measured: Pairs,
}

/// What the planner makes of one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Prediction {
    chosen: DecodePath,
    /// Nanoseconds of the pass, in the order of [`DecodePath::ALL`].
    ns: [f64; 2],
}

impl Judge {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let resolve = |name: &String| anyhow::Ok((name.clone(), model::resolve(name)?));
        let models: Vec<_> = args.model.iter().map(resolve).collect::<anyhow::Result<_>>()?;
        let cases = grid::cases(&[args.batch as usize], &args.context, &args.s_q)?;
        let memory = u64::from(args.memory_mib) << 20;
        let format = args.place.cache_format();
        let judge = Self { models, degrees: args.tp.clone(), cases, memory };
        for (_, shape) in &judge.models {
            for (_, share) in judge.shares(shape) {
                let scratch = |path, case: &AttentionCase| args.place.scratch_bytes(&share, path, case);
                grid::check_memory(&share, format, &judge.cases, (memory, scratch))?;
            }
        }
        if judge.models.iter().all(|(_, shape)| judge.shares(shape).next().is_none()) {
            bail!("no degree of --tp divides a shape of --model on both paths: add 1");
        }
        Ok(judge)
    }

    /// Degrees that divide `shape` on both paths, with what one rank computes.
    fn shares(&self, shape: &ModelShape) -> impl Iterator<Item = (u32, AttentionShape)> {
        let attention = shape.attention;
        self.degrees.iter().filter_map(move |degree| Some((*degree, grid::share(&attention, *degree)?)))
    }

    /// Every pass to be judged: a model, a degree that divides it, and a case.
    fn passes(&self) -> impl Iterator<Item = (&(String, ModelShape), u32, &AttentionCase)> {
        self.models.iter().flat_map(move |model| {
            let degrees = self.shares(&model.1).map(|(degree, _)| degree);
            degrees.flat_map(move |degree| self.cases.iter().map(move |case| (model, degree, case)))
        })
    }

    /// No timings of every pass.
    fn pairs(&self) -> Vec<Pairs> {
        self.passes().map(|_| Pairs::default()).collect()
    }

    /// Times every pass until there are `count` of its pairs, which are in the order of [`Self::passes`].
    fn time(&self, place: &dyn Place, pairs: &mut [Pairs], count: u32) -> anyhow::Result<()> {
        let mut pairs = pairs.iter_mut();
        for (model, shape) in &self.models {
            for (degree, share) in self.shares(shape) {
                eprintln!("timing both paths of {model} at TP {degree} ...");
                let mut timers = self.timers(place, &share)?;
                for (case, pairs) in self.cases.iter().zip(&mut pairs) {
                    pairs.measure(&mut timers, case, count)?;
                }
            }
        }
        Ok(())
    }

    /// What the planner makes of every pass, beside its times.
    fn all(
        &self,
        place: &dyn Place,
        calibration: &Calibration,
        pairs: Vec<Pairs>,
    ) -> anyhow::Result<Vec<Judged>> {
        let (gpu, format) = (&place.gpu()?, place.cache_format());
        let rates = Calibration { devices: calibration.devices.clone(), ..Calibration::default() };
        let judge = |(((model, shape), degree, case), measured): ((&(String, ModelShape), _, &_), _)| {
            let ask = |calibration| predict(shape, (gpu, format), degree, case, calibration);
            Ok(Judged {
                model: model.clone(),
                tensor_parallel: degree,
                case: *case,
                calibrated: ask(calibration)?,
                by_rates: ask(&rates)?,
                measured,
            })
        };
        self.passes().zip(pairs).map(judge).collect()
    }

    /// A timer per path, whose cache takes all of its memory, so that passes find little of it in the last-level cache.
    fn timers<'a>(
        &self,
        place: &'a dyn Place,
        share: &AttentionShape,
    ) -> anyhow::Result<[Box<dyn Timer + 'a>; 2]> {
        let timer = |path| {
            let blocks = grid::blocks(share, path, place.cache_format(), &self.cases, self.memory, u64::MAX);
            place.timer(share, path, blocks)
        };
        let [absorb, gqa] = DecodePath::ALL.map(timer);
        Ok([absorb?, gqa?])
    }
}

fn predict(
    shape: &ModelShape,
    (gpu, format): (&GpuSpec, CacheFormat),
    degree: u32,
    case: &AttentionCase,
    calibration: &Calibration,
) -> anyhow::Result<Prediction> {
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let goal =
        Goal { context_length: count(case.context), concurrency: count(case.batch), ..Goal::default() };
    let constraints = Constraints {
        tensor_parallel: Some(degree),
        multi_token_prediction: Some(count(case.query_tokens) - 1),
        batch: Some(count(case.batch)),
        scope: Scope::AttentionOnly,
        cache_format: Some(format),
        ..Constraints::default()
    };
    let decision = plan_calibrated(shape, gpu, &goal, &constraints, calibration)?;
    let tokens = (case.batch * case.context * case.query_tokens) as f64;
    let ns = DecodePath::ALL.map(|path| {
        let candidate = decision.candidates.iter().find(|candidate| candidate.path == path);
        candidate.map_or(f64::NAN, |candidate| candidate.attention_ns_per_query_token * tokens)
    });
    Ok(Prediction { chosen: decision.chosen.path, ns })
}

impl Judged {
    /// How much longer the path takes that `prediction` chose than the faster one, as a share.
    fn regret(&self, prediction: &Prediction) -> f64 {
        let seconds = self.measured.medians();
        let index = usize::from(prediction.chosen != DecodePath::ALL[0]);
        seconds[index] / seconds[0].min(seconds[1]) - 1.0
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use gqla_engine::cpu::{InstructionSet, Pool};
    use gqla_planner::{CPU_CLASS, Catalogue};

    use super::*;
    use crate::bench::place::Processor;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn judge(line: &str) -> anyhow::Result<Judge> {
        let words = ["paths"].into_iter().chain(line.split_whitespace());
        Judge::new(&Line::try_parse_from(words).unwrap().args)
    }

    fn prediction(chosen: DecodePath) -> Prediction {
        Prediction { chosen, ns: [1.0, 1.0] }
    }

    #[test]
    fn every_degree_that_divides_is_judged_with_one_rank_s_share() {
        let judge = judge("").unwrap();
        let degrees = |index: usize| {
            let share = |(degree, share): (u32, AttentionShape)| {
                (degree, share.num_attention_heads, share.num_key_value_heads)
            };
            judge.shares(&judge.models[index].1).map(share).collect::<Vec<_>>()
        };
        assert_eq!(degrees(0), [(1, 9, 3), (3, 3, 1)]);
        assert_eq!(degrees(1), [(1, 32, 8), (2, 16, 4), (4, 8, 2), (8, 4, 1)]);
        assert_eq!(degrees(2), [(1, 20, 4), (2, 10, 2), (4, 5, 1)]);
        assert_eq!(degrees(3), [(1, 128, 8), (2, 64, 4), (4, 32, 2), (8, 16, 1)]);
        assert_eq!(judge.cases.len(), 9);
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        let refusal = |line| judge(line).err().unwrap().to_string();
        assert!(refusal("--tp 7").contains("no degree of --tp divides"), "{}", refusal("--tp 7"));
        assert!(refusal("--memory-mib 32").contains("over --memory-mib"), "{}", refusal("--memory-mib 32"));
    }

    /// The planner is asked about the very pass that is timed: its bytes over the machine's rate are the least it can say.
    #[test]
    fn a_prediction_is_of_the_cache_the_engine_has() {
        let catalogue = Catalogue::builtin();
        let gpu = &catalogue.get(CPU_CLASS).unwrap().spec;
        let llama = shape(ModelName::Llama38bGqla);
        let case = AttentionCase { batch: 2, context: 4096, query_tokens: 1 };
        let prediction = predict(&llama, (gpu, CacheFormat::F32), 2, &case, &Calibration::default()).unwrap();
        let share = grid::share(&llama.attention, 2).unwrap();
        for (path, ns) in DecodePath::ALL.into_iter().zip(prediction.ns) {
            let bytes = case.cache_bytes(share.cached_token(path), CacheFormat::F32);
            let flops = share.flops_per_head(path) as f64 * f64::from(share.num_attention_heads) * 8192.0;
            let least = (bytes / gpu.bytes_per_second).max(flops / gpu.flops_per_second) * 1e9;
            assert!(ns > least && ns < 20.0 * least, "{path}: {ns} {least}");
        }
    }

    #[test]
    fn a_regret_is_what_the_wrong_choice_costs() {
        let judged = |samples: Vec<[f64; 2]>| Judged {
            model: "m".to_owned(),
            tensor_parallel: 1,
            case: AttentionCase { batch: 1, context: 64, query_tokens: 1 },
            calibrated: prediction(DecodePath::Gqa),
            by_rates: prediction(DecodePath::MqaAbsorb),
            measured: Pairs::of(samples),
        };
        let absorb_wins = judged(vec![[2.0, 3.0]; 5]);
        assert_eq!(absorb_wins.regret(&absorb_wins.calibrated), 0.5);
        assert_eq!(absorb_wins.regret(&absorb_wins.by_rates), 0.0);
    }

    #[test]
    fn a_small_run_times_predicts_and_shows() {
        let judge = judge("--model smollm2-135m-gqla --context 64,128 --s-q 1,2 --memory-mib 32").unwrap();
        let pool = Pool::new(Some(2)).unwrap();
        let place = Processor::measure(pool, 16 << 20, Duration::from_millis(20));
        let mut pairs = judge.pairs();
        for count in [2, 5] {
            judge.time(&place, &mut pairs, count).unwrap();
        }
        let judged = judge.all(&place, &Calibration::default(), pairs).unwrap();
        assert_eq!(judged.len(), 2 * 4);
        for one in &judged {
            assert!(one.regret(&one.calibrated) >= 0.0 && one.measured.medians().iter().all(|s| *s > 0.0));
        }
        let calibration = Calibration::default();
        let view = View::new(&place, &calibration, view::load(), (5, 2), judged);
        let table = view::table(&view);
        assert!(table.contains("regret") && table.contains(InstructionSet::in_use().name()), "{table}");
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["passes"].as_array().unwrap().len(), 8);
        assert!(
            json["calibrated"]["worst_regret"].as_f64().unwrap()
                >= json["calibrated"]["median_regret"].as_f64().unwrap()
        );
    }
}
