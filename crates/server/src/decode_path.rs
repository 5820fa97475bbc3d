//! Which path to decode on: an order from the command line, or the planner's advice for this machine.

use gqla_model::{CacheFormat, DecodePath, ModelShape};
use gqla_planner::{CPU_CLASS, Catalogue, Constraints, Goal, GpuSpec, HostRates, PlanError, plan};

/// What is asked for on the command line.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// `None` asks the planner.
    pub path: Option<DecodePath>,
    /// Ranks that share this machine.
    pub tensor_parallel: u32,
    /// Prompt plus answer, in tokens.
    pub context_length: usize,
    /// Sequences decoded at once.
    pub concurrency: usize,
    /// What the cache's numbers are stored as.
    pub cache_format: CacheFormat,
}

/// A path and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct PathChoice {
    /// `None` for a plain model, which has one path only.
    pub path: Option<DecodePath>,
    /// Who chose; the `reason` label of `gqla_decode_path`.
    pub reason: Reason,
    /// The planner's sentence, when it was asked.
    pub explanation: Option<String>,
    /// What the planner was told of this machine, when it was asked.
    pub machine: Option<Machine>,
}

/// This machine, as the planner is asked about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The class `CPU`, with the rates measured here or else the catalogue's.
    pub spec: GpuSpec,
    /// Why the catalogue's rates stand; `None` where they were measured.
    pub unmeasured: Option<String>,
}

impl Machine {
    /// `class` with what was measured, unless that failed or cannot be true.
    fn of(class: &GpuSpec, measured: Result<HostRates, String>) -> Self {
        let applied = measured.and_then(|rates| rates.apply(class).map_err(|absurd| absurd.to_string()));
        match applied {
            Ok(spec) => Self { spec, unmeasured: None },
            Err(why) => Self { spec: class.clone(), unmeasured: Some(why) },
        }
    }

    /// What one of `ranks` has of this machine.
    fn share(&self, ranks: u32) -> GpuSpec {
        GpuSpec {
            flops_per_second: self.spec.flops_per_second / f64::from(ranks),
            bytes_per_second: self.spec.bytes_per_second / f64::from(ranks),
            memory_bytes: self.spec.memory_bytes / u64::from(ranks.max(1)),
            ..self.spec.clone()
        }
    }

    /// `measured` or `catalogue`.
    pub const fn source(&self) -> &'static str {
        if self.unmeasured.is_none() { "measured" } else { "catalogue" }
    }
}

/// Who chose the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `--decode-path` named it.
    Requested,
    /// The planner computed it.
    Planned,
    /// The model has no other.
    OnlyPath,
}

impl Reason {
    /// The label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Planned => "planned",
            Self::OnlyPath => "only_path",
        }
    }
}

/// Why there is no path.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PathError {
    /// A path was ordered for a model that has none to choose from.
    #[error(
        "--decode-path {0}: the model has plain grouped-query attention and only one path; convert it with `gqla convert` or use --decode-path auto"
    )]
    PlainModel(DecodePath),
    /// The planner has no answer.
    #[error("--decode-path auto: {0}; name a path with --decode-path")]
    Plan(#[from] PlanError),
    /// The catalogue lacks this machine.
    #[error(
        "--decode-path auto: the planner's catalogue has no class `{CPU_CLASS}`; name a path with --decode-path"
    )]
    NoClass,
}

/// Decides. `shape` is `None` for a plain model; `measure` is called only where the planner is asked, and what it
/// answers with an error or with absurd rates leaves the catalogue's in place.
pub fn choose(
    asked: Asked,
    shape: Option<&ModelShape>,
    measure: impl FnOnce() -> Result<HostRates, String>,
) -> Result<PathChoice, PathError> {
    match (asked.path, shape) {
        (Some(path), None) => Err(PathError::PlainModel(path)),
        (None, None) => Ok(unplanned(None, Reason::OnlyPath)),
        (Some(path), Some(_)) => Ok(unplanned(Some(path), Reason::Requested)),
        (None, Some(shape)) => {
            let catalogue = Catalogue::builtin();
            let class = catalogue.get(CPU_CLASS).ok_or(PathError::NoClass)?;
            planned(shape, asked, Machine::of(&class.spec, measure()))
        }
    }
}

const fn unplanned(path: Option<DecodePath>, reason: Reason) -> PathChoice {
    PathChoice { path, reason, explanation: None, machine: None }
}

fn planned(shape: &ModelShape, asked: Asked, machine: Machine) -> Result<PathChoice, PathError> {
    let goal = Goal {
        context_length: u32::try_from(asked.context_length).unwrap_or(u32::MAX),
        concurrency: u32::try_from(asked.concurrency).unwrap_or(u32::MAX),
        ..Goal::default()
    };
    let constraints = Constraints {
        tensor_parallel: Some(asked.tensor_parallel),
        // What is planned is a full batch, and the engine drafts only where a batch is small.
        multi_token_prediction: Some(0),
        cache_format: Some(asked.cache_format),
        ..Constraints::default()
    };
    let decision = plan(shape, &machine.share(asked.tensor_parallel), &goal, &constraints)?;
    Ok(PathChoice {
        path: Some(decision.chosen.path),
        reason: Reason::Planned,
        explanation: Some(decision.reason),
        machine: Some(machine),
    })
}

#[cfg(test)]
mod tests {
    use gqla_planner::{ModelName, shape};

    use super::*;

    fn rates(flops_per_second: f64, bytes_per_second: f64) -> HostRates {
        HostRates { flops_per_second, bytes_per_second }
    }

    fn asked(path: Option<DecodePath>) -> Asked {
        Asked {
            path,
            tensor_parallel: 1,
            context_length: 4096,
            concurrency: 8,
            cache_format: CacheFormat::CPU_DEFAULT,
        }
    }

    fn never() -> Result<HostRates, String> {
        panic!("nothing is measured for a path that is not planned")
    }

    #[test]
    fn an_order_is_obeyed_and_measures_nothing() {
        let shape = shape(ModelName::DeepseekAttention);
        for path in DecodePath::ALL {
            let choice = choose(asked(Some(path)), Some(&shape), never).unwrap();
            assert_eq!((choice.path, choice.reason), (Some(path), Reason::Requested));
        }
    }

    #[test]
    fn auto_asks_the_planner_with_what_was_measured() {
        let shape = shape(ModelName::DeepseekAttention);
        // 128 absorbing heads are bound by arithmetic, unless there is far more of it than bandwidth.
        for (measured, path) in [
            (rates(2e11, 3e10), DecodePath::Gqa),
            (rates(1e15, 1e12), DecodePath::MqaAbsorb),
            (rates(2e11, 1e12), DecodePath::Gqa),
        ] {
            let auto = choose(asked(None), Some(&shape), || Ok(measured)).unwrap();
            assert_eq!((auto.path, auto.reason), (Some(path), Reason::Planned), "{measured:?}");
            let machine = auto.machine.unwrap();
            assert_eq!((machine.spec.ridge(), machine.source()), (measured.ridge(), "measured"));
            assert!(auto.explanation.is_some());
        }
    }

    #[test]
    fn the_plan_counts_the_cache_as_the_engine_will_store_it() {
        let shape = shape(ModelName::DeepseekAttention);
        let explained = |cache_format| {
            let asked = Asked { cache_format, ..asked(None) };
            let choice = choose(asked, Some(&shape), || Ok(rates(2e11, 3e10))).unwrap();
            choice.explanation.unwrap()
        };
        // (8 · 256 + 64) numbers per token and layer, as DeepSeek's shape caches with 8 groups.
        assert!(explained(CacheFormat::F32).contains("8448 B"), "{}", explained(CacheFormat::F32));
        assert!(explained(CacheFormat::Bf16).contains("4224 B"), "{}", explained(CacheFormat::Bf16));
        // And 17 scales: of every group's keys and values, and of the rotary key.
        assert!(explained(CacheFormat::Int8).contains("2180 B"), "{}", explained(CacheFormat::Int8));
    }

    #[test]
    fn ranks_share_the_machine_and_what_they_cannot_share_is_refused() {
        let shape = shape(ModelName::DeepseekAttention);
        let choose = |tensor_parallel, shape: &ModelShape| {
            choose(Asked { tensor_parallel, ..asked(None) }, Some(shape), || Ok(rates(2e12, 2e10)))
        };
        // Latents are on every rank, groups on one: eight ranks read 8 × 576 numbers of a token or 8 × 256 + 8 × 64.
        assert_eq!(choose(8, &shape).unwrap().path, Some(DecodePath::Gqa));
        let one = Machine { spec: choose(1, &shape).unwrap().machine.unwrap().spec, unmeasured: None };
        assert_eq!(one.share(4).ridge(), one.spec.ridge());
        assert_eq!(one.share(4).bytes_per_second, 5e9);
        let glm = gqla_planner::shape(ModelName::Glm47FlashGqla);
        let error = choose(8, &glm).unwrap_err().to_string();
        assert!(error.contains("tensorParallel=8 does not divide numAttentionHeads=20"), "{error}");
    }

    #[test]
    fn without_a_believable_measurement_the_catalogue_decides() {
        let shape = shape(ModelName::DeepseekAttention);
        let catalogue = Catalogue::builtin();
        let class = &catalogue.get(CPU_CLASS).unwrap().spec;
        for (measured, why) in [
            (Ok(rates(1e15, 0.0)), "memory bandwidth was measured as 0e0"),
            (Ok(rates(f64::NAN, 3e10)), "arithmetic was measured as NaN"),
            (Ok(rates(1e15, 2e14)), "memory bandwidth was measured as 2e14"),
            (Err("no thread".to_owned()), "no thread"),
        ] {
            let auto = choose(asked(None), Some(&shape), || measured).unwrap();
            let machine = auto.machine.unwrap();
            assert_eq!((&machine.spec, machine.source()), (class, "catalogue"));
            assert!(machine.unmeasured.as_ref().unwrap().starts_with(why), "{machine:?}");
            assert_eq!(auto.path, Some(DecodePath::Gqa));
        }
    }

    #[test]
    fn a_plain_model_has_nothing_to_choose() {
        assert_eq!(choose(asked(None), None, never).unwrap().reason, Reason::OnlyPath);
        let error = choose(asked(Some(DecodePath::Gqa)), None, never).unwrap_err();
        assert!(error.to_string().contains("gqla convert"), "{error}");
    }
}
