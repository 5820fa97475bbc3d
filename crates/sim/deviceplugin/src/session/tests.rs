//! With a kubelet of our own making: the real API over real sockets, GPUs that are only named.

use std::future::Future;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::*;
use crate::api::device_plugin_client::DevicePluginClient;
use crate::api::registration_server::{Registration as Kubelet, RegistrationServer};
use crate::api::{AllocateRequest, ContainerAllocateRequest, Empty, ListAndWatchResponse};
use crate::devices::Fault;

const PATIENCE: Duration = Duration::from_secs(20);

/// Notes every request, and refuses all but `nvidia.com/gpu`.
struct Notes(mpsc::UnboundedSender<RegisterRequest>);

#[tonic::async_trait]
impl Kubelet for Notes {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let known = request.resource_name == "nvidia.com/gpu";
        self.0.send(request).unwrap();
        if known { Ok(Response::new(Empty {})) } else { Err(Status::unknown("never heard of it")) }
    }
}

/// Starts as a kubelet does: removes every socket first.
fn start_kubelet(folder: &Path) -> (JoinHandle<()>, mpsc::UnboundedReceiver<RegisterRequest>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let (sender, requests) = mpsc::unbounded_channel();
    let listener = UnixListener::bind(folder.join(KUBELET_SOCKET)).unwrap();
    let server = Server::builder()
        .add_service(RegistrationServer::new(Notes(sender)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    (tokio::spawn(async { server.await.unwrap() }), requests)
}

struct Fixture {
    folder: tempfile::TempDir,
    devices: watch::Sender<Devices>,
    stop: CancellationToken,
    plugin: JoinHandle<()>,
}

fn start_plugin(resource: &str, devices: Devices) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let libraries = folder.path().join("driver/usr/lib/x86_64-linux-gnu");
    std::fs::create_dir_all(&libraries).unwrap();
    std::fs::write(libraries.join("libnvidia-ml.so.1"), "").unwrap();
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    let registration = Registration {
        folder: folder.path().join("plugins"),
        resource: resource.to_owned(),
        driver: Driver::new(&folder.path().join("driver")),
    };
    let (sender, receiver) = watch::channel(devices);
    let stop = CancellationToken::new();
    let token = stop.clone();
    let plugin = tokio::spawn(async move { run(&registration, receiver, &token).await });
    Fixture { folder, devices: sender, stop, plugin }
}

impl Fixture {
    fn sockets(&self) -> PathBuf {
        self.folder.path().join("plugins")
    }

    /// What the kubelet does with a registration.
    async fn client(&self, request: &RegisterRequest) -> DevicePluginClient<Channel> {
        let socket = self.sockets().join(&request.endpoint);
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        DevicePluginClient::new(endpoint.connect().await.unwrap())
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no {what} after {PATIENCE:?}"))
}

fn two(fault: Option<Fault>) -> Devices {
    [("GPU-a".to_owned(), None), ("GPU-b".to_owned(), fault)].into()
}

fn health(list: &ListAndWatchResponse) -> Vec<(&str, &str)> {
    list.devices.iter().map(|device| (device.id.as_str(), device.health.as_str())).collect()
}

#[tokio::test]
async fn a_kubelet_learns_of_gpus_and_their_health_and_gets_what_a_pod_needs() {
    let fixture = start_plugin("nvidia.com/gpu", two(None));
    let (_kubelet, mut requests) = start_kubelet(&fixture.sockets());
    let request = soon("registration", requests.recv()).await.unwrap();
    assert_eq!(
        (request.version.as_str(), request.endpoint.as_str(), request.resource_name.as_str()),
        ("v1beta1", "nvidia.com_gpu.sock", "nvidia.com/gpu")
    );

    let mut client = fixture.client(&request).await;
    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    let list = soon("list", lists.message()).await.unwrap().unwrap();
    assert_eq!(health(&list), [("GPU-a", "Healthy"), ("GPU-b", "Healthy")]);

    let wanted = |id: &str| AllocateRequest {
        container_requests: vec![ContainerAllocateRequest { devices_ids: vec![id.to_owned()] }],
    };
    let answer = client.allocate(wanted("GPU-b")).await.unwrap().into_inner();
    let container = &answer.container_responses[0];
    assert_eq!(container.envs["NVIDIA_VISIBLE_DEVICES"], "GPU-b");
    let targets: Vec<_> = container.mounts.iter().map(|mount| mount.container_path.as_str()).collect();
    assert_eq!(targets, ["/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "/run/gqla-fakenvml"]);

    fixture.devices.send_replace(two(Some(Fault::Xid(79))));
    let list = soon("changed list", lists.message()).await.unwrap().unwrap();
    assert_eq!(health(&list), [("GPU-a", "Healthy"), ("GPU-b", "Unhealthy")]);
    let refusal = client.allocate(wanted("GPU-b")).await.unwrap_err();
    assert!(refusal.message().contains("GPU-b is unhealthy: it raised XID 79"), "{refusal}");
    let refusal = client.allocate(wanted("GPU-z")).await.unwrap_err();
    assert!(refusal.message().contains("\"GPU-z\""), "{refusal}");

    fixture.devices.send_replace(two(None));
    let list = soon("list", lists.message()).await.unwrap().unwrap();
    assert_eq!(health(&list), [("GPU-a", "Healthy"), ("GPU-b", "Healthy")]);

    std::fs::remove_dir_all(fixture.folder.path().join("driver")).unwrap();
    let refusal = client.allocate(wanted("GPU-b")).await.unwrap_err();
    assert!(refusal.message().contains("install the driver"), "{refusal}");
}

#[tokio::test]
async fn a_kubelet_that_starts_anew_is_told_again() {
    let fixture = start_plugin("nvidia.com/gpu", two(None));
    let (kubelet, mut requests) = start_kubelet(&fixture.sockets());
    let request = soon("registration", requests.recv()).await.unwrap();
    let mut lists = fixture.client(&request).await.list_and_watch(Empty {}).await.unwrap().into_inner();
    soon("list", lists.message()).await.unwrap().unwrap();
    kubelet.abort();

    let (_kubelet, mut requests) = start_kubelet(&fixture.sockets());
    let request = soon("second registration", requests.recv()).await.unwrap();
    let mut client = fixture.client(&request).await;
    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    let list = soon("list", lists.message()).await.unwrap().unwrap();
    assert_eq!(list.devices.len(), 2);
    let once_more = tokio::time::timeout(2 * PERIOD, requests.recv()).await;
    assert!(once_more.is_err(), "nothing changed and it registered again: {once_more:?}");
}

#[tokio::test]
async fn nothing_is_registered_before_a_gpu_is_seen() {
    let fixture = start_plugin("nvidia.com/gpu", Devices::new());
    let (_kubelet, mut requests) = start_kubelet(&fixture.sockets());
    assert!(tokio::time::timeout(2 * PERIOD, requests.recv()).await.is_err());
    fixture.devices.send_replace(two(None));
    soon("registration", requests.recv()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_not_the_end() {
    let fixture = start_plugin("example.com/card", two(None));
    let (_kubelet, mut requests) = start_kubelet(&fixture.sockets());
    for attempt in ["first", "second"] {
        assert_eq!(soon(attempt, requests.recv()).await.unwrap().endpoint, "example.com_card.sock");
    }
}

#[tokio::test]
async fn a_plugin_that_is_told_to_stop_ends_its_streams_and_removes_its_socket() {
    let fixture = start_plugin("nvidia.com/gpu", two(None));
    let (_kubelet, mut requests) = start_kubelet(&fixture.sockets());
    let request = soon("registration", requests.recv()).await.unwrap();
    let mut client = fixture.client(&request).await;
    let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
    soon("list", lists.message()).await.unwrap().unwrap();

    fixture.stop.cancel();
    assert!(soon("end of the stream", lists.message()).await.unwrap().is_none());
    soon("end of the plugin", fixture.plugin).await.unwrap();
    assert!(!fixture.folder.path().join("plugins").join(&request.endpoint).exists());
}

#[tokio::test]
async fn a_kubelet_that_does_not_answer_is_named() {
    let fixture = start_plugin("nvidia.com/gpu", Devices::new());
    std::fs::write(fixture.sockets().join(KUBELET_SOCKET), "").unwrap();
    let registration = Registration {
        folder: fixture.sockets(),
        resource: "nvidia.com/gpu".to_owned(),
        driver: Driver::new(fixture.folder.path()),
    };
    let error = register(&registration).await.unwrap_err().to_string();
    assert!(error.contains("no kubelet answers on") && error.contains("kubelet.sock"), "{error}");
}
