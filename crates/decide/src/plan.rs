//! From a valid GQLADeployment and the fleet to a plan per pool. Pure.
//!
//! A pool that cannot be planned never stops the others, and never takes down what already runs: its objects are
//! kept as they are until it can be planned again or leaves the spec.

use std::collections::BTreeMap;

use gqla_api::{
    ConditionReason, DecodeSpec, Device, MultiTokenPrediction, Objective, PlacementStrategy, PoolSpec,
    ShortDuration, TensorParallel,
};
use gqla_fleet::{
    ClassNodes, FleetNode, MAX_REFUTED, NodeHardware, Problem, ProblemGroup, Survey, grouped, survey,
};
use gqla_model::ModelShape;
use gqla_planner::{CPU_CLASS, Constraints, Decision, Goal, PlanError};
use k8s_openapi::api::core::v1::NodeSelectorTerm;

use crate::{
    fleet::FleetSnapshot,
    placement::{Slot, share},
    validate::{ValidatedDeployment, device_on},
};

/// What one pool is to run.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolPlan {
    /// Name of the pool.
    pub name: String,
    /// GPU class planned for.
    pub class: String,
    /// Alternatives, one of which a node must match: they are those nodes of the pool's selector that count as the class.
    pub node_terms: Vec<NodeSelectorTerm>,
    /// CPU or CUDA.
    pub device: Device,
    /// Replicas.
    pub replicas: u32,
    /// Path, tensor parallelism and drafts, and why.
    pub decision: Decision,
    /// What a reader of the figures must know.
    pub note: Option<String>,
    /// What is wrong with the pool's nodes at present.
    pub troubles: Vec<ProblemGroup>,
}

/// Kinds of trouble that a pool's note tells.
const MAX_TROUBLES: usize = 5;

/// A pool without a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolFailure {
    /// Name of the pool.
    pub pool: String,
    /// Condition reason.
    pub reason: ConditionReason,
    /// What is wrong and what to do.
    pub sentence: String,
}

/// The plan of a GQLADeployment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Pools to run.
    pub pools: Vec<PoolPlan>,
    /// Pools that cannot be planned.
    pub failures: Vec<PoolFailure>,
    /// Whether the spec names no pools, so that pools come and go with the fleet.
    pub automatic: bool,
    /// What is wrong with nodes in reach.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Whether the objects of `pool` are to be left as they are: it is in the spec and failed, or pools are automatic
    /// and none could be planned. A pool that left the spec is never kept.
    pub fn keeps(&self, pool: &str) -> bool {
        self.failures.iter().any(|failure| failure.pool == pool)
            || (self.automatic && self.pools.is_empty() && !self.failures.is_empty())
    }
}

/// A pool before it is planned.
struct Target<'a> {
    name: String,
    nodes: &'a ClassNodes,
    selector: BTreeMap<String, String>,
    decode: DecodeSpec,
    min: u32,
    max: u32,
}

struct Planned<'a> {
    target: Target<'a>,
    device: Device,
    decision: Decision,
}

/// Plans every pool of `deployment`, whose model has `shape`, on `fleet`.
pub fn plan(deployment: &ValidatedDeployment, shape: &ModelShape, fleet: &FleetSnapshot) -> Plan {
    let usable: Vec<(&FleetNode, &NodeHardware)> =
        fleet.described().filter(|(node, _)| node.accepts(&deployment.tolerations)).collect();
    let surveys = surveys(deployment, fleet, &usable);
    let problems = surveys.first().map(|whole| whole.problems.clone()).unwrap_or_default();
    let (targets, mut failures) = if deployment.spec.pools.is_empty() {
        automatic_targets(deployment, &surveys[0])
    } else {
        pool_targets(deployment, fleet, &surveys)
    };
    let mut planned = Vec::new();
    for target in targets {
        match decide(deployment, shape, fleet, &target) {
            Ok((device, decision)) => planned.push(Planned { target, device, decision }),
            Err((reason, sentence)) => failures.push(PoolFailure { pool: target.name, reason, sentence }),
        }
    }
    // An automatic class that cannot hold the model is no failure as long as another can.
    if deployment.spec.pools.is_empty() && !planned.is_empty() {
        failures.clear();
    }
    let automatic = deployment.spec.pools.is_empty();
    let pools = place(deployment, fleet, planned);
    if failures.is_empty() {
        failures.extend(unplaced(deployment, &pools));
    }
    Plan { pools, failures, automatic, problems }
}

/// Says how many replicas exceed what all pools together may have.
fn unplaced(deployment: &ValidatedDeployment, pools: &[PoolPlan]) -> Option<PoolFailure> {
    let total = u32::try_from(deployment.spec.replicas).unwrap_or(0);
    let left = total.saturating_sub(pools.iter().map(|pool| pool.replicas).sum());
    (left > 0).then(|| PoolFailure {
        pool: String::new(),
        reason: ConditionReason::ReplicasUnplaced,
        sentence: format!(
            "{left} of {total} replicas have no place: every pool is at its maxReplicas; raise one or lower spec.replicas"
        ),
    })
}

/// The survey of all usable nodes, then one per pool with a node selector (in order).
fn surveys(
    deployment: &ValidatedDeployment,
    fleet: &FleetSnapshot,
    usable: &[(&FleetNode, &NodeHardware)],
) -> Vec<Survey> {
    let of = |selector: &BTreeMap<String, String>| {
        let matching = usable.iter().filter(|(node, _)| node.matches(selector));
        survey(&fleet.hardware, matching.map(|(_, hardware)| *hardware))
    };
    let everywhere = BTreeMap::new();
    let selectors =
        deployment.spec.pools.iter().map(|pool| pool.node_selector.as_ref().unwrap_or(&everywhere));
    std::iter::once(&everywhere).chain(selectors).map(of).collect()
}

fn automatic_targets<'a>(
    deployment: &ValidatedDeployment,
    survey: &'a Survey,
) -> (Vec<Target<'a>>, Vec<PoolFailure>) {
    let allowed = &deployment.spec.placement.allowed_classes;
    let may_use = |name: &str| {
        (allowed.is_empty() || allowed.iter().any(|class| class.eq_ignore_ascii_case(name)))
            && (name != CPU_CLASS || deployment.spec.runtime.device == Device::Cpu)
    };
    let targets: Vec<_> = survey
        .classes
        .iter()
        .filter(|(name, _)| may_use(name))
        .map(|(name, nodes)| Target {
            name: name.to_ascii_lowercase().replace('.', "-"),
            nodes,
            selector: BTreeMap::new(),
            decode: deployment.spec.decode,
            min: 0,
            max: u32::MAX,
        })
        .collect();
    let failures = if targets.is_empty() { vec![no_class(deployment, survey)] } else { Vec::new() };
    (targets, failures)
}

fn no_class(deployment: &ValidatedDeployment, survey: &Survey) -> PoolFailure {
    let seen = match survey.classes.keys().map(String::as_str).collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "none of a known class".to_owned(),
        classes => format!("only {classes}"),
    };
    let hint = match deployment.spec.runtime.device {
        Device::Cpu => "",
        _ => "; runtime.device: CPU would use nodes without a GPU",
    };
    PoolFailure {
        pool: String::new(),
        reason: ConditionReason::NoUsableNodes,
        sentence: format!(
            "no node of a class that may be used is schedulable with the taints tolerated by podTemplate.tolerations: \
             found {seen}{hint}"
        ),
    }
}

fn pool_targets<'a>(
    deployment: &ValidatedDeployment,
    fleet: &FleetSnapshot,
    surveys: &'a [Survey],
) -> (Vec<Target<'a>>, Vec<PoolFailure>) {
    let (mut targets, mut failures) = (Vec::new(), Vec::new());
    for (pool, survey) in deployment.spec.pools.iter().zip(surveys.iter().skip(1)) {
        match pool_nodes(pool, fleet, survey) {
            Ok(nodes) => targets.push(Target {
                name: pool.name.clone(),
                nodes,
                selector: pool.node_selector.clone().unwrap_or_default(),
                decode: deployment.spec.decode.with(pool.decode),
                min: u32::try_from(pool.min_replicas).unwrap_or(0),
                max: pool.max_replicas.map_or(u32::MAX, |max| u32::try_from(max).unwrap_or(0)),
            }),
            Err((reason, sentence)) => {
                failures.push(PoolFailure { pool: pool.name.clone(), reason, sentence })
            }
        }
    }
    (targets, failures)
}

type Failure = (ConditionReason, String);

fn pool_nodes<'a>(
    pool: &PoolSpec,
    fleet: &FleetSnapshot,
    survey: &'a Survey,
) -> Result<&'a ClassNodes, Failure> {
    let name = &pool.name;
    let Some(class) = &pool.gpu_class else {
        let mut classes = survey.classes.values();
        return match (classes.next(), classes.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err((
                ConditionReason::NoUsableNodes,
                format!("pool {name}: no usable node of a known class matches its nodeSelector"),
            )),
            (Some(a), Some(b)) => Err((
                ConditionReason::InvalidSpec,
                format!(
                    "pool {name}: its nodeSelector matches nodes of class {} and {}; one pool has one class, split it",
                    a.class.name(),
                    b.class.name()
                ),
            )),
        };
    };
    let Some(known) = fleet.hardware.class(class) else {
        return Err((
            ConditionReason::InvalidSpec,
            format!("pool {name}: gpuClass {class} is not in the catalogue; create a GPUClass of that name"),
        ));
    };
    survey.classes.get(known.name()).ok_or_else(|| {
        (
            ConditionReason::NoUsableNodes,
            format!("pool {name}: no schedulable node of class {} whose taints are tolerated", known.name()),
        )
    })
}

fn decide(
    deployment: &ValidatedDeployment,
    shape: &ModelShape,
    fleet: &FleetSnapshot,
    target: &Target<'_>,
) -> Result<(Device, Decision), Failure> {
    let class = &target.nodes.class;
    may_schedule(fleet, class.name())
        .map_err(|(reason, sentence)| (reason, format!("pool {}: {sentence}", target.name)))?;
    let device = device_on(class.name(), deployment.spec.runtime.device);
    let constraints = match device {
        Device::Cpu => cpu_constraints(target),
        _ => cuda_constraints(target),
    }
    .map_err(|(reason, sentence)| (reason, format!("pool {}: {sentence}", target.name)))?;
    let decision = gqla_planner::plan(shape, &class.spec, &goal(deployment, shape), &constraints)
        .map_err(|error| (reason_of(&error), format!("pool {}: {error}", target.name)))?;
    Ok((device, decision))
}

/// Whether pods of `class` can be kept off all nodes whose labels are wrong.
fn may_schedule(fleet: &FleetSnapshot, class: &str) -> Result<(), Failure> {
    let wrong = fleet.hardware.refuted_nodes(class).count();
    if wrong <= MAX_REFUTED {
        return Ok(());
    }
    Err((
        ConditionReason::NoUsableNodes,
        format!(
            "the labels of {wrong} nodes say {class} and other facts contradict them; pods can be kept off at most \
             {MAX_REFUTED} such nodes by name, so none is scheduled on {class}; see condition HardwareRecognized, and correct \
             the labels"
        ),
    ))
}

/// The CPU backend of this version runs one rank and no drafts, so Auto means that and anything else is refused.
fn cpu_constraints(target: &Target<'_>) -> Result<Constraints, Failure> {
    let refuse = |sentence: String| Err((ConditionReason::InvalidSpec, sentence));
    if let TensorParallel::Degree(degree @ 2..) = target.decode.tensor_parallel {
        return refuse(format!(
            "decode.tensorParallel={degree} with runtime.device CPU: the CPU backend runs one rank; use 1 or Auto"
        ));
    }
    if let MultiTokenPrediction::Drafts(drafts) = target.decode.multi_token_prediction {
        return refuse(format!(
            "decode.multiTokenPrediction={drafts} with runtime.device CPU: the CPU backend of this version does not \
             draft; use Off or Auto"
        ));
    }
    Ok(Constraints {
        path: target.decode.path.fixed(),
        tensor_parallel: Some(1),
        multi_token_prediction: Some(0),
        ..Constraints::default()
    })
}

fn cuda_constraints(target: &Target<'_>) -> Result<Constraints, Failure> {
    let most = target.nodes.most_gpus();
    let degree = match target.decode.tensor_parallel {
        TensorParallel::Auto => None,
        TensorParallel::Degree(degree) => Some(degree),
    };
    let wanted = degree.unwrap_or(1);
    if target.nodes.class.name() == CPU_CLASS {
        return Err((
            ConditionReason::InvalidSpec,
            "runtime.device CUDA needs a GPU, and class CPU has none; use device CPU or Auto".to_owned(),
        ));
    }
    if most < wanted {
        return Err((
            ConditionReason::NoUsableNodes,
            format!(
                "a replica needs {wanted} nvidia.com/gpu on one node, the largest usable {} node offers {most}",
                target.nodes.class.name()
            ),
        ));
    }
    Ok(Constraints {
        path: target.decode.path.fixed(),
        tensor_parallel: degree,
        max_tensor_parallel: most,
        multi_token_prediction: match target.decode.multi_token_prediction {
            MultiTokenPrediction::Auto => None,
            MultiTokenPrediction::Off => Some(0),
            MultiTokenPrediction::Drafts(drafts) => Some(drafts),
        },
        ..Constraints::default()
    })
}

fn goal(deployment: &ValidatedDeployment, shape: &ModelShape) -> Goal {
    let (asked, default) = (deployment.spec.goal, Goal::default());
    let prompt_tokens = asked.prompt_tokens.unwrap_or(default.prompt_tokens);
    let output_tokens = asked.output_tokens.unwrap_or(default.output_tokens);
    let needed = default.context_length.max(prompt_tokens.saturating_add(output_tokens));
    Goal {
        objective: match asked.objective {
            Objective::Throughput => gqla_planner::Objective::Throughput,
            Objective::Latency => gqla_planner::Objective::Latency,
            Objective::Cost => gqla_planner::Objective::Cost,
        },
        context_length: asked.context_length.unwrap_or_else(|| needed.min(shape.max_position_embeddings)),
        concurrency: asked.concurrency.unwrap_or(default.concurrency),
        prompt_tokens,
        output_tokens,
        max_time_per_output_token_ms: asked.max_time_per_output_token.map(ShortDuration::milliseconds),
        max_time_to_first_token_ms: asked.max_time_to_first_token.map(ShortDuration::milliseconds),
        ..default
    }
}

fn reason_of(error: &PlanError) -> ConditionReason {
    match error {
        PlanError::Shape(_) => ConditionReason::InvalidShape,
        PlanError::NothingFeasible { .. } => ConditionReason::NoFeasiblePlan,
        PlanError::Gpu(_)
        | PlanError::Goal { .. }
        | PlanError::Split(_)
        | PlanError::Calibration(_)
        | PlanError::NoDegrees => ConditionReason::InvalidSpec,
    }
}

fn place(
    deployment: &ValidatedDeployment,
    fleet: &FleetSnapshot,
    mut planned: Vec<Planned<'_>>,
) -> Vec<PoolPlan> {
    let strategy = deployment.spec.placement.strategy;
    let total = u32::try_from(deployment.spec.replicas).unwrap_or(0);
    planned.sort_by(|a, b| {
        let (a, b) = (rank(a, strategy, &fleet.costs), rank(b, strategy, &fleet.costs));
        b.total_cmp(&a)
    });
    let slots: Vec<_> = planned.iter().map(slot).collect();
    let shares = share(total, strategy, &slots);
    let automatic = deployment.spec.pools.is_empty();
    // Without pools in the spec a class gets one only if it gets replicas; the best one outlives a scale to zero.
    let mut pools: Vec<_> = planned
        .into_iter()
        .zip(shares)
        .enumerate()
        .filter(|(index, (_, replicas))| !automatic || *replicas > 0 || (total == 0 && *index == 0))
        .map(|(_, (planned, replicas))| pool_plan(planned, replicas, fleet))
        .collect();
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    pools
}

fn rank(planned: &Planned<'_>, strategy: PlacementStrategy, costs: &BTreeMap<String, f64>) -> f64 {
    let chosen = &planned.decision.chosen;
    match strategy {
        PlacementStrategy::Cost => costs
            .get(planned.target.nodes.class.name())
            .map_or(0.0, |cost| chosen.tokens_per_second_per_gpu() / cost),
        PlacementStrategy::Throughput | PlacementStrategy::Spread => chosen.tokens_per_second,
    }
}

fn slot(planned: &Planned<'_>) -> Slot {
    let capacity = match planned.device {
        Device::Cpu => u32::MAX,
        _ => planned.target.nodes.capacity(planned.decision.chosen.tensor_parallel),
    };
    Slot { min: planned.target.min, max: planned.target.max, capacity }
}

fn pool_plan(planned: Planned<'_>, replicas: u32, fleet: &FleetSnapshot) -> PoolPlan {
    let Planned { target, device, mut decision } = planned;
    let class = target.nodes.class.name();
    let derived = fleet.hardware.is_derived(class).then(|| derived(class));
    if let Some(derived) = &derived {
        decision.reason = format!("{}; {derived}", decision.reason);
    }
    // What a node is, the condition tells; here is what keeps it from working.
    let present = target.nodes.problems.iter().filter(|problem| !problem.kind.is_of_recognition());
    let mut troubles = grouped(present);
    troubles.truncate(MAX_TROUBLES);
    let sentences = troubles.iter().map(|trouble| trouble.sentence.clone());
    let notes: Vec<_> = note(class, device).into_iter().chain(derived).chain(sentences).collect();
    PoolPlan {
        class: class.to_owned(),
        node_terms: fleet.hardware.terms(class, &target.selector),
        name: target.name,
        device,
        replicas,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        troubles,
        decision,
    }
}

fn derived(class: &str) -> String {
    format!(
        "no class has this GPU: {class} is derived from what NVML tells, with half the FLOPs its clock and multiprocessors \
         give, so figures and path are cautious guesses until a GPUClass {class} replaces them"
    )
}

fn note(class: &str, device: Device) -> Option<String> {
    match device {
        Device::Cpu if class != CPU_CLASS => {
            Some(format!("runs the CPU backend; path and figures are modelled for an {class}"))
        }
        Device::Cpu => None,
        _ => Some(
            "gqla-server of this version has no CUDA backend yet: its pods refuse to start and say so"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests;
