//! `gqla bench host`: the two rates of this machine's roofline, by the kernels that decode.

use std::{fmt::Write as _, time::Duration};

use anyhow::Context;
use gqla_engine::cpu::{
    InstructionSet, Pool, WeightFormat,
    measure::{Figure, ReadRate, multiply_rate, read_rate},
};
use gqla_planner::{CPU_CLASS, Calibration, HostRates, MeasuredDevice};

use super::machine::{Machine, caution};
use crate::table::{TableFormat, columns};

const TOOL: &str = "gqla bench host";

/// Measure memory bandwidth, arithmetic per instruction set and the ridge between them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Time to measure for
    #[arg(long, value_name = "N", default_value = "5", value_parser = super::seconds)]
    seconds: Duration,
    /// Memory to read over, at most
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..))]
    memory_mib: u32,
    /// Output format: json is a calibration [default: table on a terminal, else json]
    #[arg(short, long, value_enum)]
    output: Option<TableFormat>,
}

/// Measures and prints.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let pool = Pool::new(None).context("cannot start the threads that compute")?;
    let report = Report::measure(&pool, (args.memory_mib as usize) << 20, args.seconds);
    let calibration = report.calibration()?;
    TableFormat::or_default(args.output).print(&calibration, |_| report.table())?;
    Ok(())
}

/// What was measured.
#[derive(Clone)]
pub(crate) struct Report {
    pub(super) machine: Machine,
    read: ReadRate,
    /// The first is that of the instruction set in use with f32 operands, as attention has them.
    multiplied: Vec<Multiplied>,
}

#[derive(Clone, Copy)]
struct Multiplied {
    set: InstructionSet,
    format: WeightFormat,
    rate: Figure,
}

impl Report {
    /// Half of `time` goes to memory, the rest in equal parts to every instruction set and format.
    pub(crate) fn measure(pool: &Pool, bytes: usize, time: Duration) -> Self {
        Self::measure_on(pool, &InstructionSet::available(), bytes, time)
    }

    /// As [`Self::measure`], on the instruction set in use alone.
    pub(super) fn measure_in_use(pool: &Pool, bytes: usize, time: Duration) -> Self {
        Self::measure_on(pool, &[InstructionSet::in_use()], bytes, time)
    }

    fn measure_on(pool: &Pool, sets: &[InstructionSet], bytes: usize, time: Duration) -> Self {
        let formats = [WeightFormat::F32, WeightFormat::Bf16];
        let kinds = sets.iter().flat_map(|set| formats.map(|format| (*set, format)));
        let share = time / 2 / u32::try_from(sets.len() * formats.len()).unwrap_or(u32::MAX);
        Self {
            machine: Machine::read(pool),
            read: read_rate(pool, bytes, time / 2),
            multiplied: kinds
                .map(|(set, format)| Multiplied {
                    set,
                    format,
                    rate: multiply_rate(pool, set, format, share),
                })
                .collect(),
        }
    }

    /// What several runs on one machine amount to; nothing is none.
    pub(super) fn of_rounds(rounds: &[Self]) -> Option<Self> {
        let first = rounds.first()?;
        let figure = |of: &dyn Fn(&Self) -> Option<Figure>| {
            Figure::of_rounds(&rounds.iter().filter_map(of).collect::<Vec<_>>())
        };
        let multiplied = first.multiplied.iter().enumerate().map(|(index, kind)| Multiplied {
            rate: figure(&|round| Some(round.multiplied.get(index)?.rate)),
            ..*kind
        });
        Some(Self {
            machine: first.machine.clone(),
            read: ReadRate { rate: figure(&|round| Some(round.read.rate)), ..first.read },
            multiplied: multiplied.collect(),
        })
    }

    fn rates(&self, multiplied: &Multiplied) -> HostRates {
        HostRates { flops_per_second: multiplied.rate.median, bytes_per_second: self.read.rate.median }
    }

    /// What a plan for this machine goes by.
    pub(super) fn in_use(&self) -> anyhow::Result<HostRates> {
        self.multiplied.first().map(|first| self.rates(first)).context("no instruction set was measured")
    }

    /// One entry per instruction set and format. Plans take the first, which is in use; the others are for the record.
    pub(crate) fn calibration(&self) -> anyhow::Result<Calibration> {
        let devices = self.multiplied.iter().map(|multiplied| self.device(multiplied));
        Ok(Calibration { devices: devices.collect::<anyhow::Result<_>>()?, ..Calibration::default() })
    }

    fn device(&self, multiplied: &Multiplied) -> anyhow::Result<MeasuredDevice> {
        let Multiplied { set, format, rate } = multiplied;
        let samples = rate.samples.min(self.read.rate.samples);
        let spread = percent(rate.spread().max(self.read.rate.spread()));
        let tool = format!("{TOOL} (medians, quartiles at most {spread} apart)");
        let what = format!(", {} weights", format_name(*format));
        let provenance = self.machine.provenance(tool, *set, &what, samples);
        Ok(self.rates(multiplied).device(CPU_CLASS, provenance)?)
    }

    pub(super) fn table(&self) -> String {
        let Self { machine, read, multiplied } = self;
        let header = ["instruction set", "weights", "GFLOP/s", "spread", "samples", "ridge FLOP/B"];
        let rows: Vec<_> = multiplied.iter().map(|multiplied| self.row(multiplied)).collect();
        let mut text = format!(
            "{}, measured with {}\nmemory {:.2} GB/s, spread {}, {} samples, read over {} MiB\n\n{}\n",
            machine.name(),
            InstructionSet::in_use().name(),
            read.rate.median / 1e9,
            percent(read.rate.spread()),
            read.rate.samples,
            read.buffer_bytes >> 20,
            columns(header, &rows)
        );
        if let Some(caution) = caution(read.buffer_bytes as u64, machine.last_level_cache) {
            let _ = writeln!(text, "{caution}");
        }
        text + "(medians; the spread is what lies between the quartiles; plans take the first row)\n"
    }

    fn row(&self, multiplied: &Multiplied) -> [String; 6] {
        let Multiplied { set, format, rate } = multiplied;
        [
            set.name().to_owned(),
            format_name(*format).to_owned(),
            format!("{:.1}", rate.median / 1e9),
            percent(rate.spread()),
            rate.samples.to_string(),
            format!("{:.2}", self.rates(multiplied).ridge()),
        ]
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

const fn format_name(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::F32 => "f32",
        WeightFormat::Bf16 => "bf16",
        WeightFormat::Int8 => "int8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_is_measured_and_the_one_in_use_comes_first() {
        let pool = Pool::new(Some(2)).unwrap();
        let report = Report::measure(&pool, 16 << 20, Duration::from_millis(20));
        let calibration = report.calibration().unwrap();
        calibration.validate().unwrap();
        assert_eq!(calibration.devices.len(), 2 * InstructionSet::available().len());
        let first = &calibration.devices[0];
        let version = env!("CARGO_PKG_VERSION");
        let in_use = InstructionSet::in_use().name();
        assert_eq!(first.provenance.build, format!("{version} {in_use}, f32 weights"));
        assert!(first.provenance.device.ends_with(", 2 threads"), "{first:?}");
        let table = report.table();
        for set in InstructionSet::available() {
            assert!(table.contains(set.name()), "{table}");
        }
    }
}
