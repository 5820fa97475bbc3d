//! When an automatic pool may hand its replicas over to another one. Pure.
//!
//! Without pools in the spec, a class of nodes that comes or goes moves replicas between Deployments. The old pods
//! have to serve until the new ones do, or every such move would be an outage.

use std::collections::BTreeMap;

use gqla_api::labels::POOL;
use gqla_decide::Plan;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;

/// Replicas that the Deployment of a pool asks for, and those that serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Running {
    asked: u32,
    ready: u32,
}

/// `plan` with the replicas that have to go on serving, and whether pools that are in no plan have to stay as well.
///
/// As many replicas stay as the planned pools still lack, first where a planned pool would shrink. Pools of the spec
/// are the user's own doing and change at once.
pub fn hand_over(mut plan: Plan, observed: &[Deployment]) -> (Plan, bool) {
    if !plan.automatic {
        return (plan, false);
    }
    let running: BTreeMap<String, Running> = observed.iter().filter_map(running).collect();
    let of = |pool: &str| running.get(pool).copied().unwrap_or_default();
    let mut lacking: u32 =
        plan.pools.iter().map(|pool| pool.replicas.saturating_sub(of(&pool.name).ready)).sum();
    let keep_others = lacking > 0;
    for pool in &mut plan.pools {
        let held = of(&pool.name).asked.saturating_sub(pool.replicas).min(lacking);
        pool.replicas += held;
        lacking -= held;
    }
    (plan, keep_others)
}

fn running(deployment: &Deployment) -> Option<(String, Running)> {
    let pool = deployment.labels().get(POOL)?.clone();
    let count = |value: Option<i32>| u32::try_from(value.unwrap_or(0)).unwrap_or(0);
    let asked = count(deployment.spec.as_ref().map(|spec| spec.replicas.unwrap_or(1)));
    let ready = count(deployment.status.as_ref().and_then(|status| status.ready_replicas));
    Some((pool, Running { asked, ready }))
}

#[cfg(test)]
mod tests {
    use gqla_decide::{
        Shape,
        fixtures::{mixed, validated},
        plan,
    };
    use serde_json::{Value, from_value, json};

    use super::*;

    fn planned(spec: Value) -> Plan {
        let valid = validated(spec);
        let Shape::Known(shape) = valid.shape.clone() else { panic!("the fixture has a shape") };
        plan(&valid, &shape, &mixed())
    }

    fn deployment(&(pool, asked, ready): &(&str, i32, i32)) -> Deployment {
        from_value(json!({
            "metadata": { "name": pool, "labels": { "gqla.dev/pool": pool } },
            "spec": { "replicas": asked, "selector": {}, "template": {} },
            "status": { "readyReplicas": ready },
        }))
        .unwrap()
    }

    /// Two replicas are wanted, one on H100 and one on H20.
    #[test]
    fn old_pods_serve_until_new_ones_do() {
        type Case = (&'static [(&'static str, i32, i32)], [u32; 2], bool);
        let cases: [Case; 7] = [
            (&[], [1, 1], true),
            (&[("a100", 2, 2)], [1, 1], true),
            (&[("a100", 2, 2), ("h100", 1, 1), ("h20", 1, 0)], [1, 1], true),
            (&[("a100", 2, 2), ("h100", 1, 1), ("h20", 1, 1)], [1, 1], false),
            (&[("h20", 2, 2)], [1, 2], true),
            (&[("h100", 1, 1), ("h20", 2, 2)], [1, 1], false),
            (&[("h100", 50, 50), ("h20", 50, 0)], [2, 1], true),
        ];
        for (observed, replicas, keeps) in cases {
            let observed: Vec<_> = observed.iter().map(deployment).collect();
            let (plan, keep) = hand_over(planned(json!({ "runtime": { "device": "CUDA" } })), &observed);
            let got: Vec<_> = plan.pools.iter().map(|pool| pool.replicas).collect();
            assert_eq!((got.as_slice(), keep), (replicas.as_slice(), keeps), "{observed:?}");
        }
    }

    #[test]
    fn zero_replicas_and_pools_of_the_spec_wait_for_nothing() {
        let observed = [deployment(&("a100", 2, 2)), deployment(&("h20", 2, 2))];
        let zero = json!({ "runtime": { "device": "CUDA" }, "replicas": 0 });
        let named =
            json!({ "runtime": { "device": "CUDA" }, "pools": [{ "name": "x", "gpuClass": "H100" }] });
        for spec in [zero, named] {
            let plan = planned(spec);
            assert_eq!(hand_over(plan.clone(), &observed), (plan, false));
        }
    }
}
