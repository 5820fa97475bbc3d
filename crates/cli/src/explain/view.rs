//! Decisions as programs are shown them.

use gqla_api::PoolStatus;
use gqla_decide::{NodeUse, PoolFailure, PoolPlan, record};
use gqla_planner::Goal;
use serde::Serialize;

use super::{Explained, Outcome};
use crate::decision::DecisionView;

/// Every GQLADeployment. Field names are an interface.
#[derive(Serialize)]
pub(super) struct View<'a> {
    pub deployments: Vec<DeploymentView<'a>>,
}

#[derive(Serialize)]
pub(super) struct DeploymentView<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
    pub pools: Vec<PoolView<'a>>,
    pub failures: Vec<FailureView<'a>>,
    pub nodes: Vec<NodeView<'a>>,
}

#[derive(Serialize)]
pub(super) struct PoolView<'a> {
    /// What the operator would write into the status, before any replica is ready.
    #[serde(flatten)]
    pub status: PoolStatus,
    /// Nodes that can hold a replica when they are otherwise empty.
    pub nodes: usize,
    /// Their usable GPUs.
    pub gpus: u32,
    /// As `gqla plan` prints it.
    pub decision: DecisionView<'a>,
}

#[derive(Serialize)]
pub(super) struct FailureView<'a> {
    /// Null where it is about the whole GQLADeployment.
    pub pool: Option<&'a str>,
    pub reason: &'static str,
    pub sentence: &'a str,
}

#[derive(Serialize)]
pub(super) struct NodeView<'a> {
    pub node: &'a str,
    pub class: Option<&'a str>,
    /// Usable GPUs.
    pub gpus: u32,
    pub used: bool,
    pub pools: &'a [String],
    pub why: &'a str,
}

impl<'a> View<'a> {
    pub(super) fn of(explained: &'a [Explained]) -> Self {
        Self { deployments: explained.iter().map(DeploymentView::of).collect() }
    }
}

impl<'a> DeploymentView<'a> {
    fn of(explained: &'a Explained) -> Self {
        let (name, namespace) = (explained.name.as_str(), explained.namespace.as_str());
        match &explained.outcome {
            Outcome::Refused(refusal) => {
                let failure = FailureView { pool: None, reason: refusal.reason, sentence: &refusal.sentence };
                Self { name, namespace, pools: Vec::new(), failures: vec![failure], nodes: Vec::new() }
            }
            Outcome::Planned { plan, goal, nodes } => Self {
                name,
                namespace,
                pools: plan.pools.iter().map(|pool| PoolView::of(pool, goal)).collect(),
                failures: plan.failures.iter().map(FailureView::of).collect(),
                nodes: nodes.iter().map(NodeView::of).collect(),
            },
        }
    }
}

impl<'a> PoolView<'a> {
    fn of(plan: &'a PoolPlan, goal: &Goal) -> Self {
        Self {
            status: record(plan),
            nodes: plan.nodes,
            gpus: plan.gpus,
            decision: DecisionView::decided(&plan.decision, goal),
        }
    }
}

impl<'a> FailureView<'a> {
    fn of(failure: &'a PoolFailure) -> Self {
        Self {
            pool: (!failure.pool.is_empty()).then_some(failure.pool.as_str()),
            reason: failure.reason.as_str(),
            sentence: &failure.sentence,
        }
    }
}

impl<'a> NodeView<'a> {
    fn of(told: &'a NodeUse) -> Self {
        Self {
            node: &told.node,
            class: told.class.as_deref(),
            gpus: told.gpus,
            used: told.is_used(),
            pools: &told.pools,
            why: &told.why,
        }
    }
}
