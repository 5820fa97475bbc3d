//! Where attention is timed: this machine's processor, or a GPU.

use std::{fmt::Write as _, path::Path, time::Duration};

use anyhow::{Context, bail};
use gqla_engine::cpu::{
    self, InstructionSet, Pool,
    measure::{AttentionCase, CACHE_FORMAT, Figure, PassTimes},
};
use gqla_kernels::device::{self, Decode, DecodeShape, Device, Images, Splits};
use gqla_model::{AttentionShape, CacheFormat, DecodePath};
use gqla_planner::{CPU_CLASS, Calibration, Catalogue, GpuSpec, Hardware, Provenance};

use super::{
    host::{Report, percent},
    machine::{VERSION, now},
};

/// Where attention is timed.
pub(crate) trait Place {
    /// What it is, for people.
    fn name(&self) -> String;
    /// Instruction set, or architecture.
    fn instruction_set(&self) -> String;
    /// What was measured of the place itself.
    fn table(&self) -> String;
    /// Where the rates come from that shares are of.
    fn rates(&self) -> &'static str;
    /// Its class, with these rates.
    fn gpu(&self) -> anyhow::Result<GpuSpec>;
    /// What caches are stored as.
    fn cache_format(&self) -> CacheFormat;
    /// Rows one instruction computes.
    fn tile_rows(&self) -> u32;
    /// Bytes of the last-level cache, as far as it is known.
    fn last_level_cache(&self) -> Option<u64>;
    /// Rates that its class does not have.
    fn calibration(&self) -> anyhow::Result<Calibration>;
    /// Measures the place's own rates once more, as [`PlaceArgs::measure`] does; what it then says of them is what all rounds
    /// amount to.
    fn measure_again(&mut self, memory: u64, time: Duration) -> anyhow::Result<()>;
    /// A layer of `shape` on `path`, with a cache of `blocks` blocks.
    fn timer<'a>(
        &'a self,
        shape: &AttentionShape,
        path: DecodePath,
        blocks: usize,
    ) -> anyhow::Result<Box<dyn Timer + 'a>>;

    fn provenance(&self, tool: String, samples: u32) -> Provenance {
        let build = format!("{VERSION} {}", self.instruction_set());
        Provenance { tool, device: self.name(), build, measured_at: now(), samples }
    }
}

/// One layer's attention.
pub(crate) trait Timer {
    /// Times `case` for about `time`.
    fn time(&mut self, case: &AttentionCase, time: Duration) -> anyhow::Result<PassTimes>;
    /// Makes `case` ready for [`Self::core_seconds`].
    fn prepare(&mut self, case: &AttentionCase) -> anyhow::Result<()>;
    /// Seconds of one pass over the cache of the case that was made ready last, the mean of `passes` in a row.
    fn core_seconds(&mut self, passes: u32) -> anyhow::Result<f64>;
}

/// This machine's processor.
pub(crate) struct Processor {
    pool: Pool,
    rounds: Vec<Report>,
    /// What they amount to.
    report: Report,
}

impl Processor {
    /// Measures the machine's rates in `bytes` bytes for about `time`.
    pub(crate) fn measure(pool: Pool, bytes: usize, time: Duration) -> Self {
        let report = Report::measure_in_use(&pool, bytes, time);
        Self { pool, rounds: vec![report.clone()], report }
    }
}

impl Place for Processor {
    fn name(&self) -> String {
        self.report.machine.name()
    }

    fn instruction_set(&self) -> String {
        InstructionSet::in_use().name().to_owned()
    }

    fn table(&self) -> String {
        self.report.table()
    }

    fn rates(&self) -> &'static str {
        "measured"
    }

    fn gpu(&self) -> anyhow::Result<GpuSpec> {
        let catalogue = Catalogue::builtin();
        let class = catalogue.get(CPU_CLASS).context("the catalogue has no class for CPUs")?;
        Ok(self.report.in_use()?.apply(&class.spec)?)
    }

    fn cache_format(&self) -> CacheFormat {
        CACHE_FORMAT
    }

    fn tile_rows(&self) -> u32 {
        1
    }

    fn last_level_cache(&self) -> Option<u64> {
        self.report.machine.last_level_cache
    }

    fn calibration(&self) -> anyhow::Result<Calibration> {
        self.report.calibration()
    }

    fn measure_again(&mut self, memory: u64, time: Duration) -> anyhow::Result<()> {
        self.rounds.push(Report::measure_in_use(&self.pool, bytes(memory), time));
        self.report = Report::of_rounds(&self.rounds).context("nothing was measured")?;
        Ok(())
    }

    fn timer<'a>(
        &'a self,
        shape: &AttentionShape,
        path: DecodePath,
        blocks: usize,
    ) -> anyhow::Result<Box<dyn Timer + 'a>> {
        let timer = cpu::measure::AttentionTimer::new(shape, path, blocks, CACHE_FORMAT, false)?;
        Ok(Box::new(OnProcessor { pool: &self.pool, timer, ready: None }))
    }
}

struct OnProcessor<'a> {
    pool: &'a Pool,
    timer: cpu::measure::AttentionTimer,
    ready: Option<cpu::measure::Prepared>,
}

impl Timer for OnProcessor<'_> {
    fn time(&mut self, case: &AttentionCase, time: Duration) -> anyhow::Result<PassTimes> {
        Ok(self.timer.time(self.pool, case, time)?)
    }

    fn prepare(&mut self, case: &AttentionCase) -> anyhow::Result<()> {
        self.ready = Some(self.timer.prepare(self.pool, case)?);
        Ok(())
    }

    fn core_seconds(&mut self, passes: u32) -> anyhow::Result<f64> {
        let ready = self.ready.as_mut().context("no case was made ready")?;
        Ok(self.timer.core_seconds(self.pool, ready, passes))
    }
}

/// A GPU.
pub(crate) struct Card {
    device: Device,
    images: Images,
    class: GpuSpec,
    rounds: Vec<Figure>,
    /// What they amount to.
    copied: Figure,
    copied_bytes: usize,
}

impl Card {
    /// Opens the first GPU that the driver shows and measures what copies reach in `bytes` bytes, for about `time`.
    pub(crate) fn measure(images: Option<&Path>, bytes: usize, time: Duration) -> anyhow::Result<Self> {
        let (device, images) = (Device::open(0)?, Images::find(images));
        let catalogue = Catalogue::builtin();
        // As GPU feature discovery spells names in labels.
        let product = device.name().replace(' ', "-");
        let Some(class) = catalogue.by_product(&product) else {
            bail!(
                "the catalogue has no class for `{}`, whose peak rates the measured ones are shares of: send its data \
                 sheet's rates to the project",
                device.name()
            );
        };
        let (class, copied) = (class.spec.clone(), device::copy_rate(&device, bytes, time)?);
        Ok(Self { device, images, class, rounds: vec![copied], copied, copied_bytes: bytes })
    }
}

impl Place for Card {
    fn name(&self) -> String {
        self.device.name().to_owned()
    }

    fn instruction_set(&self) -> String {
        let (major, minor) = self.device.limits().capability;
        format!("sm_{major}{minor}")
    }

    fn table(&self) -> String {
        let (peak, copied) = (&self.class, self.copied.median);
        let mut text = format!(
            "{}, class {} of {:.0} GB/s and {:.0} TFLOP/s\n",
            self.name(),
            peak.name,
            peak.bytes_per_second / 1e9,
            peak.flops_per_second / 1e12
        );
        let _ = writeln!(
            text,
            "copies within {} MiB: {:.0} GB/s read and written, {} of the peak, spread {}, {} samples",
            self.copied_bytes >> 20,
            copied / 1e9,
            percent(copied / peak.bytes_per_second),
            percent(self.copied.spread()),
            self.copied.samples
        );
        text
    }

    fn rates(&self) -> &'static str {
        "of the data sheet"
    }

    fn gpu(&self) -> anyhow::Result<GpuSpec> {
        Ok(self.class.clone())
    }

    fn cache_format(&self) -> CacheFormat {
        CacheFormat::Bf16
    }

    fn tile_rows(&self) -> u32 {
        16
    }

    fn last_level_cache(&self) -> Option<u64> {
        Some(Hardware::of(&self.class).l2_bytes as u64).filter(|bytes| *bytes > 0)
    }

    fn calibration(&self) -> anyhow::Result<Calibration> {
        Ok(Calibration::default())
    }

    fn measure_again(&mut self, memory: u64, time: Duration) -> anyhow::Result<()> {
        self.rounds.push(device::copy_rate(&self.device, bytes(memory), time)?);
        self.copied = Figure::of_rounds(&self.rounds);
        Ok(())
    }

    fn timer<'a>(
        &'a self,
        shape: &AttentionShape,
        path: DecodePath,
        blocks: usize,
    ) -> anyhow::Result<Box<dyn Timer + 'a>> {
        let (device, images) = (&self.device, &self.images);
        let timer = device::AttentionTimer::new(device, images, shape, path, blocks, Splits::ENGINE)?;
        Ok(Box::new(OnCard { timer, ready: None }))
    }
}

struct OnCard<'a> {
    timer: device::AttentionTimer<'a>,
    ready: Option<device::Prepared>,
}

impl Timer for OnCard<'_> {
    fn time(&mut self, case: &AttentionCase, time: Duration) -> anyhow::Result<PassTimes> {
        Ok(self.timer.time(case, time)?)
    }

    fn prepare(&mut self, case: &AttentionCase) -> anyhow::Result<()> {
        self.ready = Some(self.timer.prepare(case)?);
        Ok(())
    }

    fn core_seconds(&mut self, passes: u32) -> anyhow::Result<f64> {
        let ready = self.ready.as_mut().context("no case was made ready")?;
        Ok(self.timer.core_seconds(ready, passes)?)
    }
}

/// Where to compute, as flags say it.
#[derive(Debug, clap::Args)]
pub(super) struct PlaceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    device: Where,
    /// Folder with images of the CUDA kernels (cubin, PTX) [default: those beside this program, else NVRTC]
    #[arg(long, value_name = "FOLDER")]
    kernel_images: Option<std::path::PathBuf>,
}

fn bytes(memory: u64) -> usize {
    usize::try_from(memory).unwrap_or(usize::MAX)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Where {
    /// This machine's processor
    #[default]
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

impl PlaceArgs {
    /// Opens the place and measures its own rates in `memory` bytes at most, for about `time`.
    pub(super) fn measure(&self, memory: u64, time: Duration) -> anyhow::Result<Box<dyn Place>> {
        let bytes = bytes(memory);
        Ok(match self.device {
            Where::Cpu => {
                let pool = Pool::new(None).context("cannot start the threads that compute")?;
                Box::new(Processor::measure(pool, bytes, time))
            }
            Where::Cuda => Box::new(Card::measure(self.kernel_images.as_deref(), bytes, time)?),
        })
    }

    /// Bytes that a pass takes there besides what every place needs.
    pub(super) fn scratch_bytes(
        &self,
        shape: &AttentionShape,
        path: DecodePath,
        case: &AttentionCase,
    ) -> u64 {
        let rows = case.batch.saturating_mul(case.query_tokens);
        match self.device {
            Where::Cpu => 0,
            Where::Cuda => {
                let shape = DecodeShape::of(shape);
                let numbers = Decode::partial_numbers(&shape, path, Splits::ENGINE, rows, case.context);
                numbers as u64 * 4
            }
        }
    }

    /// What caches are stored as there.
    pub(super) fn cache_format(&self) -> CacheFormat {
        match self.device {
            Where::Cpu => CACHE_FORMAT,
            Where::Cuda => CacheFormat::Bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use gqla_kernels::attention::BLOCK_TOKENS;
    use gqla_planner::{LEAST_SPLIT_PAGES, MOST_SPLITS, PAGE_TOKENS};

    use super::*;

    /// The planner counts blocks as the kernels divide contexts.
    #[test]
    fn the_planner_divides_as_the_engine_does() {
        let Splits { least_pages, most } = Splits::ENGINE;
        assert_eq!(
            [BLOCK_TOKENS, least_pages, most],
            [PAGE_TOKENS, LEAST_SPLIT_PAGES, MOST_SPLITS].map(|number| number as usize)
        );
    }
}
