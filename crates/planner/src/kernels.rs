//! Which kernels there are, per runtime, class and path.
//!
//! **vLLM** stands for the best public kernel, whichever engine ships it. Its fractions were fitted to published medians
//! of absorb over GQA time where the cache exceeds the last-level cache (one layer, bf16, one query token; DeepSeek's,
//! LLaMA-3-8B's and GLM-4.7-Flash's shapes over 1 to 8 ranks on six GPUs, from NVIDIA's aiconfigurator tables),
//! with published floors of 12 to 18 µs a call for absorb and 5 to 12 µs for GQA. The tests beside this file compare them
//! with every median, and predict every median from a fit to the others. GPUs without a median take their
//! architecture's figures, except for an H20, whose throttled tensor cores are nearly filled at published rates. Every
//! kernel's source says which of these it is.
//!
//! What a median is taken over is not published. Batches up to 512 and 4 Mi cached tokens are assumed: an A100's kernel
//! for 128 heads, whose ratio depends on the batch alone, meets its median there and misses it by 74 % without large
//! batches.
//!
//! Kernels differ in the heads they are made for. TRT-LLM's selection on Blackwell (`fmhaKernels.h`) computes tiles of
//! 8 or 16 heads up to 32, each tile reading the latent again, and tiles of 64 above: 32 heads take longer than 64 there,
//! and the medians show it. In vLLM's comparison of MLA backends (pull request 41778) that kernel takes over three times
//! the bytes' time for 4 query tokens of 16 heads, which are four tiles. On Hopper up to 64 rows cost the same: 71, 73 and
//! 75 µs for 1, 2 and 4 query tokens of 16 heads (vLLM's pull request 27363). FlashInfer's kernel reaches 94 % of an
//! RTX 4090's bandwidth with 8 heads (its pull request 551), near what is fitted for the same architecture's L40S.
//!
//! **Native** kernels use `mma.sync` on 16-row tiles. They have not been timed on a GPU: the fractions are modelled from
//! counted instructions and clocks, and a measured [`Calibration`](crate::Calibration) replaces them.

use std::borrow::Cow;

use gqla_model::DecodePath;
use serde::{Deserialize, Serialize};

use crate::{
    gpu::GpuSpec,
    hardware::{Architecture, Hardware},
    kernel::{Blocks, Division, Kernel},
};

/// The engine a pod runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// `gqla-server`.
    #[default]
    Native,
    /// vLLM with the GQLA plugin.
    Vllm,
}

impl Runtime {
    /// `native` or `vllm`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vllm => "vllm",
        }
    }
}

/// What a pod of the native runtime computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// The device of the class.
    #[default]
    OfClass,
    /// The node's processor, whatever else the node has.
    Cpu,
}

/// The kernels `runtime` can use for `path` on `gpu`; never empty.
pub(crate) fn kernels(runtime: Runtime, path: DecodePath, gpu: &GpuSpec, hardware: &Hardware) -> Vec<Kernel> {
    match (hardware.architecture, runtime) {
        (Architecture::Cpu, _) => vec![cpu(path)],
        (Architecture::Unknown, _) => vec![unknown(path)],
        (_, Runtime::Native) => vec![native(path, gpu, hardware)],
        (_, Runtime::Vllm) => match path {
            DecodePath::MqaAbsorb => public_absorb(gpu, hardware),
            DecodePath::Gqa => vec![public_gqa(gpu, hardware)],
        },
    }
}

/// What the fits differ in.
struct Fit {
    name: &'static str,
    bandwidth: f64,
    narrow_loss: f64,
    arithmetic: f64,
    tile_rows: u32,
    overlap: f64,
}

const FITTED: &str = "fitted to published medians of public kernels";
/// The classes with published medians, in [`FITTED`].
const MEASURED: [&str; 6] = ["H100", "H200", "B200", "L40S", "RTX-PRO-6000", "A100"];

/// Where the figures of a public kernel on `class` come from.
fn fitted(class: &str) -> Cow<'static, str> {
    if MEASURED.contains(&class) {
        return Cow::Borrowed(FITTED);
    }
    Cow::Owned(format!("its architecture's fit to public kernels, not measured on {class}"))
}

/// Share of a Hopper card's peak that a kernel reaches: on full chips `full`, and at most `filled` of tensor cores that
/// are throttled, as an H20's are to a quarter. So no kernel computes faster where tensor cores are slower.
struct Reached {
    full: f64,
    filled: f64,
}

impl Reached {
    fn share(&self, gpu: &GpuSpec, hardware: &Hardware) -> f64 {
        let unthrottled = HOPPER_MULTIPROCESSOR * f64::from(hardware.multiprocessors);
        self.filled.min(self.full * unthrottled / gpu.flops_per_second)
    }

    fn fills(&self, gpu: &GpuSpec, hardware: &Hardware) -> bool {
        self.share(gpu, hardware) >= self.filled
    }
}

/// 0.54 to 0.58 are published on full chips, and 126 to 130 of an H20's 148 TFLOP/s.
const FLASH_MLA: Reached = Reached { full: 0.58, filled: 0.87 };
/// 315 of an H100's 989 TFLOP/s are published. `mma.sync` issues at 0.6 of a full chip's peak, more than a throttled one
/// has; the share is assumed not to exceed that.
const FLASHINFER_MLA: Reached = Reached { full: 0.32, filled: 0.6 };
/// FlashAttention-3 reaches 100 to 129 of an H20's 148 TFLOP/s.
const FLASH_ATTENTION: Reached = Reached { full: 0.5, filled: 0.75 };

/// One sequence of 131 072 tokens takes an H100 84 to 99 µs on absorb and 50 µs for one group on GQA.
const LONE_LOSS: [f64; 2] = [0.4, 0.25];

impl Fit {
    fn absorb(self, source: Cow<'static, str>) -> Kernel {
        self.kernel([12.0, 3.0], LONE_LOSS[0], source)
    }

    fn gqa(self, source: Cow<'static, str>) -> Kernel {
        self.kernel([6.0, 6.0], LONE_LOSS[1], source)
    }

    fn kernel(self, [floor_us, stream_us]: [f64; 2], lone_loss: f64, source: Cow<'static, str>) -> Kernel {
        Kernel {
            name: Cow::Borrowed(self.name),
            floor_us,
            stream_us,
            bandwidth: self.bandwidth,
            narrow_loss: self.narrow_loss,
            arithmetic: self.arithmetic,
            tile_rows: self.tile_rows,
            lone_loss,
            overlap: self.overlap,
            division: Division::Fills,
            min_heads: 0,
            source,
        }
    }
}

fn public_absorb(gpu: &GpuSpec, hardware: &Hardware) -> Vec<Kernel> {
    let class = &*gpu.name;
    let fit = |name, bandwidth, arithmetic, tile_rows, overlap| {
        Fit { name, bandwidth, narrow_loss: 0.0, arithmetic, tile_rows, overlap }.absorb(fitted(class))
    };
    match hardware.architecture {
        Architecture::Hopper => hopper_absorb(gpu, hardware),
        // Tiles of 64 exist for more than 32 heads only, though 32 heads would gain by them.
        Architecture::Blackwell => vec![
            fit("TRT-LLM MLA, up to 32 heads", 0.74, 0.14, 8, 2.3),
            Kernel { min_heads: 33, ..fit("TRT-LLM MLA", 0.66, 0.80, 64, 6.0) },
        ],
        Architecture::BlackwellRtx => vec![fit("FlashInfer MLA", 0.77, 0.21, 16, 1.8)],
        Architecture::Ada => vec![fit("FlashInfer MLA", 0.90, 0.236, 16, 3.6)],
        // Triton reads the latent again for every 16 heads; the other one leaves most of the card idle below about
        // fifty sequences, and exists for 128 heads only.
        _ => vec![
            fit("Triton MLA", 0.39, 0.103, 16, 2.4),
            Kernel {
                division: Division::Whole,
                min_heads: 128,
                ..fit("FlashInfer MLA, unsplit", 0.39, 0.49, 64, 8.0)
            },
        ],
    }
}

/// A tile of 64 rows fills tensor cores best; one of 16 wastes less of them on 20 heads, which only throttled ones notice.
fn hopper_absorb(gpu: &GpuSpec, hardware: &Hardware) -> Vec<Kernel> {
    let fit = |name, bandwidth, reached: &Reached, tile_rows, overlap, source| {
        let arithmetic = reached.share(gpu, hardware);
        Fit { name, bandwidth, narrow_loss: 0.0, arithmetic, tile_rows, overlap }.absorb(source)
    };
    let (by_64, by_16) = if FLASH_MLA.fills(gpu, hardware) {
        let assumed = "its rate on an H100 and what mma.sync issues, not measured on an H20";
        (Cow::Borrowed("the published FlashMLA rate on an H20"), assumed)
    } else {
        (fitted(&gpu.name), "its published rate on an H100")
    };
    vec![
        fit("FlashMLA", 0.88, &FLASH_MLA, 64, 3.5, by_64),
        // 2821 of an H100's 3350 GB/s are published.
        fit("FlashInfer MLA", 0.84, &FLASHINFER_MLA, 16, 2.7, Cow::Borrowed(by_16)),
    ]
}

fn public_gqa(gpu: &GpuSpec, hardware: &Hardware) -> Kernel {
    let (class, architecture) = (&*gpu.name, hardware.architecture);
    let hopper = FLASH_ATTENTION.share(gpu, hardware);
    let (bandwidth, narrow_loss, arithmetic) = match (architecture, class) {
        (Architecture::Hopper, "H200") => (0.93, 0.216, hopper),
        (Architecture::Hopper, _) => (0.93, 0.14, hopper),
        (Architecture::Blackwell, _) => (0.97, 0.09, 0.3),
        (Architecture::BlackwellRtx, _) => (0.95, 0.10, 0.5),
        (Architecture::Ada, _) => (0.97, 0.042, 0.5),
        _ => (0.894, 0.155, 0.5),
    };
    let source = if architecture == Architecture::Hopper && FLASH_ATTENTION.fills(gpu, hardware) {
        Cow::Borrowed("the published FlashAttention-3 rate on an H20")
    } else {
        fitted(class)
    };
    Fit {
        name: "FlashInfer / FlashAttention",
        bandwidth,
        narrow_loss,
        arithmetic,
        tile_rows: 16,
        overlap: 4.0,
    }
    .gqa(source)
}

const MODELLED: &str = "modelled from counted clocks, not yet measured on a device";
/// A full Hopper multiprocessor's dense bf16 rate, FLOP/s.
const HOPPER_MULTIPROCESSOR: f64 = 989e12 / 132.0;

/// Two launches a call, the second one merging split contexts.
fn native(path: DecodePath, gpu: &GpuSpec, hardware: &Hardware) -> Kernel {
    let arithmetic = match hardware.architecture {
        // `mma.sync` issues at 0.6 of what warp-group instructions reach, which a throttled card never needs.
        Architecture::Hopper => {
            let rate = 0.6 * HOPPER_MULTIPROCESSOR * f64::from(hardware.multiprocessors);
            (rate / gpu.flops_per_second).min(0.9)
        }
        Architecture::Blackwell => 0.3,
        _ => 0.75,
    };
    Kernel {
        name: Cow::Borrowed("gqla mma.sync"),
        floor_us: 8.0,
        stream_us: 4.0,
        bandwidth: 0.85,
        narrow_loss: if path == DecodePath::Gqa { 0.05 } else { 0.0 },
        arithmetic,
        tile_rows: 16,
        lone_loss: 0.25,
        overlap: 4.0,
        division: Division::Fills,
        min_heads: 0,
        source: Cow::Borrowed(MODELLED),
    }
}

/// What measured kernels of gqla-server divide a context by, and how well they overlap loads and arithmetic.
///
/// Fitted to five models' attention with one to four query tokens, 1 to 64 sequences and 1024 to 32768 tokens on an H200: with
/// the shares of its calibration, times are off by 6 % on average, and by 8 to 10 % over ranks' shares of the models and over
/// contexts that were not fitted. On a processor loads and arithmetic nearly add up: 1.5 fits both paths of four models and
/// their ranks' shares best over eight runs on an EPYC, by 8 and 10 % on average where 4 is off by 11 and 12. `None` where
/// other kernels run, which nobody measured.
pub(crate) fn native_division(path: DecodePath, hardware: &Hardware) -> Option<(Division, f64)> {
    match hardware.architecture {
        Architecture::Cpu => return Some((Division::Fills, CPU_OVERLAP)),
        Architecture::Hopper => {}
        _ => return None,
    }
    let (start_us, few_rows, narrow_per_multiprocessor, overlap) = match path {
        DecodePath::Gqa => (0.93, [0.67, 0.83], 2, 1.54),
        DecodePath::MqaAbsorb => (6.6, [0.816, 0.745], 1, 2.65),
    };
    Some((Division::ByLength(Blocks { start_us, few_rows, narrow_per_multiprocessor }), overlap))
}

const CPU_OVERLAP: f64 = 1.5;

/// No tiles and no launches to speak of; threads meet once a call. A row of latents is read once for all heads, most of which
/// is arithmetic, so its share of the bandwidth says little of what memory could give.
fn cpu(path: DecodePath) -> Kernel {
    let [bandwidth, arithmetic] = match path {
        DecodePath::MqaAbsorb => [0.45, 0.85],
        DecodePath::Gqa => [0.7, 0.8],
    };
    Kernel {
        name: Cow::Borrowed("gqla CPU"),
        floor_us: 5.0,
        stream_us: 0.0,
        bandwidth,
        narrow_loss: 0.0,
        arithmetic,
        tile_rows: 1,
        lone_loss: 0.0,
        overlap: CPU_OVERLAP,
        division: Division::Fills,
        min_heads: 0,
        source: Cow::Borrowed("fitted on an EPYC with AVX-512 and f32 caches; a calibration replaces them"),
    }
}

/// What runs on a card whose architecture nobody stated.
pub(crate) const ANY_CARD: &str = "any";

/// Kernels that any card can be expected to run, at fractions none should miss.
fn unknown(path: DecodePath) -> Kernel {
    Kernel {
        name: Cow::Borrowed(ANY_CARD),
        floor_us: 12.0,
        stream_us: 6.0,
        bandwidth: if path == DecodePath::Gqa { 0.7 } else { 0.5 },
        arithmetic: 0.3,
        overlap: 2.0,
        source: Cow::Borrowed("assumed for a card nobody described"),
        ..cpu(path)
    }
}

#[cfg(test)]
mod left_out;
#[cfg(test)]
mod tests;
