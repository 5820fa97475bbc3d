//! Chooses path, tensor parallelism and multi-token prediction for a model on a GPU class, and says why.
//!
//! Which decode path is faster follows from heads, groups, ranks, query tokens per pass and the device's ridge, not from
//! the device's name: DeepSeek's shape wants absorb on an H100 and GQA on an H20, GLM-4.7-Flash wants absorb on both. So
//! nothing here looks a path up; it is computed ([`plan`]) from the roofline of the attention core ([`AttentionCore`]),
//! what kernels make of it on the class at hand, and everything else a decoding step waits for ([`StepTime`]), with
//! weights and cache made to fit.
//!
//! Everything is a function of its arguments: no clock, environment, file, network or randomness. All times are
//! modelled; [`Decision::basis`] says from what, and a [`Calibration`] puts measurements in their place.
//!
//! ```
//! use gqla_model::DecodePath;
//! use gqla_planner::{Catalogue, Constraints, Goal, ModelName, plan, shape};
//!
//! let catalogue = Catalogue::builtin();
//! let h20 = &catalogue.get("H20").ok_or("H20 is built in")?.spec;
//! let decision = plan(&shape(ModelName::DeepseekAttention), h20, &Goal::default(), &Constraints::default())?;
//! assert_eq!(decision.chosen.path, DecodePath::Gqa);
//! assert_eq!(decision.chosen.multi_token_prediction, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod calibration;
mod catalogue;
mod explain;
mod fit;
mod gpu;
mod hardware;
mod host;
mod identify;
mod kernel;
mod kernels;
mod live;
mod memory;
mod models;
mod plan;
mod roofline;
mod search;
mod step;

pub use attention::Efficiency;
pub use calibration::{Calibration, CalibrationError, MeasuredDevice, MeasuredKernel, Provenance};
pub use catalogue::{CPU_CLASS, Catalogue};
pub use fit::{FitError, KernelFit, Timed, TimedPass};
pub use gpu::{
    ComputeCapability, Confidence, GpuClass, GpuSpec, GpuSpecError, NoComputeCapability, NodeLabel,
};
pub use hardware::{Architecture, Hardware};
pub use host::{AbsurdRate, HostRates};
pub use identify::{ACCELERATOR_LABELS, PRESENCE_LABELS, Part, spellings};
pub use kernel::{LEAST_SPLIT_PAGES, MOST_SPLITS, PAGE_TOKENS};
pub use kernels::{Backend, Runtime};
pub use live::{DraftCounters, LiveCounters, LiveError, LiveFit, LiveLoad, LivePod, Observed};
pub use models::{ModelName, UnknownModel, shape};
pub use plan::{Candidate, Constraints, Decision, Goal, Objective, PlanError, Scope, plan, plan_calibrated};
pub use roofline::{AttentionCore, Bound, CacheLayout, RopeLayout};
pub use step::StepTime;
