use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};

use super::*;

const PATH: &str = "/apis/apps/v1/namespaces/n/deployments/d";

fn deployment(selector: &str) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "name": "d", "labels": { "app": "x" } },
        "spec": { "selector": { "matchLabels": { "app": selector } }, "template": {} },
    }))
    .unwrap()
}

fn api(server: &RecordingServer) -> Api<Deployment> {
    Api::namespaced(server.client(), "n")
}

async fn apply(server: &RecordingServer, object: &Deployment) -> kube::Result<Deployment> {
    api(server).patch("d", &PatchParams::apply("test").force(), &Patch::Apply(object)).await
}

#[tokio::test]
async fn what_is_applied_is_listed_and_deleted() {
    let server = RecordingServer::new();
    let first = apply(&server, &deployment("x")).await.unwrap();
    let again = apply(&server, &deployment("x")).await.unwrap();
    assert_eq!((first.uid(), first.metadata.generation), (again.uid(), again.metadata.generation));
    let list = |labels: &str| ListParams::default().labels(labels);
    assert_eq!(api(&server).list(&list("app=x")).await.unwrap().items.len(), 1);
    assert_eq!(api(&server).list(&list("app=y")).await.unwrap().items.len(), 0);
    api(&server).delete("d", &DeleteParams::default()).await.unwrap();
    assert_eq!(server.get(PATH), None);
    let methods: Vec<_> = server.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["PATCH", "PATCH", "GET", "GET", "DELETE"]);
}

#[tokio::test]
async fn selectors_names_and_foreign_owners_are_refused_as_the_real_server_does() {
    let server = RecordingServer::new();
    apply(&server, &deployment("x")).await.unwrap();
    let error = apply(&server, &deployment("y")).await.unwrap_err();
    assert!(error.to_string().contains("immutable"), "{error}");
    let long = "s".repeat(64);
    let service: Service = serde_json::from_value(json!({ "metadata": { "name": long } })).unwrap();
    let services: Api<Service> = Api::namespaced(server.client(), "n");
    let patch = services.patch(&long, &PatchParams::apply("test"), &Patch::Apply(&service)).await;
    assert!(patch.unwrap_err().to_string().contains("metadata.name"));
}

#[tokio::test]
async fn failures_are_injected_once() {
    let server = RecordingServer::new();
    server.fail_next_write(409);
    assert!(
        matches!(apply(&server, &deployment("x")).await, Err(kube::Error::Api(status)) if status.is_conflict())
    );
    assert!(apply(&server, &deployment("x")).await.is_ok());
}
