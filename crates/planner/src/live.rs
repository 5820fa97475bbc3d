//! From the counters of a serving pod to the rates its device must have.
//!
//! One number is measured, the mean time of a decoding step, so one thing is corrected: bandwidth and FLOP/s of the class
//! are scaled together until the modelled step at the pod's batch and context takes as long. Floors (launches, all-reduces,
//! the last-level cache) stay as they are, and so does the ridge: what a step on the other path takes is scaled, not measured.
//!
//! Prompts that are read between two steps lengthen the second's time, and counters cannot tell the two apart; where the
//! model says that they take more than a fifth of the pod's time, the measurement is refused.

mod counters;

use gqla_model::{DecodePath, ModelShape};

pub use self::counters::{DraftCounters, LiveCounters, LiveLoad, Observed};
use crate::{
    gpu::GpuSpec,
    host::{AbsurdRate, HostRates},
    kernels::Runtime,
    plan::{Candidate, Constraints, Goal, PlanError, plan},
};

/// Share of the pod's time that reading prompts may take.
const MOST_PREFILL: f64 = 0.2;
/// How much faster or slower than its class a device may be: beyond, something else is wrong.
const FARTHEST: f64 = 100.0;
/// Halvings of that range's logarithm: to a billionth.
const HALVINGS: u32 = 34;

/// A pod whose counters are read.
#[derive(Clone, Copy, Debug)]
pub struct LivePod<'a> {
    /// What it serves.
    pub shape: &'a ModelShape,
    /// The class of its GPUs.
    pub gpu: &'a GpuSpec,
    /// The engine.
    pub runtime: Runtime,
    /// The path it decodes along.
    pub path: DecodePath,
    /// Its GPUs.
    pub tensor_parallel: u32,
}

/// The rates at which the model takes as long as the pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveFit {
    /// Of the pod's device.
    pub rates: HostRates,
    /// What they are of the class's: 0.5 is half as fast.
    pub scale: f64,
    /// Milliseconds of a step at the class's rates.
    pub class_step_ms: f64,
    /// Milliseconds of a step at `rates`.
    pub step_ms: f64,
    /// Share of the pod's time that reading prompts takes, as modelled at `rates`.
    pub prefill_share: f64,
    /// Sequences a step was modelled with.
    pub batch: u32,
    /// Cached tokens it was modelled with.
    pub context: u32,
}

/// Counters that no rates follow from.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum LiveError {
    /// No time between the readings.
    #[error(
        "the pages are {seconds} s apart, expected a finite number above 0: give the time between the two readings"
    )]
    Seconds {
        /// Time between them.
        seconds: f64,
    },
    /// A counter that does not only grow.
    #[error(
        "{counter} went from {before} to {after}: the pod restarted between the pages, or they are swapped; take both \
         from one running pod"
    )]
    Backwards {
        /// Its name.
        counter: &'static str,
        /// The earlier value.
        before: f64,
        /// The later one.
        after: f64,
    },
    /// Hardly a token.
    #[error(
        "{tokens} tokens were decoded between the pages besides first ones, expected at least {least}: take the pages \
         further apart, while the pod is busy"
    )]
    TooFew {
        /// How many.
        tokens: f64,
        /// How many there have to be.
        least: f64,
    },
    /// Not busy most of the time.
    #[error(
        "sequences waited {waited:.1} s for their tokens in {seconds} s, so the pod was idle most of the time and its batch \
         is not known: take the pages while it is busy, and check the seconds between them"
    )]
    Idle {
        /// Seconds all sequences waited.
        waited: f64,
        /// Time between the pages.
        seconds: f64,
    },
    /// No lengths.
    #[error(
        "no request began or none finished in {seconds} s, so the context is not known: take the pages further apart"
    )]
    NoneFinished {
        /// Time between the pages.
        seconds: f64,
    },
    /// Drafts that are not counted.
    #[error(
        "{per_interval:.2} tokens came at a time, so the pod drafts, but its pages do not count drafts \
         (vllm:spec_decode_num_drafts_total): take them from an engine that does, or switch drafts off"
    )]
    Bunched {
        /// Tokens per output.
        per_interval: f64,
    },
    /// Drafts that cannot be.
    #[error(
        "{passes} steps verified {drafted} drafted tokens and accepted {accepted}, expected at most {most} drafts a step and no \
         more accepted than drafted"
    )]
    Drafts {
        /// Steps with drafts.
        passes: f64,
        /// Drafted tokens.
        drafted: f64,
        /// Accepted ones.
        accepted: f64,
        /// Most drafts of a step.
        most: f64,
    },
    /// Reading prompts, mostly.
    #[error(
        "reading {prompts:.0} prompts of {prompt_tokens:.0} tokens takes {:.0} % of the pod's time by the model, expected at most \
         {:.0} %: its steps are not decoding alone; take the pages under longer answers or shorter prompts",
        share * 100.0,
        MOST_PREFILL * 100.0
    )]
    Prefill {
        /// Prompts that were read.
        prompts: f64,
        /// Tokens of each.
        prompt_tokens: f64,
        /// Share of the time.
        share: f64,
    },
    /// Faster than any rates.
    #[error(
        "a step of {batch} sequences of {context} tokens took {measured_ms:.3} ms, expected more than {floor_ms:.3} ms, which \
         launches, all-reduces and caches take on {gpu} at {FARTHEST} times its rates: check model, GPU class and tensor \
         parallelism"
    )]
    Floors {
        /// Sequences.
        batch: u32,
        /// Tokens of each.
        context: u32,
        /// The step's time.
        measured_ms: f64,
        /// What is left of the modelled one.
        floor_ms: f64,
        /// The class.
        gpu: String,
    },
    /// Slower than any device of the class.
    #[error(
        "a step of {batch} sequences of {context} tokens took {measured_ms:.3} ms, expected less than {ceiling_ms:.3} ms, which it \
         takes on {gpu} at a {FARTHEST}th of its rates: check model, GPU class and tensor parallelism"
    )]
    Slow {
        /// Sequences.
        batch: u32,
        /// Tokens of each.
        context: u32,
        /// The step's time.
        measured_ms: f64,
        /// The slowest modelled one.
        ceiling_ms: f64,
        /// The class.
        gpu: String,
    },
    /// A pod the planner does not believe in.
    #[error("{0}; check that model, GPU class, tensor parallelism and path are the pod's")]
    Plan(#[from] PlanError),
    /// Rates no device has.
    #[error(transparent)]
    Rate(#[from] AbsurdRate),
}

impl LivePod<'_> {
    /// The rates at which a step takes as long as it did under `load`.
    pub fn fit(&self, load: &LiveLoad) -> Result<LiveFit, LiveError> {
        let (goal, constraints) = (self.goal(load), self.constraints(load));
        let at =
            |scale: f64| plan(self.shape, &self.scaled(scale), &goal, &constraints).map(|plan| plan.chosen);
        let step_ms = |scale: f64| at(scale).map(|candidate| candidate.step.total_us() / 1e3);
        let class_step_ms = step_ms(1.0)?;
        self.check_range(load, &goal, step_ms(1.0 / FARTHEST)?, step_ms(FARTHEST)?)?;
        // The step's time falls as rates rise, so halving the range finds the scale.
        let (mut slow, mut fast) = (1.0 / FARTHEST, FARTHEST);
        for _ in 0..HALVINGS {
            let middle = (slow * fast).sqrt();
            if step_ms(middle)? > load.step_ms { slow = middle } else { fast = middle }
        }
        let scale = (slow * fast).sqrt();
        let candidate = at(scale)?;
        let fitted = self.scaled(scale);
        let rates = HostRates {
            flops_per_second: fitted.flops_per_second,
            bytes_per_second: fitted.bytes_per_second,
        };
        rates.validate()?;
        Ok(LiveFit {
            rates,
            scale,
            class_step_ms,
            step_ms: candidate.step.total_us() / 1e3,
            prefill_share: prefill_share(load, &candidate)?,
            batch: candidate.batch,
            context: candidate.decode_context,
        })
    }

    fn scaled(&self, scale: f64) -> GpuSpec {
        GpuSpec {
            flops_per_second: self.gpu.flops_per_second * scale,
            bytes_per_second: self.gpu.bytes_per_second * scale,
            ..self.gpu.clone()
        }
    }

    fn goal(&self, load: &LiveLoad) -> Goal {
        let whole = |tokens: f64| (tokens.round() as u32).max(1);
        Goal {
            context_length: whole(load.context()).max(whole(load.prompt_tokens)),
            concurrency: whole(load.batch),
            // It did fit, whatever the engine was told to leave free.
            memory_fraction: 1.0,
            prompt_tokens: whole(load.prompt_tokens),
            output_tokens: whole(load.answer_tokens),
            ..Goal::default()
        }
    }

    fn constraints(&self, load: &LiveLoad) -> Constraints {
        Constraints {
            path: Some(self.path),
            tensor_parallel: Some(self.tensor_parallel),
            multi_token_prediction: Some(load.drafts),
            batch: Some((load.batch.round() as u32).max(1)),
            runtime: self.runtime,
            ..Constraints::default()
        }
    }

    fn check_range(&self, load: &LiveLoad, goal: &Goal, slowest: f64, fastest: f64) -> Result<(), LiveError> {
        let (batch, context, measured_ms) = (goal.concurrency, goal.decode_context(), load.step_ms);
        let gpu = self.gpu.name.to_string();
        if measured_ms <= fastest {
            return Err(LiveError::Floors { batch, context, measured_ms, floor_ms: fastest, gpu });
        }
        if measured_ms >= slowest {
            return Err(LiveError::Slow { batch, context, measured_ms, ceiling_ms: slowest, gpu });
        }
        Ok(())
    }
}

fn prefill_share(load: &LiveLoad, candidate: &Candidate) -> Result<f64, LiveError> {
    let prefill = load.prompts * candidate.time_to_first_token_ms;
    let share = prefill / (prefill + load.steps() * candidate.step.total_us() / 1e3);
    if share <= MOST_PREFILL {
        return Ok(share);
    }
    let LiveLoad { prompts, prompt_tokens, .. } = *load;
    Err(LiveError::Prefill { prompts, prompt_tokens, share })
}

#[cfg(test)]
mod tests;
