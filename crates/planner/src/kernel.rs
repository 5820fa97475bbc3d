//! What attention kernels make of a device: how much of its bandwidth and arithmetic they reach, what a call costs
//! before it reads the first byte, and which of them exist for a card at all.
//!
//! A kernel's time for one layer is
//!
//! ```text
//! floor + (memory^p + compute^p)^(1/p)
//! memory  = bytes / rate × (1 + lone / sequences)
//! compute = FLOPs of whole tiles / (arithmetic × peak)
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
    /// Whether a long context is divided over the device. Without, a block walks its sequence alone.
    pub splits_context: bool,
    /// Heads of a rank below which the kernel does not exist.
    pub min_heads: u32,
    /// Where the figures come from.
    pub source: Cow<'static, str>,
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
        if self.splits_context {
            return work.flops_per_row * rows * work.batch * work.context / peak * 1e9;
        }
        let units = f64::from(hardware.multiprocessors.max(1));
        let waves = (work.batch * (rows / BLOCK_ROWS).ceil() / units).ceil();
        waves * work.flops_per_row * BLOCK_ROWS * work.context / (peak / units) * 1e9
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
            splits_context: true,
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
        let unsplit = Kernel { splits_context: false, ..kernel() };
        let per_sequence = |batch: f64| time(&unsplit, &Work { batch, ..work() }, "A100").ns / batch;
        assert!(per_sequence(1.0) > 50.0 * per_sequence(108.0));
        let large = Kernel { min_heads: 128, ..kernel() };
        let gpu = Catalogue::builtin().get("A100").unwrap().spec.clone();
        assert_eq!(large.time(&work(), &gpu, &Hardware::of(&gpu)), None);
    }
}
