//! From timed attention passes to the two shares a calibration holds.
//!
//! The shares are those with which [`crate::kernel`]'s formula comes nearest to the times, on a grid of 80 values each
//! from 0.01 to 1. Where passes on one side of the ridge only were timed, the other share hardly matters; of all pairs
//! that fit as well, the one that claims least is taken. Many heads are bound by arithmetic whatever the memory does, and
//! few are not: so passes may be of several shapes.

use gqla_model::{AttentionShape, CacheFormat, DecodePath, SplitError, TensorParallelSplit};

use crate::{
    attention::{AttentionModel, Efficiency},
    calibration::{Calibration, MeasuredKernel, Provenance},
    gpu::GpuSpec,
    kernels::Runtime,
    roofline::{CacheLayout, RopeLayout},
};

const STEPS: i32 = 80;
/// Errors this near to each other are equally good: timings repeat no better.
const AS_GOOD: f64 = 0.01;

/// A pass over the caches of one layer, and the time it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedPass {
    /// Dimensions of the layer.
    pub shape: AttentionShape,
    /// Query tokens per sequence.
    pub query_tokens: u32,
    /// Sequences.
    pub batch: u32,
    /// Cached tokens per sequence.
    pub context: u32,
    /// Nanoseconds of the whole pass.
    pub ns: f64,
}

/// What was timed: one path of one class.
#[derive(Clone, Copy, Debug)]
pub struct Timed<'a> {
    /// Dimensions of the layer whose floor was timed.
    pub shape: &'a AttentionShape,
    /// Its path.
    pub path: DecodePath,
    /// The class, with the rates the shares are of.
    pub gpu: &'a GpuSpec,
    /// What the numbers of the cache that was read are stored as.
    pub cache_format: CacheFormat,
    /// The engine.
    pub runtime: Runtime,
    /// Its version.
    pub build: &'a str,
    /// Microseconds of a pass with next to nothing to read.
    pub floor_us: f64,
    /// Rows a tile has.
    pub tile_rows: u32,
}

/// A calibration entry and how well it describes what was timed.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelFit {
    /// The entry.
    pub kernel: MeasuredKernel,
    /// Mean of |ln (predicted / measured)|: 0.1 is about 10 %.
    pub error: f64,
}

/// Times that fit nothing.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FitError {
    /// No pass.
    #[error("no attention pass was timed: allow more time, or ask for fewer")]
    NothingTimed,
    /// A time that is not positive.
    #[error(
        "a pass over {batch} × {context} tokens took {ns} ns, expected a finite time above 0: measure again"
    )]
    Time {
        /// Sequences.
        batch: u32,
        /// Tokens of each.
        context: u32,
        /// The time.
        ns: f64,
    },
    /// A layer that cannot be.
    #[error(transparent)]
    Split(#[from] SplitError),
}

impl Timed<'_> {
    /// The entry that describes `passes` best.
    pub fn fit(&self, passes: &[TimedPass], provenance: &Provenance) -> Result<KernelFit, FitError> {
        if passes.is_empty() {
            return Err(FitError::NothingTimed);
        }
        if let Some(pass) = passes.iter().find(|pass| !(pass.ns.is_finite() && pass.ns > 0.0)) {
            let TimedPass { batch, context, ns, .. } = *pass;
            return Err(FitError::Time { batch, context, ns });
        }
        let whole = TensorParallelSplit::new(self.shape, self.path, 1)?;
        let passes: Vec<_> = passes
            .iter()
            .map(|pass| Ok((*pass, TensorParallelSplit::new(&pass.shape, self.path, 1)?)))
            .collect::<Result<_, SplitError>>()?;
        let share = |step: i32| 10f64.powf(-2.0 * f64::from(STEPS - step) / f64::from(STEPS));
        let pairs = (1..=STEPS).flat_map(|b| (1..=STEPS).map(move |a| (share(b), share(a))));
        let fits: Vec<_> = pairs
            .map(|(bandwidth, arithmetic)| {
                let kernel = self.entry(bandwidth, arithmetic, provenance);
                let kernel = self.without_what_the_model_adds(kernel, whole);
                (bandwidth * arithmetic, KernelFit { error: self.error(&kernel, &passes), kernel })
            })
            .collect();
        let best = fits.iter().map(|(_, fit)| fit.error).fold(f64::INFINITY, f64::min);
        let as_good = fits.into_iter().filter(|(_, fit)| fit.error <= best + AS_GOOD);
        let modest = as_good.min_by(|(claim, _), (other, _)| claim.total_cmp(other));
        modest.map(|(_, fit)| fit).ok_or(FitError::NothingTimed)
    }

    fn entry(&self, bandwidth: f64, arithmetic: f64, provenance: &Provenance) -> MeasuredKernel {
        MeasuredKernel {
            gpu: self.gpu.name.to_string(),
            runtime: self.runtime,
            build: Some(self.build.to_owned()),
            path: self.path,
            floor_us: self.floor_us,
            bandwidth,
            arithmetic,
            tile_rows: self.tile_rows,
            provenance: provenance.clone(),
        }
    }

    /// The pass with next to nothing to read starts a block, too, where kernels are modelled by blocks.
    fn without_what_the_model_adds(
        &self,
        kernel: MeasuredKernel,
        split: TensorParallelSplit,
    ) -> MeasuredKernel {
        let least = MeasuredKernel { floor_us: 0.0, ..kernel.clone() };
        let added = self.model(&least).pass(self.shape, split, 1, 1, 1).ns / 1e3;
        MeasuredKernel { floor_us: (kernel.floor_us - added).max(0.0), ..kernel }
    }

    fn model(&self, kernel: &MeasuredKernel) -> AttentionModel<'_> {
        let calibration = Calibration { kernels: vec![kernel.clone()], ..Calibration::default() };
        let layout = CacheLayout { rope: RopeLayout::Shared, format: self.cache_format };
        let efficiency = Efficiency::Calibrated;
        AttentionModel::new(self.path, self.gpu, self.runtime, efficiency, layout, &calibration)
    }

    fn error(&self, kernel: &MeasuredKernel, passes: &[(TimedPass, TensorParallelSplit)]) -> f64 {
        let model = self.model(kernel);
        let error = |(pass, split): &(TimedPass, TensorParallelSplit)| {
            let TimedPass { ref shape, query_tokens, batch, context, ns } = *pass;
            (model.pass(shape, *split, query_tokens, batch, context).ns / ns).ln().abs()
        };
        passes.iter().map(error).sum::<f64>() / passes.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalogue::{CPU_CLASS, Catalogue},
        models::{ModelName, shape},
    };

    fn provenance() -> Provenance {
        Provenance {
            tool: "test".into(),
            device: "a processor".into(),
            build: "0.1.0 portable".into(),
            measured_at: "2026-01-02T03:04:05Z".into(),
            samples: 9,
        }
    }

    fn timed<'a>(shape: &'a AttentionShape, path: DecodePath, gpu: &'a GpuSpec) -> Timed<'a> {
        Timed {
            shape,
            path,
            gpu,
            cache_format: CacheFormat::F32,
            runtime: Runtime::Native,
            build: "1",
            floor_us: 3.0,
            tile_rows: 1,
        }
    }

    /// The times a kernel of known shares takes, over a grid of passes that outgrow every cache.
    fn passes(timed: &Timed<'_>, bandwidth: f64, arithmetic: f64, query_tokens: &[u32]) -> Vec<TimedPass> {
        passes_of(timed, timed.shape, (bandwidth, arithmetic), query_tokens)
    }

    /// The same of another shape.
    fn passes_of(
        timed: &Timed<'_>,
        shape: &AttentionShape,
        (bandwidth, arithmetic): (f64, f64),
        query_tokens: &[u32],
    ) -> Vec<TimedPass> {
        let truth = timed.entry(bandwidth, arithmetic, &provenance());
        let calibration = Calibration { kernels: vec![truth], ..Calibration::default() };
        let layout = CacheLayout { rope: RopeLayout::Shared, format: timed.cache_format };
        let efficiency = Efficiency::Calibrated;
        let model =
            AttentionModel::new(timed.path, timed.gpu, timed.runtime, efficiency, layout, &calibration);
        let split = TensorParallelSplit::new(shape, timed.path, 1).unwrap();
        let grid = query_tokens.iter().flat_map(|s_q| [(*s_q, 8, 8192), (*s_q, 16, 32_768)]);
        grid.map(|(query_tokens, batch, context)| {
            let ns = model.pass(shape, split, query_tokens, batch, context).ns;
            TimedPass { shape: *shape, query_tokens, batch, context, ns }
        })
        .collect()
    }

    #[test]
    fn known_shares_are_found_again_where_both_sides_of_the_ridge_were_timed() {
        let cpu = Catalogue::builtin().get(CPU_CLASS).unwrap().spec.clone();
        let attention = shape(ModelName::Llama38bGqla).attention;
        let timed = timed(&attention, DecodePath::Gqa, &cpu);
        for (bandwidth, arithmetic) in [(0.8, 0.5), (0.3, 0.9), (1.0, 0.1)] {
            let times = passes(&timed, bandwidth, arithmetic, &[1, 2, 4, 8, 16]);
            let fit = timed.fit(&times, &provenance()).unwrap();
            assert!(fit.error < 0.03, "{fit:?}");
            assert!((fit.kernel.arithmetic / arithmetic).ln().abs() < 0.1, "{arithmetic}: {fit:?}");
            assert!(fit.kernel.bandwidth <= bandwidth * 1.1, "{bandwidth}: {fit:?}");
            let calibration = Calibration { kernels: vec![fit.kernel], ..Calibration::default() };
            calibration.validate().unwrap();
        }
    }

    #[test]
    fn a_share_that_was_not_seen_is_not_claimed() {
        let cpu = Catalogue::builtin().get(CPU_CLASS).unwrap().spec.clone();
        let attention = shape(ModelName::DeepseekAttention).attention;
        let timed = timed(&attention, DecodePath::MqaAbsorb, &cpu);
        // 128 absorbing heads of a few queries are bound by arithmetic whatever the memory does.
        let fit = timed.fit(&passes(&timed, 0.9, 0.4, &[2, 4]), &provenance()).unwrap();
        assert!((fit.kernel.arithmetic / 0.4).ln().abs() < 0.1, "{fit:?}");
        assert!(fit.kernel.bandwidth < 0.2, "{fit:?}");
    }

    #[test]
    fn few_heads_show_the_memory_that_many_hide() {
        let cpu = Catalogue::builtin().get(CPU_CLASS).unwrap().spec.clone();
        let attention = shape(ModelName::Llama370bGqla).attention;
        let few = AttentionShape { num_attention_heads: 8, ..attention };
        let (bandwidth, arithmetic) = (0.9, 0.5);
        let timed = timed(&attention, DecodePath::MqaAbsorb, &cpu);
        let of = |shape| passes_of(&timed, shape, (bandwidth, arithmetic), &[1, 2, 4]);
        let hidden = timed.fit(&of(&attention), &provenance()).unwrap();
        assert!(hidden.kernel.bandwidth < bandwidth / 1.5, "{hidden:?}");
        let seen = timed.fit(&[of(&attention), of(&few)].concat(), &provenance()).unwrap();
        assert!(seen.kernel.bandwidth > bandwidth / 1.3, "{seen:?}");
        assert!((seen.kernel.arithmetic / arithmetic).ln().abs() < 0.1, "{seen:?}");
    }

    #[test]
    fn times_that_are_none_are_refused() {
        let cpu = Catalogue::builtin().get(CPU_CLASS).unwrap().spec.clone();
        let attention = shape(ModelName::Llama38bGqla).attention;
        let timed = timed(&attention, DecodePath::Gqa, &cpu);
        assert_eq!(timed.fit(&[], &provenance()), Err(FitError::NothingTimed));
        for ns in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let pass = TimedPass { shape: attention, query_tokens: 1, batch: 2, context: 64, ns };
            let sentence = timed.fit(&[pass], &provenance()).unwrap_err().to_string();
            assert!(sentence.starts_with("a pass over 2 × 64 tokens took"), "{sentence}");
        }
    }
}
