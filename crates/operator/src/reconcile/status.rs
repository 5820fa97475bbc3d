//! The status that a pass leaves. Pure.

use std::collections::BTreeMap;

use gqla_api::{
    ConditionReason as Reason, ConditionType as Kind, GQLADeployment, GQLADeploymentStatus, ModelStatus,
    PoolStatus, labels::POOL,
};
use gqla_decide::{
    Identity, Plan, PoolPlan, record, round,
    text::{LONGEST_SENTENCE, cut},
};
use gqla_fleet::{ProblemKind, grouped};
use k8s_openapi::{
    api::apps::v1::{Deployment, DeploymentStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::ResourceExt as _;

use super::conditions::{Judgement, Truth, conditions};

/// Kinds of doubt about nodes that one condition tells.
const MAX_GROUPS: usize = 8;

/// How far a pass came.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The spec, or the model, is at fault.
    Refused {
        /// Condition reason.
        reason: Reason,
        /// What is wrong and what to do.
        sentence: String,
    },
    /// The model's files are being read.
    Inspecting(String),
    /// There is a plan, for some pools at least.
    Planned(Plan),
}

/// What a status is computed from, besides the GQLADeployment itself.
pub struct Facts<'a> {
    /// How far the pass came.
    pub verdict: &'a Verdict,
    /// What is known of the model from its files.
    pub model: Option<ModelStatus>,
    /// Whether the model can draft at all; `None` when it is not known yet.
    pub can_draft: Option<bool>,
    /// The Deployments that exist now.
    pub deployments: &'a [Deployment],
    /// Measured tokens per second by pool, as far as they are to be published.
    pub measured: &'a BTreeMap<String, f64>,
    /// Now.
    pub now: Time,
}

/// Pods of one pool, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pods {
    wanted: i32,
    existing: i32,
    ready: i32,
    rolled_out: bool,
    stuck: bool,
}

/// The status of `object`.
pub fn status(object: &GQLADeployment, identity: &Identity, facts: &Facts<'_>) -> GQLADeploymentStatus {
    let previous = object.status.clone().unwrap_or_default();
    let pods: BTreeMap<String, Pods> = facts.deployments.iter().filter_map(pods_of).collect();
    let judgements = judge(facts, &pods);
    let pools = pools(&previous, facts, &pods);
    GQLADeploymentStatus {
        observed_generation: Some(identity.generation),
        replicas: pods.values().map(|pods| pods.existing).sum(),
        ready_replicas: pods.values().map(|pods| pods.ready).sum(),
        selector: Some(identity.selector()),
        paths: (!pools.is_empty()).then(|| pools.iter().map(path_word).collect::<Vec<_>>().join(" ")),
        message: message(&judgements),
        model: facts.model.clone(),
        conditions: conditions(&previous.conditions, &judgements, identity.generation, &facts.now),
        pools,
    }
}

fn pods_of(deployment: &Deployment) -> Option<(String, Pods)> {
    let pool = deployment.labels().get(POOL)?.clone();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation >= deployment.metadata.generation;
    let count = |value: Option<i32>| value.unwrap_or(0);
    let settled = [status.updated_replicas, status.replicas, status.available_replicas];
    Some((
        pool,
        Pods {
            wanted,
            existing: count(status.replicas),
            // Pods go on serving while a new spec waits to be observed.
            ready: count(status.ready_replicas),
            rolled_out: current && settled.into_iter().all(|value| count(value) == wanted),
            stuck: current && deadline_exceeded(&status),
        },
    ))
}

fn deadline_exceeded(status: &DeploymentStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "Progressing" && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    })
}

fn judge(facts: &Facts<'_>, pods: &BTreeMap<String, Pods>) -> Vec<Judgement> {
    vec![
        planned(facts.verdict),
        progressing(pods),
        available(pods),
        recognized(facts.verdict),
        drafting(facts),
    ]
}

fn planned(verdict: &Verdict) -> Judgement {
    let judgement = |truth, reason, message: String| Judgement::new(Kind::Planned, truth, reason, message);
    match verdict {
        Verdict::Refused { reason, sentence } => judgement(Truth::False, *reason, sentence.clone()),
        Verdict::Inspecting(sentence) => judgement(Truth::Unknown, Reason::InspectingModel, sentence.clone()),
        Verdict::Planned(plan) => match plan.failures.first() {
            Some(first) => {
                let sentences: Vec<_> =
                    plan.failures.iter().map(|failure| failure.sentence.as_str()).collect();
                judgement(Truth::False, first.reason, sentences.join("; "))
            }
            None => {
                let reasons: Vec<_> = plan
                    .pools
                    .iter()
                    .map(|pool| format!("{}: {}", pool.name, pool.decision.reason))
                    .collect();
                judgement(Truth::True, Reason::Decided, reasons.join("; "))
            }
        },
    }
}

fn progressing(pods: &BTreeMap<String, Pods>) -> Judgement {
    let judgement =
        |truth, reason, message: String| Judgement::new(Kind::Progressing, truth, reason, message);
    if pods.is_empty() {
        return judgement(Truth::False, Reason::NotPlanned, "there is no pool to roll out".to_owned());
    }
    let stuck = names(pods, |pods| pods.stuck);
    if !stuck.is_empty() {
        let message = format!("no progress within rollout.progressDeadlineSeconds in pool {stuck}");
        return judgement(Truth::False, Reason::DeadlineExceeded, message);
    }
    let moving = names(pods, |pods| !pods.rolled_out);
    if moving.is_empty() {
        return judgement(Truth::True, Reason::RolledOut, "every pod runs its pool's plan".to_owned());
    }
    judgement(Truth::True, Reason::RollingOut, format!("pods are being rolled out in pool {moving}"))
}

fn available(pods: &BTreeMap<String, Pods>) -> Judgement {
    let judgement = |truth, reason, message: String| Judgement::new(Kind::Available, truth, reason, message);
    if pods.is_empty() {
        return judgement(Truth::False, Reason::NotPlanned, "there is no pool to serve from".to_owned());
    }
    let wanted: i32 = pods.values().map(|pods| pods.wanted).sum();
    let ready: i32 = pods.values().map(|pods| pods.ready.min(pods.wanted)).sum();
    let missing = names(pods, |pods| pods.ready < pods.wanted);
    match (wanted, missing) {
        (0, _) => judgement(Truth::True, Reason::ScaledToZero, "zero replicas were asked for".to_owned()),
        (_, none) if none.is_empty() => {
            judgement(Truth::True, Reason::AllReady, format!("{ready} of {wanted} replicas are ready"))
        }
        (_, missing) => judgement(
            Truth::False,
            Reason::ReplicasNotReady,
            format!("{ready} of {wanted} replicas are ready; waiting for pool {missing}"),
        ),
    }
}

fn names(pods: &BTreeMap<String, Pods>, which: impl Fn(&Pods) -> bool) -> String {
    let names: Vec<_> = pods.iter().filter(|(_, pods)| which(pods)).map(|(name, _)| name.as_str()).collect();
    names.join(", ")
}

fn recognized(verdict: &Verdict) -> Judgement {
    let judgement =
        |truth, reason, message: String| Judgement::new(Kind::HardwareRecognized, truth, reason, message);
    match verdict {
        Verdict::Planned(plan) => {
            let doubts = plan.problems.iter().filter(|problem| problem.kind.is_of_recognition());
            let groups = grouped(doubts);
            let Some(first) = groups.first() else {
                let message = "every node in reach is of a class in the catalogue";
                return judgement(Truth::True, Reason::AllRecognized, message.to_owned());
            };
            let sentences: Vec<_> =
                groups.iter().take(MAX_GROUPS).map(|group| group.sentence.as_str()).collect();
            let more = groups.len().saturating_sub(MAX_GROUPS);
            let rest = if more > 0 { format!("; and {more} more") } else { String::new() };
            judgement(Truth::False, doubt(first.kind), format!("{}{rest}", sentences.join("; ")))
        }
        _ => judgement(
            Truth::Unknown,
            Reason::NotPlanned,
            "hardware is judged when pools are planned".to_owned(),
        ),
    }
}

/// The word for a problem that puts in doubt what a node is.
fn doubt(kind: ProblemKind) -> Reason {
    match kind {
        ProblemKind::LyingLabel => Reason::LyingLabel,
        ProblemKind::MixedModels => Reason::MixedModels,
        ProblemKind::MigSlice => Reason::MigSlice,
        ProblemKind::SharedGpu => Reason::SharedGpu,
        ProblemKind::Unlabelled => Reason::NotLabelled,
        ProblemKind::UnknownClass => Reason::UnknownClass,
        ProblemKind::Disputed => Reason::ContradictingFacts,
        ProblemKind::BadAnnotation => Reason::BadAnnotation,
        _ => Reason::UnknownProduct,
    }
}

fn drafting(facts: &Facts<'_>) -> Judgement {
    let judgement = |truth, reason, message: String| Judgement::new(Kind::MTPActive, truth, reason, message);
    let Verdict::Planned(plan) = facts.verdict else {
        return judgement(Truth::Unknown, Reason::NotPlanned, "there is no plan".to_owned());
    };
    let drafting: Vec<_> = plan
        .pools
        .iter()
        .filter(|pool| pool.decision.chosen.multi_token_prediction > 0)
        .map(|pool| pool.name.as_str())
        .collect();
    match (drafting.is_empty(), facts.can_draft) {
        (false, _) => judgement(
            Truth::True,
            Reason::Drafting,
            format!("planned with drafts: pool {}", drafting.join(", ")),
        ),
        (true, Some(false)) => judgement(
            Truth::False,
            Reason::NoPredictionLayers,
            "the model has no multi-token-prediction layers".to_owned(),
        ),
        (true, _) => judgement(Truth::False, Reason::NotUsed, "no pool's plan uses drafts".to_owned()),
    }
}

/// The first thing that is not as it should be, or that all is well.
fn message(judgements: &[Judgement]) -> Option<String> {
    let of = |kind| judgements.iter().find(|judgement| judgement.kind == kind);
    let (planned, available) = (of(Kind::Planned)?, of(Kind::Available)?);
    let told = if planned.holds() { available } else { planned };
    Some(cut(told.message.clone(), LONGEST_SENTENCE))
}

fn pools(
    previous: &GQLADeploymentStatus,
    facts: &Facts<'_>,
    pods: &BTreeMap<String, Pods>,
) -> Vec<PoolStatus> {
    let plans: &[PoolPlan] = match facts.verdict {
        Verdict::Planned(plan) => &plan.pools,
        _ => &[],
    };
    let mut pools: Vec<_> = plans.iter().map(record).collect();
    let kept = previous.pools.iter().filter(|old| pods.contains_key(&old.name));
    for old in kept {
        if pools.iter().all(|pool| pool.name != old.name) {
            let note = Some("there is no plan for this pool now; the last one stays".to_owned());
            pools.push(PoolStatus { note, ..old.clone() });
        }
    }
    for pool in &mut pools {
        let pods = pods.get(&pool.name).copied().unwrap_or_default();
        (pool.replicas, pool.ready) = (pods.wanted, pods.ready);
        pool.measured_tokens_per_second = facts.measured.get(&pool.name).copied().map(round);
    }
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    pools
}

/// `h20=GQA(mtp1)`: tensor parallelism and drafts where they are not 1 and 0.
fn path_word(pool: &PoolStatus) -> String {
    let degree = (pool.tensor_parallel > 1).then(|| format!("tp{}", pool.tensor_parallel));
    let drafts = (pool.multi_token_prediction > 0).then(|| format!("mtp{}", pool.multi_token_prediction));
    let extras: Vec<_> = degree.into_iter().chain(drafts).collect();
    let extras = if extras.is_empty() { String::new() } else { format!("({})", extras.join(",")) };
    format!("{}={}{extras}", pool.name, pool.path.api_name())
}

#[cfg(test)]
mod tests;
