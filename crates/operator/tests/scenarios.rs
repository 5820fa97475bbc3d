//! Passes of the reconciler against the recording API server.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{sync::Arc, time::Duration};

use gqla_api::GQLADeployment;
use gqla_decide::names::pool_object_name;
use gqla_operator::{
    fleet::Fleet,
    metrics::Metrics,
    reconcile::{Context, ReconcileError, error_policy, reconcile},
    scrape::Throughput,
};
use gqla_telemetry::prometheus::Registry;
use gqla_testkit::recording::RecordingServer;
use k8s_openapi::api::core::v1::Node;
use kube::{
    core::DeserializeGuard,
    runtime::{controller::Action, watcher::Event},
};
use serde_json::{Value, from_value, json};

const OBJECT: &str = "/apis/gqla.dev/v1alpha1/namespaces/n/gqladeployments/d";

/// Name of the objects of a pool.
fn of(pool: &str) -> String {
    pool_object_name("d", pool)
}

fn deployment_path(pool: &str) -> String {
    format!("/apis/apps/v1/namespaces/n/deployments/{}", of(pool))
}

struct Scene {
    server: RecordingServer,
    fleet: Fleet,
    context: Arc<Context>,
}

fn node(name: &str, product: &str) -> Node {
    from_value(json!({
        "metadata": { "name": name, "labels": { "nvidia.com/gpu.product": product } },
        "status": { "allocatable": { "nvidia.com/gpu": "8" } },
    }))
    .unwrap()
}

fn object(change: Value) -> Value {
    let mut object = json!({
        "apiVersion": "gqla.dev/v1alpha1", "kind": "GQLADeployment",
        "metadata": { "name": "d", "namespace": "n", "uid": "cr-uid", "generation": 1 },
        "spec": {
            "model": {
                "source": { "persistentVolumeClaim": { "claimName": "m" } },
                "shape": {
                    "numAttentionHeads": 128, "numKeyValueHeads": 8, "kvLoraRank": 512, "qkNopeHeadDim": 128,
                    "qkRopeHeadDim": 64, "vHeadDim": 128, "hiddenSize": 2048, "numHiddenLayers": 16,
                    "parameters": 2_500_000_000_u64, "numNextnPredictLayers": 1, "maxPositionEmbeddings": 32768,
                },
            },
            "runtime": { "device": "CUDA" },
            "placement": { "strategy": "Spread" },
            "replicas": 2,
        },
    });
    for (key, value) in change.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

impl Scene {
    fn new(spec: Value) -> Self {
        let fleet = Fleet::default();
        fleet.class_event(Event::Init);
        fleet.class_event(Event::InitDone);
        fleet.node_event(Event::Init);
        fleet.node_event(Event::InitApply(node("h100", "NVIDIA-H100-80GB-HBM3")));
        fleet.node_event(Event::InitApply(node("h20", "NVIDIA-H20")));
        fleet.node_event(Event::InitDone);
        let server = RecordingServer::new();
        server.put(OBJECT, object(spec));
        let context = context(&server, &fleet);
        Self { server, fleet, context }
    }

    /// One pass over the object as the server has it.
    async fn pass(&self) -> Result<Action, ReconcileError> {
        let object: DeserializeGuard<GQLADeployment> = from_value(self.server.get(OBJECT).unwrap()).unwrap();
        reconcile(Arc::new(object), self.context.clone()).await
    }

    fn change(&self, key: &str, value: Value) {
        self.server.edit(OBJECT, |object| {
            object["spec"][key] = value;
            object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap() + 1);
        });
    }

    fn path_of(&self, deployment: &str) -> String {
        let path = format!("/apis/apps/v1/namespaces/n/deployments/{deployment}");
        let object = self.server.get(&path).unwrap();
        object["spec"]["template"]["metadata"]["labels"]["gqla.dev/path"].as_str().unwrap().to_owned()
    }

    fn condition(&self, kind: &str) -> (String, String, String) {
        let object = self.server.get(OBJECT).unwrap();
        let conditions = object["status"]["conditions"].as_array().unwrap().clone();
        let condition = conditions.iter().find(|condition| condition["type"] == kind).unwrap();
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    /// Writes since the record was cleared, without Events.
    fn writes(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        let writes = requests.filter(|request| request.is_write() && !request.path.contains("/events"));
        writes
            .map(|request| format!("{} {}", request.method, request.path.rsplit('/').next().unwrap()))
            .collect()
    }
}

fn context(server: &RecordingServer, fleet: &Fleet) -> Arc<Context> {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    Arc::new(Context::new(server.client(), fleet.clone(), Throughput::default(), metrics, "test"))
}

#[tokio::test]
async fn one_object_becomes_two_pools_on_two_paths() {
    let scene = Scene::new(json!({}));
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("h100"), of("h20")]);
    assert_eq!(scene.server.names("services"), ["d".to_owned(), of("h100"), of("h20")]);
    assert_eq!(
        (scene.path_of(&of("h100")).as_str(), scene.path_of(&of("h20")).as_str()),
        ("mqa_absorb", "gqa")
    );
    assert_eq!(scene.condition("Planned").0, "True");
    assert_eq!(scene.condition("Available").1, "ReplicasNotReady");
    let chosen = scene.server.requests().into_iter().filter(|request| request.body["reason"] == "PathChosen");
    assert_eq!(chosen.count(), 2, "one Event per decision");
}

#[tokio::test]
async fn a_second_pass_and_a_new_process_change_nothing() {
    let scene = Scene::new(json!({}));
    scene.pass().await.unwrap();
    let before = scene.server.get(&deployment_path("h20")).unwrap();
    scene.server.clear();
    let restarted = Scene { context: context(&scene.server, &scene.fleet), ..scene };
    restarted.pass().await.unwrap();
    let writes = restarted.writes();
    assert!(writes.iter().all(|write| write.starts_with("PATCH")), "{writes:?}");
    assert!(!writes.contains(&"PATCH status".to_owned()), "the status has no news: {writes:?}");
    let after = restarted.server.get(&deployment_path("h20")).unwrap();
    assert_eq!(
        (&before["metadata"]["uid"], &before["metadata"]["generation"]),
        (&after["metadata"]["uid"], &after["metadata"]["generation"])
    );
}

#[tokio::test]
async fn a_path_flip_keeps_the_objects() {
    let scene = Scene::new(json!({}));
    scene.pass().await.unwrap();
    let uid = |scene: &Scene| scene.server.get(&deployment_path("h20")).unwrap()["metadata"]["uid"].clone();
    let before = uid(&scene);
    scene.change("decode", json!({ "path": "MQAAbsorb" }));
    scene.pass().await.unwrap();
    assert_eq!((scene.path_of(&of("h20")).as_str(), uid(&scene)), ("mqa_absorb", before));
}

#[tokio::test]
async fn a_removed_pool_takes_only_its_own_objects() {
    let pools = json!([{ "name": "a", "gpuClass": "H100" }, { "name": "b", "gpuClass": "H20" }]);
    let scene = Scene::new(json!({ "pools": pools }));
    scene.server.put("/api/v1/namespaces/n/services/foreign", json!({ "metadata": { "name": "foreign" } }));
    scene.pass().await.unwrap();
    scene.server.clear();
    scene.change("pools", json!([{ "name": "b", "gpuClass": "H20" }]));
    scene.pass().await.unwrap();
    let deleted: Vec<_> = scene.writes().into_iter().filter(|write| write.starts_with("DELETE")).collect();
    let delete = format!("DELETE {}", of("a"));
    assert_eq!(deleted, [delete.clone(), delete], "a Deployment and a Service");
    assert_eq!(scene.server.names("services"), ["d".to_owned(), of("b"), "foreign".to_owned()]);
}

#[tokio::test]
async fn a_pool_without_nodes_keeps_running_what_it_has() {
    let pools = json!([{ "name": "a", "gpuClass": "H100" }, { "name": "b", "gpuClass": "H20" }]);
    let scene = Scene::new(json!({ "pools": pools }));
    scene.pass().await.unwrap();
    scene.fleet.node_event(Event::Delete(node("h100", "NVIDIA-H100-80GB-HBM3")));
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("a"), of("b")]);
    let (status, reason, message) = scene.condition("Planned");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NoUsableNodes"));
    assert!(message.contains("pool a"), "{message}");
}

#[tokio::test]
async fn a_malformed_object_waits_for_a_change_and_others_go_on() {
    let scene = Scene::new(json!({}));
    let mut malformed = object(json!({ "decode": { "tensorParallel": "many" } }));
    malformed["metadata"]["name"] = json!("malformed");
    let malformed: DeserializeGuard<GQLADeployment> = from_value(malformed).unwrap();
    let action = reconcile(Arc::new(malformed), scene.context.clone()).await.unwrap();
    assert_eq!(action, Action::await_change());
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("h100"), of("h20")]);
}

#[tokio::test]
async fn a_conflict_is_tried_again_and_a_silent_server_is_given_up() {
    let scene = Scene::new(json!({}));
    scene.server.fail_next_write(409);
    let error = scene.pass().await.unwrap_err();
    assert!(error.is_conflict(), "{error}");
    let object: DeserializeGuard<GQLADeployment> = from_value(scene.server.get(OBJECT).unwrap()).unwrap();
    let action = error_policy(Arc::new(object), &error, scene.context.clone());
    assert_ne!(action, Action::await_change());
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("h100"), of("h20")]);

    let mut context = Context::new(
        scene.server.client(),
        scene.fleet.clone(),
        Throughput::default(),
        Metrics::new(&Registry::new()).unwrap(),
        "test",
    );
    context.timeout = Duration::from_millis(50);
    let silent = Scene { context: Arc::new(context), ..scene };
    silent.server.hang_next_request();
    assert!(matches!(silent.pass().await, Err(ReconcileError::Timeout(_))));
}

fn without_shape() -> Value {
    json!({ "model": { "source": { "persistentVolumeClaim": { "claimName": "m" } } } })
}

fn answer(scene: &Scene, message: &Value) {
    let job = scene.server.names("jobs").remove(0);
    scene.server.put(
        "/api/v1/namespaces/n/pods/inspect",
        json!({
            "metadata": { "name": "inspect", "labels": { "batch.kubernetes.io/job-name": job } },
            "status": { "containerStatuses": [{
                "name": "server", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
                "state": { "terminated": { "exitCode": 0, "message": message.to_string() } },
            }]},
        }),
    );
}

#[tokio::test]
async fn a_model_without_shape_is_read_once() {
    let scene = Scene::new(without_shape());
    scene.pass().await.unwrap();
    assert_eq!(scene.condition("Planned").1, "InspectingModel");
    assert_eq!((scene.server.names("jobs").len(), scene.server.names("deployments").len()), (1, 0));
    scene.server.clear();
    scene.pass().await.unwrap();
    assert!(!scene.writes().iter().any(|write| write.starts_with("POST")), "the Job is made once");

    let shape = object(json!({}))["spec"]["model"]["shape"].clone();
    answer(&scene, &json!({ "shape": shape, "weightBytes": 5_000_000_000_u64 }));
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("h100"), of("h20")]);
    assert_eq!(scene.server.names("jobs"), [""; 0], "its answer is in the status now");
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("jobs"), [""; 0], "and is not asked for again");
    let model = scene.server.get(OBJECT).unwrap()["status"]["model"].clone();
    assert_eq!(model["shape"]["numAttentionHeads"], json!(128));

    // A shape that contradicts the files.
    let mut given = shape;
    given["numHiddenLayers"] = json!(17);
    scene.change(
        "model",
        json!({ "source": { "persistentVolumeClaim": { "claimName": "m" } }, "shape": given }),
    );
    scene.pass().await.unwrap();
    let (status, reason, message) = scene.condition("Planned");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ShapeMismatch"));
    assert!(message.contains("numHiddenLayers is 17, but the model's files say 16"), "{message}");
    assert_eq!(scene.server.names("deployments"), [of("h100"), of("h20")], "what runs goes on");
}

#[tokio::test]
async fn a_model_that_cannot_be_read_is_named() {
    let scene = Scene::new(without_shape());
    scene.pass().await.unwrap();
    answer(&scene, &json!({ "error": "/model/config.json: no such file" }));
    scene.pass().await.unwrap();
    let (status, reason, message) = scene.condition("Planned");
    assert_eq!(
        (status.as_str(), reason.as_str(), message.as_str()),
        ("False", "ModelUnreadable", "/model/config.json: no such file")
    );
    // Another claim is another model.
    scene.change("model", json!({ "source": { "persistentVolumeClaim": { "claimName": "other" } } }));
    let first = scene.server.names("jobs");
    scene.pass().await.unwrap();
    assert_ne!(scene.server.names("jobs"), first);
}

#[tokio::test]
async fn what_belongs_to_others_is_not_taken_over() {
    let scene = Scene::new(json!({}));
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "d", "labels": { "gqla.dev/owner-uid": "another" } }, "spec": {},
    });
    scene.server.put("/api/v1/namespaces/n/services/d", theirs.clone());
    let error = scene.pass().await.unwrap_err();
    assert!(matches!(error, ReconcileError::NameTaken { .. }), "{error}");
    assert_eq!(scene.server.get("/api/v1/namespaces/n/services/d"), Some(theirs));
    assert_eq!(scene.server.names("deployments"), [""; 0]);
    let (status, reason, message) = scene.condition("Planned");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NameTaken"));
    assert!(message.starts_with("Service d exists"), "{message}");
}

#[tokio::test]
async fn a_refusal_of_the_api_server_is_told_and_tried_again() {
    for code in [400, 403, 422] {
        let scene = Scene::new(json!({}));
        scene.server.fail_next_write(code);
        scene.pass().await.unwrap_err();
        let (status, reason, message) = scene.condition("Planned");
        assert_eq!((status.as_str(), reason.as_str()), ("False", "Refused"));
        assert!(message.contains("injected by the test"), "{message}");
        scene.pass().await.unwrap();
        assert_eq!(scene.condition("Planned").0, "True");
    }
}

#[tokio::test]
async fn an_automatic_pool_goes_when_its_successor_serves() {
    let scene = Scene::new(json!({ "placement": { "strategy": "Throughput" } }));
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("h100")]);
    scene.fleet.node_event(Event::Delete(node("h100", "NVIDIA-H100-80GB-HBM3")));
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("h100"), of("h20")]);
    scene.server.edit(&deployment_path("h20"), |object| object["status"]["readyReplicas"] = json!(2));
    scene.pass().await.unwrap();
    assert_eq!(scene.server.names("deployments"), [of("h20")]);
}

#[tokio::test]
async fn zero_replicas_need_no_plan() {
    let scene = Scene::new(json!({ "pools": [{ "name": "a", "gpuClass": "H100" }] }));
    scene.pass().await.unwrap();
    scene.fleet.node_event(Event::Delete(node("h100", "NVIDIA-H100-80GB-HBM3")));
    scene.change("replicas", json!(0));
    scene.pass().await.unwrap();
    let kept = scene.server.get(&deployment_path("a")).unwrap();
    assert_eq!(kept["spec"]["replicas"], json!(0));
    assert!(kept["spec"]["template"]["spec"]["containers"].is_array(), "only the replicas change");
    assert_eq!(scene.condition("Planned").1, "NoUsableNodes");
    assert_eq!(scene.condition("Available").1, "ScaledToZero");
}
