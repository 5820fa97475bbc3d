//! The attention core of one layer and step, as kernels run it.

use std::borrow::Cow;

use gqla_model::{AttentionShape, DecodePath, TensorParallelSplit};

use crate::{
    calibration::Calibration,
    gpu::GpuSpec,
    hardware::Hardware,
    kernel::{Kernel, Work},
    kernels::{Runtime, kernels, native_division},
    roofline::{AttentionCore, Bound, CacheLayout, flops_per_head},
};

/// How much of a device's peak rates work is taken to reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Efficiency {
    /// All of it, without floors: the roofline of published comparisons.
    Peak,
    /// What kernels reach, measured where it was.
    #[default]
    Calibrated,
}

/// Attention on one path of one class: which kernels there are, and what they cost.
#[derive(Clone, Debug)]
pub(crate) struct AttentionModel<'a> {
    gpu: &'a GpuSpec,
    hardware: Hardware,
    path: DecodePath,
    layout: CacheLayout,
    /// Empty at peak rates.
    kernels: Vec<Kernel>,
}

/// One layer's attention of one step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttentionPass {
    /// Bytes and FLOPs per cached token, and what they take at peak rates.
    pub(crate) core: AttentionCore,
    /// Time of the pass over all sequences.
    pub(crate) ns: f64,
    pub(crate) bound: Bound,
    /// The fastest kernel; `None` at peak rates.
    pub(crate) kernel: Option<Cow<'static, str>>,
}

impl AttentionPass {
    /// The average layer of `passes`, each with the layers that take it. Bound and kernel are those of the layers that
    /// take most of the time.
    pub(crate) fn average(passes: &[(Self, u32)]) -> Option<Self> {
        let (first, others) = passes.split_first()?;
        if others.is_empty() {
            return Some(first.0.clone());
        }
        let layers: f64 = passes.iter().map(|(_, count)| f64::from(*count)).sum();
        let mean = |figure: fn(&Self) -> f64| {
            passes.iter().map(|(pass, count)| figure(pass) * f64::from(*count)).sum::<f64>() / layers.max(1.0)
        };
        let taken = |(pass, count): &(Self, u32)| pass.ns * f64::from(*count);
        let (longest, _) = passes.iter().max_by(|a, b| taken(a).total_cmp(&taken(b)))?;
        let (bytes, flops) = (mean(|pass| pass.core.bytes as f64), mean(|pass| pass.core.flops as f64));
        Some(Self {
            core: AttentionCore {
                bytes: bytes.round() as u64,
                flops: flops.round() as u64,
                intensity: flops / bytes,
                bound: longest.core.bound,
                pass_ns: mean(|pass| pass.core.pass_ns),
                ns_per_query_token: mean(|pass| pass.core.ns_per_query_token),
            },
            ns: mean(|pass| pass.ns),
            bound: longest.bound,
            kernel: longest.kernel.clone(),
        })
    }
}

impl<'a> AttentionModel<'a> {
    pub(crate) fn new(
        path: DecodePath,
        gpu: &'a GpuSpec,
        runtime: Runtime,
        efficiency: Efficiency,
        layout: CacheLayout,
        calibration: &Calibration,
    ) -> Self {
        let hardware = Hardware::of(gpu);
        let kernels = match efficiency {
            Efficiency::Peak => Vec::new(),
            Efficiency::Calibrated => {
                let divided =
                    if runtime == Runtime::Native { native_division(path, &hardware) } else { None };
                calibration
                    .kernel(runtime, path, &gpu.name, divided)
                    .map_or_else(|| kernels(runtime, path, gpu, &hardware), |measured| vec![measured])
            }
        };
        Self { gpu, hardware, path, layout, kernels }
    }

    /// Where the figures of the kernel named `name` come from.
    pub(crate) fn source(&self, name: Option<&str>) -> &str {
        let named = self.kernels.iter().find(|kernel| Some(kernel.name.as_ref()) == name);
        named.map_or("peak rates of the data sheet", |kernel| kernel.source.as_ref())
    }

    /// A pass of `query_tokens` (`s_q`) per sequence over `batch` sequences of `context` cached tokens each.
    pub(crate) fn pass(
        &self,
        shape: &AttentionShape,
        split: TensorParallelSplit,
        query_tokens: u32,
        batch: u32,
        context: u32,
    ) -> AttentionPass {
        let core = AttentionCore::new(shape, self.path, split, query_tokens, self.layout, self.gpu);
        let work = self.work(shape, split, &core, query_tokens, batch, context);
        let times = self.kernels.iter().filter_map(|kernel| {
            kernel.time(&work, self.gpu, &self.hardware).map(|time| (time, kernel.name.clone()))
        });
        match times.min_by(|(a, _), (b, _)| a.ns.total_cmp(&b.ns)) {
            Some((time, kernel)) => {
                AttentionPass { core, ns: time.ns, bound: time.bound, kernel: Some(kernel) }
            }
            None => AttentionPass {
                core,
                ns: core.pass_ns * work.batch * work.context,
                bound: core.bound,
                kernel: None,
            },
        }
    }

    pub(crate) fn work(
        &self,
        shape: &AttentionShape,
        split: TensorParallelSplit,
        core: &AttentionCore,
        query_tokens: u32,
        batch: u32,
        context: u32,
    ) -> Work {
        let groups = match self.path {
            DecodePath::MqaAbsorb => 1,
            DecodePath::Gqa => split.groups_per_rank.max(1),
        };
        let heads = u64::from(split.heads_per_rank).div_ceil(groups.into());
        Work {
            bytes: core.bytes as f64,
            groups: groups.into(),
            heads: split.heads_per_rank,
            rows: heads.saturating_mul(query_tokens.max(1).into()),
            flops_per_row: flops_per_head(shape, self.path, self.layout.rope) as f64,
            batch: batch.max(1).into(),
            context: context.max(1).into(),
        }
    }
}
