//! What becomes of each node in a plan, and why.

use gqla_fleet::{FleetNode, NodeHardware, Obstacle, Problem};

use crate::{
    fleet::FleetSnapshot,
    plan::{Plan, PoolPlan, gpus_needed},
    validate::ValidatedDeployment,
};

/// What becomes of one node in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUse {
    /// Name of the node.
    pub node: String,
    /// The class it counts as, if any.
    pub class: Option<String>,
    /// Its usable GPUs.
    pub gpus: u32,
    /// Pools that count on it.
    pub pools: Vec<String>,
    /// Which pools count on it, or why none does.
    pub why: String,
}

impl NodeUse {
    /// Whether any pool counts on it.
    pub fn is_used(&self) -> bool {
        !self.pools.is_empty()
    }
}

/// What becomes of every node of `fleet` in `plan`, which is what [`plan()`](crate::plan()) made of `deployment` and `fleet`.
pub fn node_uses(deployment: &ValidatedDeployment, plan: &Plan, fleet: &FleetSnapshot) -> Vec<NodeUse> {
    let of = |(node, hardware)| Case { deployment, plan, fleet, node, hardware }.judge();
    fleet.described().map(of).collect()
}

struct Case<'a> {
    deployment: &'a ValidatedDeployment,
    plan: &'a Plan,
    fleet: &'a FleetSnapshot,
    node: &'a FleetNode,
    hardware: &'a NodeHardware,
}

impl Case<'_> {
    fn judge(&self) -> NodeUse {
        // By the class's own name: a GPUClass keeps the catalogue's spelling.
        let class = self.hardware.recognition.class().and_then(|name| self.fleet.hardware.class(name));
        let class = class.map(|class| class.name().to_owned());
        let (pools, why) = match (self.node.obstacle(&self.deployment.tolerations), &class) {
            (Some(obstacle), _) => (Vec::new(), told(obstacle)),
            (None, None) => (Vec::new(), self.unrecognised()),
            (None, Some(class)) => self.in_reach(class),
        };
        NodeUse { node: self.node.name.clone(), class, gpus: self.hardware.gpus.usable, pools, why }
    }

    fn unrecognised(&self) -> String {
        let doubts = self.hardware.problems.iter().filter(|problem| problem.kind.is_of_recognition());
        let sentences: Vec<_> = doubts.map(sentence).collect();
        if sentences.is_empty() { "it counts as no class".to_owned() } else { sentences.join("; ") }
    }

    /// The pools that count on the node, and a sentence about them or about those that do not.
    fn in_reach(&self, class: &str) -> (Vec<String>, String) {
        let reachable =
            || self.plan.pools.iter().filter(|pool| pool.class == class && self.selected(&pool.name));
        let pools: Vec<String> =
            reachable().filter(|pool| self.holds(pool)).map(|pool| pool.name.clone()).collect();
        if !pools.is_empty() {
            let why = format!("pool {} counts on it", pools.join(", "));
            return (pools, why);
        }
        let mut reasons: Vec<String> = reachable().map(|pool| self.too_few(pool)).collect();
        if reasons.is_empty() {
            reasons = if self.plan.automatic { self.passed_over(class) } else { self.not_of_pools(class) };
        }
        (pools, reasons.join("; "))
    }

    /// Whether a pool's node selector matches; automatic pools have none.
    fn selected(&self, pool: &str) -> bool {
        let spec = self.deployment.spec.pools.iter().find(|spec| spec.name == pool);
        spec.and_then(|spec| spec.node_selector.as_ref()).is_none_or(|selector| self.node.matches(selector))
    }

    fn holds(&self, pool: &PoolPlan) -> bool {
        self.hardware.gpus.usable >= gpus_needed(pool.device, pool.decision.chosen.tensor_parallel)
    }

    fn too_few(&self, pool: &PoolPlan) -> String {
        let problems = self.hardware.problems.iter().filter(|problem| !problem.kind.is_of_recognition());
        let problems: String = problems.map(|problem| format!("; {}", sentence(problem))).collect();
        format!(
            "a replica of pool {} needs {} GPUs, {} of the node's are usable{problems}",
            pool.name, pool.decision.chosen.tensor_parallel, self.hardware.gpus.usable
        )
    }

    fn passed_over(&self, class: &str) -> Vec<String> {
        let passed = self.plan.passed_over.iter().filter(|passed| passed.class == class);
        passed.map(|passed| passed.sentence.clone()).collect()
    }

    /// Of every pool of the spec, why it does not count on the node.
    fn not_of_pools(&self, class: &str) -> Vec<String> {
        let pools = &self.deployment.spec.pools;
        let why = |pool: &gqla_api::PoolSpec| {
            let name = &pool.name;
            match &pool.gpu_class {
                Some(wanted) if !wanted.eq_ignore_ascii_case(class) => {
                    format!("pool {name} is of class {wanted}")
                }
                None if !self.selected(name) => {
                    format!("pool {name}'s nodeSelector does not match its labels")
                }
                _ => format!("pool {name} has no plan"),
            }
        };
        pools.iter().map(why).collect()
    }
}

fn sentence(problem: &Problem) -> String {
    if problem.fact.is_empty() {
        return problem.sentence.clone();
    }
    format!("{}: {}", problem.fact, problem.sentence)
}

fn told(obstacle: Obstacle<'_>) -> String {
    match obstacle {
        Obstacle::Unschedulable => "it is cordoned".to_owned(),
        Obstacle::Taint(taint) => {
            format!("its taint {taint} is not tolerated by podTemplate.tolerations")
        }
    }
}

#[cfg(test)]
mod tests;
