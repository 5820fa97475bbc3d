//! Which path to decode on: an order from the command line, or the planner's advice for this machine.

use gqla_model::{DecodePath, ModelShape};
use gqla_planner::{CPU_CLASS, Catalogue, Constraints, Goal, PlanError, plan};

/// A path and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathChoice {
    /// `None` for a plain model, which has one path only.
    pub path: Option<DecodePath>,
    /// Who chose; the `reason` label of `gqla_decode_path`.
    pub reason: Reason,
    /// The planner's sentence, when it was asked.
    pub explanation: Option<String>,
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

/// Decides. `shape` is `None` for a plain model.
pub fn choose(
    requested: Option<DecodePath>,
    shape: Option<&ModelShape>,
    context_length: usize,
    concurrency: usize,
) -> Result<PathChoice, PathError> {
    match (requested, shape) {
        (Some(path), None) => Err(PathError::PlainModel(path)),
        (None, None) => Ok(PathChoice { path: None, reason: Reason::OnlyPath, explanation: None }),
        (Some(path), Some(_)) => {
            Ok(PathChoice { path: Some(path), reason: Reason::Requested, explanation: None })
        }
        (None, Some(shape)) => planned(shape, context_length, concurrency),
    }
}

fn planned(shape: &ModelShape, context_length: usize, concurrency: usize) -> Result<PathChoice, PathError> {
    let catalogue = Catalogue::builtin();
    let class = catalogue.get(CPU_CLASS).ok_or(PathError::NoClass)?;
    let goal = Goal {
        context_length: u32::try_from(context_length).unwrap_or(u32::MAX),
        concurrency: u32::try_from(concurrency).unwrap_or(u32::MAX),
        ..Goal::default()
    };
    let constraints =
        Constraints { tensor_parallel: Some(1), multi_token_prediction: Some(0), ..Constraints::default() };
    let decision = plan(shape, &class.spec, &goal, &constraints)?;
    Ok(PathChoice {
        path: Some(decision.chosen.path),
        reason: Reason::Planned,
        explanation: Some(decision.reason),
    })
}

#[cfg(test)]
mod tests {
    use gqla_planner::{ModelName, shape};

    use super::*;

    #[test]
    fn an_order_is_obeyed_and_auto_asks_the_planner() {
        let shape = shape(ModelName::DeepseekAttention);
        for path in DecodePath::ALL {
            let choice = choose(Some(path), Some(&shape), 4096, 8).unwrap();
            assert_eq!((choice.path, choice.reason), (Some(path), Reason::Requested));
        }
        let auto = choose(None, Some(&shape), 4096, 8).unwrap();
        assert_eq!(auto.reason, Reason::Planned);
        // A CPU's ridge is so low that 128 absorbing heads are bound by arithmetic.
        assert_eq!(auto.path, Some(DecodePath::Gqa));
        assert!(auto.explanation.is_some());
    }

    #[test]
    fn a_plain_model_has_nothing_to_choose() {
        assert_eq!(choose(None, None, 64, 1).unwrap().reason, Reason::OnlyPath);
        let error = choose(Some(DecodePath::Gqa), None, 64, 1).unwrap_err();
        assert!(error.to_string().contains("gqla convert"), "{error}");
    }
}
