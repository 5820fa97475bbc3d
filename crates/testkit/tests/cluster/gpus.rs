//! Nodes with GPUs: what a kubelet advertises, what a pod gets, and what happens when cards, drivers and
//! kubelets fail.

use std::time::{Duration, Instant};

use gqla_testkit::cluster::Cluster;

use super::{hello_image, stand_ins};

const MANIFEST: &str = include_str!("gpus.yaml");
const RESOURCE: &str = "{.status.allocatable.nvidia\\.com/gpu}";

#[tokio::test]
async fn a_node_has_the_gpus_that_its_driver_shows() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = folder.path().join("gpus.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    let stand_ins = tokio::task::spawn_blocking(stand_ins::obtain).await.unwrap();
    let cluster = Cluster::builder()
        .node("h20-a")
        .label("nvidia.com/gpu.product", "NVIDIA-H20")
        .gpus("H20", 2)
        .node("bare-a")
        .gpus("H100", 1)
        .without_driver()
        .gpu_stand_ins(stand_ins)
        .image(hello_image(folder.path()))
        .start()
        .await
        .unwrap();
    let gpus = cluster.gpus("h20-a").unwrap();
    advertises(&cluster, "h20-a", "2", Duration::from_secs(30)).await;

    cluster.kubectl(["apply", "--filename", manifest.to_str().unwrap()]).await.unwrap();
    rolled_out(&cluster).await;
    let environment = inside(&cluster, &["env"]).await;
    let uuids = gpus.state().unwrap().gpus.into_iter().map(|gpu| gpu.uuid.unwrap());
    let visible = |uuid: &String| environment.contains(&format!("NVIDIA_VISIBLE_DEVICES={uuid}\n"));
    let (given, free): (Vec<_>, Vec<_>) = uuids.enumerate().partition(|(_, uuid)| visible(uuid));
    assert_eq!((given.len(), free.len()), (1, 1), "{environment}");
    inside(&cluster, &["test", "-s", "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"]).await;
    inside(&cluster, &["grep", "-q", "H20", "/run/gqla-fakenvml/gqla-fakenvml.json"]).await;

    let free = free[0].0;
    gpus.pull(free).unwrap();
    advertises(&cluster, "h20-a", "1", Duration::from_secs(10)).await;
    inside(&cluster, &["grep", "-q", "\"lost\": true", "/run/gqla-fakenvml/gqla-fakenvml.json"]).await;
    gpus.restore(free).unwrap();
    advertises(&cluster, "h20-a", "2", Duration::from_secs(10)).await;

    cluster.restart_kubelet("h20-a").await.unwrap();
    cluster.kubectl(["scale", "deployment/gpu", "--replicas=2"]).await.unwrap();
    rolled_out(&cluster).await;
    advertises(&cluster, "h20-a", "2", Duration::from_secs(10)).await;

    let bare = cluster.gpus("bare-a").unwrap();
    assert_eq!(advertised(&cluster, "bare-a").await, "", "GPUs without a driver are nothing to a kubelet");
    bare.install_driver().unwrap();
    advertises(&cluster, "bare-a", "1", Duration::from_secs(20)).await;
    bare.remove_driver().unwrap();
    advertises(&cluster, "bare-a", "0", Duration::from_secs(20)).await;

    let refusal = cluster.gpus("h20-b").unwrap_err().to_string();
    assert!(refusal.contains("\"h20-b\" is no real node"), "{refusal}");
    cluster.stop().await;
}

/// Waits until a node advertises `count` GPUs for pods.
async fn advertises(cluster: &Cluster, node: &str, count: &str, patience: Duration) {
    let started = Instant::now();
    loop {
        let now = advertised(cluster, node).await;
        if now == count {
            return;
        }
        assert!(
            started.elapsed() < patience,
            "{node} advertises {now:?} GPUs after {patience:?}, not {count}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn advertised(cluster: &Cluster, node: &str) -> String {
    cluster.kubectl(["get", "node", node, "--output", &format!("jsonpath={RESOURCE}")]).await.unwrap()
}

/// Every pod that the deployment asks for has its GPU and runs.
async fn rolled_out(cluster: &Cluster) {
    cluster.kubectl(["rollout", "status", "deployment/gpu", "--timeout=60s"]).await.unwrap();
}

/// What a busybox command prints inside a pod with a GPU; it has to succeed.
async fn inside(cluster: &Cluster, command: &[&str]) -> String {
    let exec = ["exec", "deployment/gpu", "--", "/bin/busybox"];
    cluster.kubectl(exec.iter().chain(command)).await.unwrap()
}
