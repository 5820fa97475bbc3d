//! The test cluster itself, for real: needs root, and on a first run minutes to build the Kubernetes
//! programs.

// Helpers of tests are tests, which clippy does not know.
#![allow(clippy::unwrap_used)]

mod gpus;
mod remains;
mod stand_ins;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gqla_testkit::cluster::{Cluster, KwokNode};
use gqla_testkit::image::Image;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use remains::Remains;

const HELLO: &str = include_str!("hello.yaml");
/// Set, to the number of nodes, in the process that starts a cluster in order to be killed.
const DOOMED: &str = "GQLA_TESTKIT_DOOMED";

#[tokio::test]
async fn pods_spread_over_real_nodes_answer_through_a_service_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let archive = hello_image(folder.path());
    let manifest = folder.path().join("hello.yaml");
    std::fs::write(&manifest, HELLO).unwrap();

    let cluster = Cluster::builder()
        .node("h100-a")
        .label("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3")
        .node("h20-a")
        .label("nvidia.com/gpu.product", "NVIDIA-H20")
        .taint("nvidia.com/gpu=present:NoSchedule")
        .kwok_nodes(
            2,
            KwokNode::new("kwok")
                .label("nvidia.com/gpu.product", "NVIDIA-H200")
                .capacity("nvidia.com/gpu", "8"),
        )
        .image(&archive)
        .start()
        .await
        .unwrap();
    let remains = Remains::of(cluster.state_dir());

    cluster.kubectl(["apply", "--filename", manifest.to_str().unwrap()]).await.unwrap();
    for deployment in ["deployment/hello", "deployment/pretended"] {
        cluster.kubectl(["rollout", "status", deployment, "--timeout=120s"]).await.unwrap();
    }
    assert_eq!(
        nodes_of(&cluster, "app=hello").await,
        ["h100-a", "h20-a"],
        "one pod on each real node, the tainted one included"
    );
    assert_eq!(
        nodes_of(&cluster, "app=pretended").await,
        ["kwok-0", "kwok-1"],
        "eight GPUs each fit one pod each"
    );

    let address = cluster.forward_service("default", "hello", 80).await.unwrap();
    assert_eq!(get(address).await, "hello from a pod\n");
    let lookup = [
        "exec",
        "deployment/hello",
        "--",
        "/bin/busybox",
        "wget",
        "-q",
        "-O",
        "-",
        "http://hello.default.svc.cluster.local/index.html",
    ];
    assert_eq!(
        cluster.kubectl(lookup).await.unwrap(),
        "hello from a pod\n",
        "exec, cluster DNS and a Service, from inside a pod"
    );
    let failed = cluster.kubectl(["get", "nonsense"]).await.unwrap_err().to_string();
    assert!(failed.contains("kubectl get nonsense") && failed.contains("nonsense\""), "{failed}");

    cluster.stop().await;
    remains.assert_gone();
}

#[test]
fn a_killed_caller_leaves_no_process_mount_namespace_cgroup_or_file() {
    let mut caller = Command::new(std::env::current_exe().unwrap());
    caller
        .args(["--exact", "the_process_that_is_killed", "--ignored", "--nocapture"])
        .env(DOOMED, "1")
        .stdout(Stdio::piped());
    let mut caller = caller.spawn().unwrap();
    let lines = BufReader::new(caller.stdout.take().unwrap()).lines();
    let state = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("STATE=").map(|(_, path)| path.to_owned()));
    let remains = Remains::of(Path::new(&state.expect("the caller ended before its cluster was ready")));

    caller.kill().unwrap();
    caller.wait().unwrap();
    remains.assert_gone();
}

/// Starts a cluster with real nodes and waits to be killed. Run by the test above as a process of its own.
#[tokio::test]
#[ignore = "it waits to be killed; the test that kills it starts it"]
async fn the_process_that_is_killed() {
    let nodes = std::env::var(DOOMED).ok().and_then(|number| number.parse::<usize>().ok());
    if let Some(nodes) = nodes {
        let builder =
            (0..nodes).fold(Cluster::builder(), |builder, index| builder.node(format!("doomed-{index}")));
        let cluster = builder.start().await.unwrap();
        println!("STATE={}", cluster.state_dir().display());
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
}

/// Writes an image of nothing but busybox into `folder`.
fn hello_image(folder: &Path) -> PathBuf {
    let archive = folder.join("hello.tar");
    let busybox = Path::new("/bin/busybox");
    let image = Image::new("localhost/hello:1")
        .file(busybox, "/bin/busybox", 0o755)
        .with_libraries_of(busybox)
        .unwrap();
    image.entrypoint(["/bin/busybox"]).write(&archive).unwrap();
    archive
}

/// The nodes that pods with this label run on, sorted.
async fn nodes_of(cluster: &Cluster, selector: &str) -> Vec<String> {
    let output = ["--output", "jsonpath={.items[*].spec.nodeName}"];
    let words =
        cluster.kubectl(["get", "pods", "--selector", selector].into_iter().chain(output)).await.unwrap();
    let mut nodes: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
    nodes.sort();
    nodes
}

/// What a web server answers to `GET /index.html`.
async fn get(address: std::net::SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or(answer)
}
