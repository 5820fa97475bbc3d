//! From a valid GQLADeployment and the fleet to a plan per pool. Pure.
//!
//! A pool that cannot be planned never stops the others, and never takes down what already runs: its objects are
//! kept as they are until it can be planned again or leaves the spec.

mod question;

use std::collections::BTreeMap;

use gqla_api::{ConditionReason, DecodeSpec, Device, PlacementStrategy, PoolSpec};
use gqla_fleet::{
    ClassNodes, FleetNode, MAX_REFUTED, NodeHardware, Problem, ProblemGroup, Survey, grouped, survey,
};
use gqla_model::ModelShape;
use gqla_planner::{CPU_CLASS, Calibration, Decision, plan_calibrated};
use k8s_openapi::api::core::v1::NodeSelectorTerm;

pub use self::question::goal;
use self::question::{cpu_constraints, cuda_constraints, reason_of};
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
    /// Nodes that can hold a replica when they are otherwise empty.
    pub nodes: usize,
    /// Their usable GPUs.
    pub gpus: u32,
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

/// A class with usable nodes that gets no automatic pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Name of the class.
    pub class: String,
    /// Why not.
    pub sentence: String,
}

/// The plan of a GQLADeployment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Pools to run.
    pub pools: Vec<PoolPlan>,
    /// Pools that cannot be planned.
    pub failures: Vec<PoolFailure>,
    /// Classes that could have had a pool, were pools automatic.
    pub passed_over: Vec<PassedOver>,
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
    let automatic = deployment.spec.pools.is_empty();
    let mut passed_over = Vec::new();
    let (targets, mut failures) = if automatic {
        automatic_targets(deployment, &surveys[0], &mut passed_over)
    } else {
        pool_targets(deployment, fleet, &surveys)
    };
    let calibration = fleet.calibration.for_build(deployment.build);
    let mut planned = Vec::new();
    for target in targets {
        match decide(deployment, shape, fleet, &calibration, &target) {
            Ok((device, decision)) => planned.push(Planned { target, device, decision }),
            Err((reason, sentence)) => {
                if automatic {
                    let class = target.nodes.class.name().to_owned();
                    passed_over.push(PassedOver { class, sentence: sentence.clone() });
                }
                failures.push(PoolFailure { pool: target.name, reason, sentence });
            }
        }
    }
    // An automatic class that cannot hold the model is no failure as long as another can.
    if automatic && !planned.is_empty() {
        failures.clear();
    }
    let pools = place(deployment, fleet, planned, &mut passed_over);
    if failures.is_empty() {
        failures.extend(unplaced(deployment, &pools));
    }
    Plan { pools, failures, passed_over, automatic, problems }
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
    passed_over: &mut Vec<PassedOver>,
) -> (Vec<Target<'a>>, Vec<PoolFailure>) {
    let refused = |name: &String| {
        let sentence = not_allowed(deployment, name)?.to_owned();
        Some(PassedOver { class: name.clone(), sentence })
    };
    passed_over.extend(survey.classes.keys().filter_map(refused));
    let targets: Vec<_> = survey
        .classes
        .iter()
        .filter(|(name, _)| not_allowed(deployment, name).is_none())
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

/// Why no automatic pool may be of `class`.
fn not_allowed(deployment: &ValidatedDeployment, class: &str) -> Option<&'static str> {
    let allowed = &deployment.spec.placement.allowed_classes;
    if !allowed.is_empty() && !allowed.iter().any(|name| name.eq_ignore_ascii_case(class)) {
        return Some("its class is not in placement.allowedClasses");
    }
    (class == CPU_CLASS && deployment.spec.runtime.device != Device::Cpu)
        .then_some("it has no GPU, and only runtime.device: CPU uses such nodes")
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
    calibration: &Calibration,
    target: &Target<'_>,
) -> Result<(Device, Decision), Failure> {
    let class = &target.nodes.class;
    may_schedule(fleet, class.name())
        .map_err(|(reason, sentence)| (reason, format!("pool {}: {sentence}", target.name)))?;
    let device = device_on(class.name(), deployment.spec.runtime.device);
    let constraints = match device {
        Device::Cpu => cpu_constraints(target, &deployment.spec.runtime.extra_args),
        _ => cuda_constraints(target),
    }
    .map_err(|(reason, sentence)| (reason, format!("pool {}: {sentence}", target.name)))?;
    let goal = goal(deployment, shape);
    let decision = plan_calibrated(shape, &class.spec, &goal, &constraints, calibration)
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
            "the labels of {wrong} nodes say {class} and their ResourceSlices contradict them; pods can be kept off at most \
             {MAX_REFUTED} such nodes by name, so none is scheduled on {class}; see condition HardwareRecognized, and correct \
             the labels"
        ),
    ))
}

fn place(
    deployment: &ValidatedDeployment,
    fleet: &FleetSnapshot,
    mut planned: Vec<Planned<'_>>,
    passed_over: &mut Vec<PassedOver>,
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
    let mut pools = Vec::new();
    for (index, (planned, replicas)) in planned.into_iter().zip(shares).enumerate() {
        // Without pools in the spec a class gets one only if it gets replicas; the best one outlives a scale to zero.
        if !automatic || replicas > 0 || (total == 0 && index == 0) {
            pools.push(pool_plan(planned, replicas, fleet));
        } else {
            passed_over.push(outranked(&planned, total, strategy));
        }
    }
    pools.sort_by(|a, b| a.name.cmp(&b.name));
    pools
}

fn outranked(planned: &Planned<'_>, total: u32, strategy: PlacementStrategy) -> PassedOver {
    let chosen = &planned.decision.chosen;
    PassedOver {
        class: planned.target.nodes.class.name().to_owned(),
        sentence: format!(
            "{} at TP {} would yield {:.0} tokens/s a replica here, but by placement.strategy {strategy:?} other classes get \
             all of the {total} replicas",
            chosen.path.api_name(),
            chosen.tensor_parallel,
            chosen.tokens_per_second,
        ),
    }
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
    let needed = gpus_needed(device, decision.chosen.tensor_parallel);
    let holding = || target.nodes.gpus_per_node.iter().copied().filter(|gpus| *gpus >= needed);
    let derived = fleet.hardware.is_derived(class).then(|| derived(class));
    if let Some(derived) = &derived {
        decision.reason = format!("{}; {derived}", decision.reason);
    }
    // What a node is, the condition tells; here is what keeps it from working.
    let present = target.nodes.problems.iter().filter(|problem| !problem.kind.is_of_recognition());
    let mut troubles = grouped(present);
    troubles.truncate(MAX_TROUBLES);
    let sentences = troubles.iter().map(|trouble| trouble.sentence.clone());
    let calibrated =
        (!decision.calibrated.is_empty()).then(|| format!("calibrated: {}", decision.calibrated.join("; ")));
    let notes: Vec<_> =
        note(class, device).into_iter().chain(derived).chain(calibrated).chain(sentences).collect();
    PoolPlan {
        class: class.to_owned(),
        node_terms: fleet.hardware.terms(class, &target.selector),
        name: target.name,
        device,
        replicas,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
        troubles,
        decision,
        nodes: holding().count(),
        gpus: holding().sum(),
    }
}

/// GPUs that one replica takes from its node.
pub(crate) fn gpus_needed(device: Device, tensor_parallel: u32) -> u32 {
    if device == Device::Cpu { 0 } else { tensor_parallel }
}

fn derived(class: &str) -> String {
    format!(
        "no class has this GPU: {class} is derived from what NVML tells, with half the FLOPs its clock and multiprocessors \
         give, so figures and path are cautious guesses until a GPUClass {class} replaces them"
    )
}

fn note(class: &str, device: Device) -> Option<String> {
    match device {
        Device::Cpu if class != CPU_CLASS => Some(format!(
            "runs the CPU backend on {class} nodes: path and figures are what is planned for the {class} itself, which \
                 its pods leave idle, so they yield far fewer tokens/s"
        )),
        Device::Cpu => None,
        _ => Some(
            "gqla-server's CUDA kernels have run on an H200 alone: pods compile what is not built in, try all of them first, and \
             refuse to start where one is missing or wrong"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests;
