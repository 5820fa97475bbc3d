//! A real Kubernetes cluster on one machine: etcd, API server, controllers, scheduler, DNS, and real
//! kubelets, one per node, each with its own containerd and network. It needs root and no container engine,
//! reaches nothing outside the machine, and is gone when the caller is. An operator that was only ever seen
//! against a mock breaks on field ownership, admission, garbage collection, cache lag, finalizers and RBAC;
//! here nothing is pretended but the GPU.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use gqla_testkit::cluster::{Cluster, KwokNode};
//!
//! let h20 = KwokNode::new("h20").label("nvidia.com/gpu.product", "NVIDIA-H20").capacity("nvidia.com/gpu", "8");
//! let cluster = Cluster::builder()
//!     .node("h100-a")
//!     .label("nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3")
//!     .node("cpu-a")
//!     .kwok_nodes(2, h20)
//!     .image("server.tar")
//!     .start()
//!     .await?;
//! let client = cluster.client().await?;
//! cluster.kubectl(["apply", "--filename", "deploy/samples/smollm2.yaml"]).await?;
//! let address = cluster.forward_service("default", "smollm2", 80).await?; // on 127.0.0.1
//! # Ok(()) }
//! ```

mod builder;
pub(crate) mod cgroup;
mod control_plane;
mod error;
mod forward;
mod gpus;
mod kwok;
mod layout;
mod network;
mod node;
mod pki;
mod process;
mod ready;
mod state;
mod supervisor;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

pub use builder::Builder;
pub use error::ClusterError;
pub use gpus::{NodeGpus, StandIns};
pub use kwok::KwokNode;

use control_plane::Starter;
use error::{api, io};
use forward::Forwarder;
use layout::Layout;
use supervisor::Supervisor;

use crate::tools::Tools;

/// A running cluster. Dropping it, or the end of the process in any way, ends it and leaves nothing behind.
#[derive(Debug)]
pub struct Cluster {
    tools: Tools,
    layout: Layout,
    nodes: Vec<String>,
    gpus: BTreeMap<String, NodeGpus>,
    forwarder: Forwarder,
    supervisor: Supervisor,
}

impl Cluster {
    /// Describes a cluster to be started.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A client with every right. It belongs to the runtime it was made in: make one in each test.
    ///
    /// # Errors
    /// [`ClusterError::Kubeconfig`] when the kubeconfig can't be used.
    pub async fn client(&self) -> Result<Client, ClusterError> {
        let path = self.kubeconfig();
        let sentence = |source| ClusterError::Kubeconfig { path: path.clone(), source };
        let kubeconfig = Kubeconfig::read_from(&path).map_err(sentence)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(sentence)?;
        Client::try_from(config).map_err(api("make a client of the API server"))
    }

    /// The kubeconfig with every right, for programs on this machine; it names a port of the loopback.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.caller_kubeconfig()
    }

    /// The cluster's files.
    pub fn state_dir(&self) -> &Path {
        self.layout.state()
    }

    /// The components' logs, `COMPONENT.log` each.
    pub fn logs_dir(&self) -> PathBuf {
        self.layout.logs()
    }

    /// The names of the real nodes, in the order in which they were described.
    pub fn node_names(&self) -> &[String] {
        &self.nodes
    }

    /// The GPUs of a node, to break and to mend.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] when no real node of this name was given GPUs.
    pub fn gpus(&self, node: &str) -> Result<NodeGpus, ClusterError> {
        let problem = "is no real node that `Builder::gpus` was called for";
        self.gpus.get(node).cloned().ok_or_else(|| ClusterError::Invalid {
            what: "node",
            value: node.to_owned(),
            problem,
        })
    }

    /// Kills a node's kubelet and returns when another one runs in its place. Pods stay; device plugins have to
    /// register anew.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] when there is no such real node, [`ClusterError::Command`] when its kubelet
    /// can't be killed.
    pub async fn restart_kubelet(&self, node: &str) -> Result<(), ClusterError> {
        if !self.nodes.iter().any(|name| name == node) {
            let problem = "is no real node of this cluster";
            return Err(ClusterError::Invalid { what: "node", value: node.to_owned(), problem });
        }
        node::restart_kubelet(&self.supervisor, node).await
    }

    /// The programs that the cluster is made of; `kube kubectl` is a kubectl of the right version.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// [`ClusterError::Command`] with its output when it fails.
    pub async fn kubectl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, ClusterError> {
        let mut command = Command::new(&self.tools.kube);
        command.arg("kubectl");
        self.run_outside("kubectl", command, arguments).await
    }

    /// Runs helm and returns what it printed.
    ///
    /// # Errors
    /// [`ClusterError::Command`] with its output when it fails.
    pub async fn helm<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, ClusterError> {
        self.run_outside("helm", Command::new(&self.tools.helm), arguments).await
    }

    /// Loads an OCI image archive on every real node.
    ///
    /// # Errors
    /// [`ClusterError::Command`] with the reason when a node does not take it.
    pub async fn load_image(&self, archive: &Path) -> Result<(), ClusterError> {
        let archive = archive.canonicalize().map_err(io("find the image", archive))?;
        let loads = self.nodes.iter().map(|node| node::load_image(&self.supervisor, node, &archive));
        try_join_all(loads).await.map(drop)
    }

    /// Makes `target`, an `ADDRESS:PORT` of a pod, a Service or a node, reachable at the returned port of the
    /// loopback for as long as the cluster lives.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] when `target` is no address.
    pub fn forward(&self, target: &str) -> Result<SocketAddr, ClusterError> {
        self.forward_from(ready::any_loopback_port(), target)
    }

    /// Like [`Cluster::forward`], from an address of the caller's choice.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] when `target` is no address, [`ClusterError::Io`] when `listen` is taken.
    pub fn forward_from(&self, listen: SocketAddr, target: &str) -> Result<SocketAddr, ClusterError> {
        let problem = "is not an IP address and a port, like 10.96.0.1:443";
        let address = target.parse().map_err(|_| ClusterError::Invalid {
            what: "forward target",
            value: target.to_owned(),
            problem,
        })?;
        self.forwarder.forward(listen, address)
    }

    /// Makes port `port` of a Service reachable at the returned port of the loopback.
    ///
    /// # Errors
    /// [`ClusterError::Api`] when there is no such Service, [`ClusterError::Invalid`] when it has no address
    /// of its own.
    pub async fn forward_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<SocketAddr, ClusterError> {
        let services: Api<Service> = Api::namespaced(self.client().await?, namespace);
        let service =
            services.get(name).await.map_err(api(format!("read the Service {namespace}/{name}")))?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        self.forward(&format!("{address}:{port}"))
    }

    /// Ends the cluster and waits until nothing is left of it, as dropping it does, without blocking the
    /// runtime.
    pub async fn stop(self) {
        // Fails only when dropping panics, which the runtime has reported.
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }

    /// Leaves the cluster's files, logs among them, where they are when it ends: something went wrong.
    fn keep_files(&self) {
        // Without the mark the files are removed, which harms nobody who still has the error.
        let _ = std::fs::write(self.layout.keep_mark(), "");
    }

    fn starter(&self) -> Starter<'_> {
        Starter { tools: &self.tools, layout: &self.layout, supervisor: &self.supervisor }
    }

    /// Runs a program of the caller's network with `arguments`, as the cluster's administrator.
    async fn run_outside<S: AsRef<OsStr>>(
        &self,
        name: &str,
        mut command: Command,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, ClusterError> {
        let mut words = name.to_owned();
        for argument in arguments {
            command.arg(argument.as_ref());
            words = format!("{words} {}", argument.as_ref().to_string_lossy());
        }
        // helm keeps caches in the home folder; the user's own are none of ours.
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", self.layout.state()).stdin(Stdio::null());
        run(command, &words).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_files();
            eprintln!("the test cluster's logs stay in {}", self.logs_dir().display());
        }
    }
}

/// Runs `command` to its end and returns its standard output; `words` is what to call it in an error.
async fn run(command: Command, words: &str) -> Result<String, ClusterError> {
    let failed = |outcome: String, output: String| ClusterError::Command {
        command: words.to_owned(),
        outcome,
        output,
    };
    let output = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(error.to_string(), String::new()))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(failed(output.status.to_string(), text(output.stderr) + &text(output.stdout)))
    }
}
