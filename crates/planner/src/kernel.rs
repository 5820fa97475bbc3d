//! What attention kernels make of a device: how much of its bandwidth and arithmetic they reach, what a call costs
//! before it reads the first byte, and which of them exist for a card at all.
//!
//! A kernel's time for one layer is
//!
//! ```text
//! floor + (memory^p + compute^p)^(1/p)
//! memory  = bytes / rate × (1 + lone / sequences)
//! compute = FLOPs of whole tiles / (arithmetic × peak), or of waves of blocks where a kernel divides by length
//! ```
//!
//! where `rate` goes from the last-level cache's to `bandwidth × peak bandwidth` as the cache outgrows it. Of several
//! kernels the fastest is taken. Where the fractions come from is said in [`crate::kernels`].

use std::borrow::Cow;

use crate::{gpu::GpuSpec, hardware::Hardware, roofline::Bound};

/// Share of the last-level cache's bandwidth that kernels reach.
const CACHE_EFFICIENCY: f64 = 0.8;
/// Below this share of the cache's size everything is served from it ...
const RESIDENT: f64 = 0.7;
/// ... and above this one nothing is, because a pass reads in order and evicts what it reads next.
const EVICTED: f64 = 1.5;
/// Query rows one block of a kernel without split contexts works on.
const BLOCK_ROWS: f64 = 64.0;

/// One attention kernel on one class of device.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The name it is published under.
    pub name: Cow<'static, str>,
    /// Microseconds of a call that has next to nothing to read.
    pub floor_us: f64,
    /// Microseconds more when it streams from memory: fill, drain and merging of split contexts.
    pub stream_us: f64,
    /// Share of peak bandwidth on many groups.
    pub bandwidth: f64,
    /// Share of that bandwidth lost when a rank has one group; halves with two.
    pub narrow_loss: f64,
    /// Share of peak arithmetic on full tiles.
    pub arithmetic: f64,
    /// Rows one instruction computes; fewer rows cost as many.
    pub tile_rows: u32,
    /// Extra memory time of a single sequence, as a share.
    pub lone_loss: f64,
    /// How well loads and arithmetic overlap: 1 not at all, large numbers fully.
    pub overlap: f64,
    /// How a long context is divided over the device.
    pub division: Division,
    /// Heads of a rank below which the kernel does not exist.
    pub min_heads: u32,
    /// Where the figures come from.
    pub source: Cow<'static, str>,
}

/// How a kernel divides a context over the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Division {
    /// As finely as it takes to keep the device busy.
    Fills,
    /// Not at all: a block walks its sequence alone.
    Whole,
    /// Into splits whose length follows from the context alone, so that a sequence's bits do not depend on what shares its
    /// batch. Few short sequences leave multiprocessors idle.
    ByLength(Blocks),
}

/// What a block of a kernel that divides by length takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blocks {
    /// Microseconds of a block besides those of its pages.
    pub start_us: f64,
    /// A block's rate with 16 and with 32 rows, of what it reaches with 64.
    pub few_rows: [f64; 2],
    /// Blocks of 16 rows that share a multiprocessor.
    pub narrow_per_multiprocessor: u32,
}

/// Tokens of a page, and how gqla-server's kernels divide a context into splits: pages of each at least, and most splits.
pub const PAGE_TOKENS: u32 = 64;
/// See [`PAGE_TOKENS`].
pub const LEAST_SPLIT_PAGES: u32 = 8;
/// See [`PAGE_TOKENS`].
pub const MOST_SPLITS: u32 = 32;

impl Blocks {
    /// Seconds of all waves, when a multiprocessor reaches `rate` FLOP/s with 64 rows.
    fn seconds(&self, work: &Work, rate: f64, multiprocessors: f64) -> f64 {
        let (rows, share, together) = match work.rows {
            0..=16 => (16.0, self.few_rows[0], f64::from(self.narrow_per_multiprocessor.max(1))),
            17..=32 => (32.0, self.few_rows[1], 1.0),
            _ => (64.0, 1.0, 1.0),
        };
        let pages = (work.context / f64::from(PAGE_TOKENS)).ceil().max(1.0);
        let mut each = f64::from(LEAST_SPLIT_PAGES);
        while each * f64::from(MOST_SPLITS) < pages {
            each *= 2.0;
        }
        let tiles = (work.rows as f64 / rows).ceil().max(1.0);
        let blocks = work.batch * work.groups * tiles * (pages / each).ceil();
        let waves = (blocks / (multiprocessors * together)).ceil();
        let page = f64::from(PAGE_TOKENS) * rows * work.flops_per_row / (rate * share);
        waves * (self.start_us * 1e-6 + each.min(pages) * page)
    }
}

/// What one call has to do, on one rank and for one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Work {
    /// Cache bytes per cached token.
    pub(crate) bytes: f64,
    /// Groups whose queries share no row tile.
    pub(crate) groups: f64,
    /// Heads of the rank, over all groups.
    pub(crate) heads: u32,
    /// Query rows per group: heads times query tokens.
    pub(crate) rows: u64,
    /// FLOPs per row and cached token.
    pub(crate) flops_per_row: f64,
    /// Sequences.
    pub(crate) batch: f64,
    /// Cached tokens per sequence.
    pub(crate) context: f64,
}

/// The time of one call, and what it mostly consists of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CallTime {
    pub(crate) ns: f64,
    pub(crate) bound: Bound,
}

impl Kernel {
    /// Time of one call, or `None` where the kernel does not apply.
    pub(crate) fn time(&self, work: &Work, gpu: &GpuSpec, hardware: &Hardware) -> Option<CallTime> {
        if work.heads < self.min_heads {
            return None;
        }
        let streamed = streamed(work.bytes * work.batch * work.context, hardware.l2_bytes);
        let memory = self.memory_ns(work, streamed, gpu, hardware);
        let compute = self.compute_ns(work, gpu, hardware);
        let floor = (self.floor_us + self.stream_us * streamed) * 1e3;
        let bound = if floor >= memory.max(compute) {
            Bound::Launch
        } else if compute > memory {
            Bound::Compute
        } else {
            Bound::Memory
        };
        Some(CallTime { ns: floor + overlapped(memory, compute, self.overlap), bound })
    }

    fn memory_ns(&self, work: &Work, streamed: f64, gpu: &GpuSpec, hardware: &Hardware) -> f64 {
        let bytes = work.bytes * work.batch * work.context;
        let narrow = 1.0 - self.narrow_loss / work.groups.max(1.0);
        let from_memory = gpu.bytes_per_second * self.bandwidth * narrow;
        let from_cache = (hardware.l2_bytes_per_second * CACHE_EFFICIENCY).max(from_memory);
        let seconds = bytes * (streamed / from_memory + (1.0 - streamed) / from_cache);
        seconds * (1.0 + self.lone_loss / work.batch.max(1.0)) * 1e9
    }

    fn compute_ns(&self, work: &Work, gpu: &GpuSpec, hardware: &Hardware) -> f64 {
        let tile = u64::from(self.tile_rows.max(1));
        let rows = work.rows.div_ceil(tile).saturating_mul(tile) as f64 * work.groups;
        let peak = gpu.flops_per_second * self.arithmetic;
        let units = f64::from(hardware.multiprocessors.max(1));
        match &self.division {
            Division::Fills => work.flops_per_row * rows * work.batch * work.context / peak * 1e9,
            Division::Whole => {
                let waves = (work.batch * (rows / BLOCK_ROWS).ceil() / units).ceil();
                waves * work.flops_per_row * BLOCK_ROWS * work.context / (peak / units) * 1e9
            }
            Division::ByLength(blocks) => blocks.seconds(work, peak / units, units) * 1e9,
        }
    }
}

/// Share of the bytes that comes from memory rather than from a last-level cache of `cache` bytes.
fn streamed(bytes: f64, cache: f64) -> f64 {
    if cache <= 0.0 {
        return 1.0;
    }
    ((bytes / cache - RESIDENT) / (EVICTED - RESIDENT)).clamp(0.0, 1.0)
}

fn overlapped(memory: f64, compute: f64, overlap: f64) -> f64 {
    let (most, least) = (memory.max(compute), memory.min(compute));
    if most <= 0.0 {
        return 0.0;
    }
    most * (1.0 + (least / most).powf(overlap)).powf(1.0 / overlap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    fn kernel() -> Kernel {
        Kernel {
            name: "test".into(),
            floor_us: 10.0,
            stream_us: 0.0,
            bandwidth: 1.0,
            narrow_loss: 0.0,
            arithmetic: 1.0,
            tile_rows: 64,
            lone_loss: 0.0,
            overlap: 8.0,
            division: Division::Fills,
            min_heads: 0,
            source: "test".into(),
        }
    }

    fn work() -> Work {
        Work {
            bytes: 1152.0,
            groups: 1.0,
            heads: 20,
            rows: 20,
            flops_per_row: 2176.0,
            batch: 64.0,
            context: 8192.0,
        }
    }

    fn time(kernel: &Kernel, work: &Work, class: &str) -> CallTime {
        let gpu = Catalogue::builtin().get(class).unwrap().spec.clone();
        kernel.time(work, &gpu, &Hardware::of(&gpu)).unwrap()
    }

    #[test]
    fn rows_below_a_tile_cost_a_whole_one() {
        let rows = |rows| time(&kernel(), &Work { rows, ..work() }, "H20").ns;
        assert_eq!(rows(1), rows(64));
        assert!(rows(65) > 1.9 * rows(64) && rows(65) < 2.0 * rows(64));
    }

    #[test]
    fn a_cache_that_fits_is_read_at_the_caches_rate() {
        let small = Work { batch: 1.0, context: 16_384.0, rows: 1, ..work() };
        let gpu = Catalogue::builtin().get("H100").unwrap().spec.clone();
        let hardware = Hardware::of(&gpu);
        let resident = kernel().time(&small, &gpu, &hardware).unwrap();
        let uncached = Hardware { l2_bytes: 0.0, ..hardware };
        let streamed = kernel().time(&small, &gpu, &uncached).unwrap();
        assert!(resident.ns < streamed.ns, "{resident:?} {streamed:?}");
    }

    #[test]
    fn each_bound_is_named() {
        assert_eq!(
            time(&kernel(), &Work { batch: 1.0, context: 1.0, ..work() }, "H100").bound,
            Bound::Launch
        );
        assert_eq!(time(&kernel(), &work(), "H100").bound, Bound::Memory);
        assert_eq!(time(&kernel(), &work(), "H20").bound, Bound::Compute);
    }

    #[test]
    fn a_kernel_that_does_not_split_needs_many_sequences() {
        let unsplit = Kernel { division: Division::Whole, ..kernel() };
        let per_sequence = |batch: f64| time(&unsplit, &Work { batch, ..work() }, "A100").ns / batch;
        assert!(per_sequence(1.0) > 50.0 * per_sequence(108.0));
        let large = Kernel { min_heads: 128, ..kernel() };
        let gpu = Catalogue::builtin().get("A100").unwrap().spec.clone();
        assert_eq!(large.time(&work(), &gpu, &Hardware::of(&gpu)), None);
    }

    /// One sequence of 64 pages has eight splits, 64 of them fill the device, and 65 a little of a wave more.
    #[test]
    fn a_kernel_that_divides_by_length_takes_waves_of_blocks() {
        let blocks = Blocks { start_us: 0.0, few_rows: [0.5, 0.5], narrow_per_multiprocessor: 2 };
        let kernel = Kernel { division: Division::ByLength(blocks), floor_us: 0.0, ..kernel() };
        let of = |batch: f64, context: f64| {
            let work = Work { groups: 1.0, rows: 64, batch, context, bytes: 1e-9, ..work() };
            time(&kernel, &work, "H100").ns
        };
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
        near(of(1.0, 4096.0), of(16.0, 4096.0));
        near(of(17.0, 4096.0), 2.0 * of(16.0, 4096.0));
        // Up to 32 splits more context is more blocks; beyond, each takes longer.
        near(of(1.0, 512.0), of(1.0, 16_384.0));
        near(of(1.0, 32_768.0), 2.0 * of(1.0, 16_384.0));
    }
}
