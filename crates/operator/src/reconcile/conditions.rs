//! Conditions, and when their times change. Pure.

use gqla_api::{ConditionReason, ConditionType};
use gqla_decide::text::{LONGEST_SENTENCE, cut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a condition says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Not known yet.
    Unknown,
}

impl Truth {
    const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// One judgement of a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// What is judged.
    pub kind: ConditionType,
    /// The judgement.
    pub truth: Truth,
    /// One word for programs.
    pub reason: ConditionReason,
    /// One sentence for people.
    pub message: String,
}

impl Judgement {
    /// A judgement.
    pub fn new(
        kind: ConditionType,
        truth: Truth,
        reason: ConditionReason,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, truth, reason, message: message.into() }
    }

    /// Whether it holds.
    pub fn holds(&self) -> bool {
        self.truth == Truth::True
    }
}

/// The judgements as conditions. `lastTransitionTime` stays what it was in `previous` until the truth changes.
pub fn conditions(
    previous: &[Condition],
    judgements: &[Judgement],
    generation: i64,
    now: &Time,
) -> Vec<Condition> {
    judgements.iter().map(|judgement| condition(previous, judgement, generation, now)).collect()
}

fn condition(previous: &[Condition], judgement: &Judgement, generation: i64, now: &Time) -> Condition {
    let status = judgement.truth.as_str();
    let before = previous.iter().find(|old| old.type_ == judgement.kind.as_str() && old.status == status);
    Condition {
        type_: judgement.kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: judgement.reason.as_str().to_owned(),
        message: cut(judgement.message.clone(), LONGEST_SENTENCE),
        observed_generation: Some(generation),
        last_transition_time: before.map_or_else(|| now.clone(), |old| old.last_transition_time.clone()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn time_changes_only_with_the_truth() {
        let judgement = |truth, message: &str| {
            Judgement::new(ConditionType::Planned, truth, ConditionReason::Decided, message)
        };
        let first = conditions(&[], &[judgement(Truth::True, "a")], 1, &at(1));
        let second = conditions(&first, &[judgement(Truth::True, "b")], 2, &at(2));
        assert_eq!((second[0].last_transition_time.clone(), second[0].observed_generation), (at(1), Some(2)));
        assert_eq!(second[0].message, "b");
        let third = conditions(&second, &[judgement(Truth::Unknown, "c")], 2, &at(3));
        assert_eq!(third[0].last_transition_time, at(3));
    }
}
