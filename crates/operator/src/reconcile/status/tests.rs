use gqla_decide::{
    Shape,
    fixtures::{deployment, mixed, validated},
    identity, plan,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, from_value, json};

use super::*;

fn verdict(spec: Value) -> Verdict {
    let valid = validated(spec);
    let Shape::Known(shape) = valid.shape.clone() else { panic!("the fixture has a shape") };
    Verdict::Planned(plan(&valid, &shape, &mixed()))
}

fn pool(name: &str, ready: i32) -> Deployment {
    from_value(json!({
        "metadata": { "name": format!("d-{name}"), "generation": 1, "labels": { "gqla.dev/pool": name } },
        "spec": { "replicas": 1, "selector": {}, "template": {} },
        "status": { "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": ready,
                    "availableReplicas": ready },
    }))
    .unwrap()
}

fn computed(
    object: &GQLADeployment,
    verdict: &Verdict,
    deployments: &[Deployment],
    second: i64,
) -> GQLADeploymentStatus {
    let facts = Facts {
        verdict,
        model: None,
        can_draft: Some(true),
        deployments,
        measured: &BTreeMap::from([("h20".to_owned(), 12.3456)]),
        now: Time(Timestamp::from_second(second).unwrap()),
    };
    status(object, &identity(object).unwrap(), &facts)
}

fn condition(status: &GQLADeploymentStatus, kind: &str) -> (String, String) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

fn says(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn ready_pools_make_it_available() {
    let spec = json!({ "runtime": { "device": "CUDA" } });
    let (object, verdict) = (deployment(spec.clone()), verdict(spec));
    let waiting = computed(&object, &verdict, &[pool("h100", 1), pool("h20", 0)], 1);
    assert_eq!(condition(&waiting, "Available"), says("False", "ReplicasNotReady"));
    assert_eq!(waiting.message.as_deref(), Some("1 of 2 replicas are ready; waiting for pool h20"));
    assert_eq!(waiting.paths.as_deref(), Some("h100=MQAAbsorb(mtp1) h20=GQA(mtp1)"));
    let ready = computed(&object, &verdict, &[pool("h100", 1), pool("h20", 1)], 2);
    for (kind, reason) in [
        ("Planned", "Decided"),
        ("Progressing", "RolledOut"),
        ("Available", "AllReady"),
        ("HardwareRecognized", "AllRecognized"),
        ("MTPActive", "Drafting"),
    ] {
        assert_eq!(condition(&ready, kind), says("True", reason), "{kind}");
    }
    assert_eq!((ready.replicas, ready.ready_replicas), (2, 2));
    assert_eq!(ready.pools[1].measured_tokens_per_second, Some(12.35));
    assert_eq!(ready.selector.as_deref(), Some("gqla.dev/deployment=d"));
}

/// What is explained without a cluster is this record.
#[test]
fn a_pool_tells_the_record_of_its_plan() {
    let spec = json!({ "runtime": { "device": "CUDA" } });
    let (object, verdict) = (deployment(spec.clone()), verdict(spec));
    let told = computed(&object, &verdict, &[pool("h100", 1), pool("h20", 1)], 1).pools;
    let Verdict::Planned(plan) = &verdict else { panic!("{verdict:?}") };
    let before =
        told.into_iter().map(|told| PoolStatus { ready: 0, measured_tokens_per_second: None, ..told });
    assert_eq!(before.collect::<Vec<_>>(), plan.pools.iter().map(record).collect::<Vec<_>>());
}

#[test]
fn a_spec_that_is_not_observed_yet_takes_no_pod_from_service() {
    let spec = json!({ "runtime": { "device": "CUDA" } });
    let (object, verdict) = (deployment(spec.clone()), verdict(spec));
    let mut changed = [pool("h100", 1), pool("h20", 1)];
    changed.iter_mut().for_each(|deployment| deployment.metadata.generation = Some(2));
    let status = computed(&object, &verdict, &changed, 1);
    assert_eq!(status.ready_replicas, 2);
    assert_eq!(condition(&status, "Available"), says("True", "AllReady"));
    assert_eq!(condition(&status, "Progressing"), says("True", "RollingOut"));
}

#[test]
fn the_same_facts_give_the_same_status_and_survive_json() {
    let spec = json!({ "runtime": { "device": "CUDA" } });
    let (mut object, verdict) = (deployment(spec.clone()), verdict(spec));
    let first = computed(&object, &verdict, &[pool("h100", 1), pool("h20", 1)], 1);
    object.status = from_value(serde_json::to_value(&first).unwrap()).unwrap();
    let second = computed(&object, &verdict, &[pool("h100", 1), pool("h20", 1)], 99);
    assert_eq!(object.status, Some(second), "a later pass without news writes nothing");
}

#[test]
fn a_refused_spec_keeps_what_runs_and_says_why() {
    let spec = json!({ "runtime": { "device": "CUDA" } });
    let mut object = deployment(spec.clone());
    let deployments = [pool("h100", 1), pool("h20", 1)];
    object.status = Some(computed(&object, &verdict(spec), &deployments, 1));
    let refused = Verdict::Refused {
        reason: Reason::ModelUnreadable,
        sentence: "config.json: no such file".to_owned(),
    };
    let status = computed(&object, &refused, &deployments, 2);
    assert_eq!(condition(&status, "Planned"), says("False", "ModelUnreadable"));
    assert_eq!(condition(&status, "Available"), says("True", "AllReady"));
    assert_eq!(status.message.as_deref(), Some("config.json: no such file"));
    assert!(status.pools.iter().all(|pool| pool.note.as_ref().is_some_and(|note| note.contains("no plan"))));
}

/// The API server refuses a longer condition message, and with it the whole status.
#[test]
fn nothing_a_node_says_makes_the_status_too_long() {
    let spec = json!({ "runtime": { "device": "CUDA" } });
    let (object, mut verdict) = (deployment(spec.clone()), verdict(spec));
    let Verdict::Planned(plan) = &mut verdict else { panic!("{verdict:?}") };
    let long = "ä".repeat(40_000);
    plan.pools[0].note = Some(long.clone());
    plan.pools[0].decision.reason = long.clone();
    plan.problems.push(gqla_fleet::Problem {
        kind: ProblemKind::BadAnnotation,
        node: "a".to_owned(),
        fact: String::new(),
        sentence: long.clone(),
    });
    let refused = Verdict::Refused { reason: Reason::ModelUnreadable, sentence: long };
    for verdict in [verdict, refused] {
        let status = computed(&object, &verdict, &[], 1);
        let pools = status.pools.iter().flat_map(|pool| pool.note.iter().chain([&pool.reason]));
        let told =
            status.conditions.iter().map(|condition| &condition.message).chain(pools).chain(&status.message);
        assert!(told.clone().all(|text| text.len() <= 4096));
        assert!(told.filter(|text| text.ends_with('…')).count() >= 2);
    }
}
