//! What comes of it: a row per pass, and what the choices cost.

use std::fmt::Write as _;

use gqla_planner::Calibration;
use serde::Serialize;

use super::{Judged, Prediction, pairs::Interval};
use crate::{
    bench::{host::percent, place::Place},
    table::columns,
};

/// The JSON form. Field names are an interface.
#[derive(Serialize)]
pub(super) struct View<'a> {
    machine: String,
    /// What was measured of it, and where the rates come from.
    #[serde(skip)]
    place: (String, &'static str),
    /// Or a GPU's architecture.
    instruction_set: String,
    /// The system's load averages over a minute, before and after.
    load: [Option<f64>; 2],
    pairs: u32,
    rounds: u32,
    calibration: &'a Calibration,
    calibrated: Regrets,
    by_rates: Regrets,
    passes: Vec<Pass>,
}

/// What choices cost over all passes.
#[derive(Serialize)]
pub(super) struct Regrets {
    median_regret: f64,
    worst_regret: f64,
    /// Passes whose faster path is certain at 95 %, and on how many of them the other one was chosen.
    certain: usize,
    certain_and_wrong: usize,
}

#[derive(Serialize)]
struct Pass {
    model: String,
    tp: u32,
    s_q: usize,
    batch: usize,
    context: usize,
    absorb: PathTimes,
    gqa: PathTimes,
    /// GQA over absorb, as measured.
    ratio: Median,
    chosen: &'static str,
    chosen_by_rates: &'static str,
    regret: f64,
    regret_by_rates: f64,
}

#[derive(Serialize)]
struct PathTimes {
    predicted_ns: f64,
    predicted_ns_by_rates: f64,
    measured_ns: Median,
}

/// A median and its 95 % interval.
#[derive(Serialize)]
struct Median {
    median: f64,
    low: f64,
    high: f64,
}

/// The load average over a minute.
pub(super) fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

impl<'a> View<'a> {
    pub(super) fn new(
        place: &dyn Place,
        calibration: &'a Calibration,
        load_before: Option<f64>,
        (pairs, rounds): (u32, u32),
        judged: Vec<Judged>,
    ) -> Self {
        Self {
            machine: place.name(),
            place: (place.table(), place.rates()),
            instruction_set: place.instruction_set(),
            load: [load_before, load()],
            pairs,
            rounds,
            calibration,
            calibrated: Regrets::of(&judged, |judged| &judged.calibrated),
            by_rates: Regrets::of(&judged, |judged| &judged.by_rates),
            passes: judged.into_iter().map(Pass::of).collect(),
        }
    }
}

impl Regrets {
    fn of(judged: &[Judged], prediction: impl Fn(&Judged) -> &Prediction) -> Self {
        let mut regrets: Vec<f64> = judged.iter().map(|one| one.regret(prediction(one))).collect();
        regrets.sort_by(f64::total_cmp);
        let certain = |one: &&Judged| {
            let Interval { low, high, .. } = one.measured.ratio();
            low > 1.0 || high < 1.0
        };
        Self {
            median_regret: regrets.get(regrets.len() / 2).copied().unwrap_or(0.0),
            worst_regret: regrets.last().copied().unwrap_or(0.0),
            certain: judged.iter().filter(certain).count(),
            certain_and_wrong: judged
                .iter()
                .filter(certain)
                .filter(|one| one.regret(prediction(one)) > 0.0)
                .count(),
        }
    }

    fn told(&self, passes: usize) -> String {
        let Self { median_regret, worst_regret, certain, certain_and_wrong } = self;
        format!(
            "regret median {:.1} %, worst {:.1} %; of {passes} passes {certain} have a certainly faster path, on \
             {certain_and_wrong} of them the other one was chosen",
            median_regret * 100.0,
            worst_regret * 100.0
        )
    }
}

impl Pass {
    fn of(judged: Judged) -> Self {
        let times = |index: usize| PathTimes {
            predicted_ns: judged.calibrated.ns[index],
            predicted_ns_by_rates: judged.by_rates.ns[index],
            measured_ns: Median::of(judged.measured.seconds(index), 1e9),
        };
        Self {
            absorb: times(0),
            gqa: times(1),
            ratio: Median::of(judged.measured.ratio(), 1.0),
            chosen: judged.calibrated.chosen.flag(),
            chosen_by_rates: judged.by_rates.chosen.flag(),
            regret: judged.regret(&judged.calibrated),
            regret_by_rates: judged.regret(&judged.by_rates),
            tp: judged.tensor_parallel,
            s_q: judged.case.query_tokens,
            batch: judged.case.batch,
            context: judged.case.context,
            model: judged.model,
        }
    }
}

impl Median {
    fn of(interval: Interval, unit: f64) -> Self {
        let Interval { median, low, high } = interval;
        Self { median: median * unit, low: low * unit, high: high * unit }
    }
}

/// A row per pass and what the choices cost.
pub(super) fn table(view: &View<'_>) -> String {
    let header = [
        "model",
        "tp",
        "s_q",
        "context",
        "absorb µs predicted",
        "measured",
        "gqa µs predicted",
        "measured",
        "gqa/absorb",
        "95 %",
        "chosen",
        "regret",
        "by rates",
    ];
    let rows: Vec<_> = view.passes.iter().map(row).collect();
    let load = |load: Option<f64>| load.map_or("unknown".to_owned(), |load| format!("{load:.1}"));
    let mut text = format!(
        "{}, {}, {} pairs a pass in {} rounds, load average {} before and {} after\n",
        view.machine,
        view.instruction_set,
        view.pairs,
        view.rounds,
        load(view.load[0]),
        load(view.load[1])
    );
    for device in view.calibration.devices.iter().take(1) {
        let (bytes, flops) = (device.bytes_per_second / 1e9, device.flops_per_second / 1e9);
        let _ = writeln!(text, "rates: {bytes:.1} GB/s, {flops:.1} GFLOP/s, ridge {:.1}", flops / bytes);
    }
    for kernel in &view.calibration.kernels {
        let (path, floor) = (kernel.path.flag(), kernel.floor_us);
        let (bandwidth, arithmetic) = (percent(kernel.bandwidth), percent(kernel.arithmetic));
        let _ = writeln!(
            text,
            "{path}: floor {floor:.1} µs, {bandwidth} of the bandwidth, {arithmetic} of the FLOP/s"
        );
    }
    let (count, (place, rates)) = (view.passes.len(), &view.place);
    format!(
        "{text}\n{place}\n{}\nrates {rates}, kernels measured: {}\nrates {rates}, built-in kernels: {}\n(one rank's attention core of one \
         layer; medians with 95 % intervals by the sign test; regret is how much longer the chosen path took than the faster)\n",
        columns(header, &rows),
        view.calibrated.told(count),
        view.by_rates.told(count)
    )
}

fn row(pass: &Pass) -> [String; 13] {
    let micro = |ns: f64| format!("{:.1}", ns / 1e3);
    let measured = |times: &PathTimes| {
        let Median { median, low, high } = times.measured_ns;
        format!("{} [{}..{}]", micro(median), micro(low), micro(high))
    };
    [
        pass.model.clone(),
        pass.tp.to_string(),
        pass.s_q.to_string(),
        pass.context.to_string(),
        micro(pass.absorb.predicted_ns),
        measured(&pass.absorb),
        micro(pass.gqa.predicted_ns),
        measured(&pass.gqa),
        format!("{:.2}", pass.ratio.median),
        format!("{:.2}..{:.2}", pass.ratio.low, pass.ratio.high),
        pass.chosen.to_owned(),
        format!("{:.1} %", pass.regret * 100.0),
        format!("{:.1} %", pass.regret_by_rates * 100.0),
    ]
}
