//! The program itself, with the stand-in NVML, in front of a kubelet of our own making.

// Helpers of tests are tests, which clippy does not know.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use gqla_deviceplugin::api::device_plugin_client::DevicePluginClient;
use gqla_deviceplugin::api::registration_server::{Registration, RegistrationServer};
use gqla_deviceplugin::api::{Empty, ListAndWatchResponse, RegisterRequest};
use gqla_fakenvml::state::STATE_FILE;
use gqla_fakenvml::{Failure, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

struct Kubelet(mpsc::UnboundedSender<RegisterRequest>);

#[tonic::async_trait]
impl Registration for Kubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        self.0.send(request.into_inner()).unwrap();
        Ok(Response::new(Empty {}))
    }
}

/// Ends the program when a test fails.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program and returns its list of devices as the kubelet gets it.
async fn start(root: &Path, plugins: &Path) -> (Program, Streaming<ListAndWatchResponse>) {
    let (sender, mut requests) = mpsc::unbounded_channel();
    let listener = UnixListener::bind(plugins.join("kubelet.sock")).unwrap();
    let kubelet = Server::builder()
        .add_service(RegistrationServer::new(Kubelet(sender)))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::spawn(kubelet);
    let mut command = Command::new(env!("CARGO_BIN_EXE_gqla-deviceplugin"));
    command.arg("--driver-root").arg(root).arg("--plugin-dir").arg(plugins);
    let program = Program(command.spawn().unwrap());
    let request = tokio::time::timeout(PATIENCE, requests.recv()).await.unwrap().unwrap();
    let socket = format!("unix://{}", plugins.join(request.endpoint).display());
    let channel = Endpoint::from_shared(socket).unwrap().connect().await.unwrap();
    (program, DevicePluginClient::new(channel).list_and_watch(Empty {}).await.unwrap().into_inner())
}

async fn next_health(lists: &mut Streaming<ListAndWatchResponse>) -> Vec<String> {
    let list = tokio::time::timeout(PATIENCE, lists.message()).await.unwrap().unwrap().unwrap();
    list.devices.into_iter().map(|device| device.health).collect()
}

fn sorted<const N: usize>(health: [&str; N]) -> Vec<String> {
    let mut health = health.map(str::to_owned).to_vec();
    health.sort();
    health
}

#[tokio::test]
async fn cards_that_fail_are_unhealthy_until_they_are_back() {
    let folder = tempfile::tempdir().unwrap();
    let (root, plugins) = (folder.path().join("driver"), folder.path().join("plugins"));
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    std::fs::create_dir_all(&libraries).unwrap();
    std::fs::create_dir(&plugins).unwrap();
    let healthy = State::node("H20", 2);
    gqla_fakenvml::install(&libraries, &healthy).unwrap();
    let show = |state: &State| state.write(&libraries.join(STATE_FILE)).unwrap();

    let (mut program, mut lists) = start(&root, &plugins).await;
    assert_eq!(next_health(&mut lists).await, ["Healthy", "Healthy"]);

    let pulled = Instant::now();
    show(&healthy.clone().with_lost(1));
    let mut health = next_health(&mut lists).await;
    health.sort();
    assert_eq!(health, sorted(["Healthy", "Unhealthy"]));
    assert!(pulled.elapsed() < Duration::from_secs(5), "it took {:?}", pulled.elapsed());
    let back = State { gpus: healthy.clone().with_xid(1, 79).gpus, ..healthy.clone() };
    show(&back);
    assert_eq!(
        next_health(&mut lists).await,
        ["Healthy", "Healthy"],
        "a lost card is back, old XIDs and all"
    );

    // The first XID is a program's, so the next list must be about the second.
    let noisy = back.clone().with_xid(0, 31);
    show(&noisy);
    assert!(
        tokio::time::timeout(Duration::from_secs(3), lists.message()).await.is_err(),
        "a program's XID is no fault of the card"
    );
    let broken = noisy.with_xid(0, 48);
    show(&broken);
    let mut health = next_health(&mut lists).await;
    health.sort();
    assert_eq!(health, sorted(["Healthy", "Unhealthy"]));

    show(&broken.clone().with_failure(Failure::DriverNotLoaded));
    assert_eq!(next_health(&mut lists).await, ["Unhealthy", "Unhealthy"], "no driver, no GPU");
    show(&broken);
    assert_eq!(next_health(&mut lists).await, ["Healthy", "Healthy"], "a new driver resets the cards");

    kill(Pid::from_raw(program.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(tokio::time::timeout(PATIENCE, lists.message()).await.unwrap().unwrap().is_none());
    // The runtime goes on meanwhile: a server that leaves in order waits for its clients' answer.
    let ended = async {
        loop {
            if let Some(status) = program.0.try_wait().unwrap() {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert!(ended.success(), "SIGTERM is an orderly end");
    assert!(!plugins.join("nvidia.com_gpu.sock").exists());
}
