//! Where a cluster keeps its files, and which addresses it gives out. Paths are absolute: every component
//! starts in the root folder of its namespace.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The control plane's address on the link that joins the nodes.
pub(crate) const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The first address of [`SERVICES`], which Kubernetes gives to its own API.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Addresses of Services.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// Addresses of pods on real nodes; each node has a /24 of it.
pub(crate) const PODS: &str = "10.88.0.0/16";
/// Addresses that kwok writes into pods that do not exist.
pub(crate) const KWOK_PODS: &str = "10.89.0.1/16";
/// Nodes that the addresses are enough for.
pub(crate) const MAX_NODES: usize = 200;

/// A node's address; `index` counts from 0.
pub(crate) fn node_address(index: usize) -> Ipv4Addr {
    let [a, b, c, _] = HUB.octets();
    Ipv4Addr::new(a, b, c, 11 + u8::try_from(index).unwrap_or(u8::MAX))
}

/// The addresses of a node's pods; `index` counts from 0.
pub(crate) fn pod_addresses(index: usize) -> String {
    format!("10.88.{}.0/24", index + 1)
}

/// A cluster's folder.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    state: PathBuf,
}

impl Layout {
    pub(crate) fn new(state: PathBuf) -> Self {
        Self { state }
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.state.join("pki").join(file)
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("log")
    }

    pub(crate) fn log(&self, component: &str) -> PathBuf {
        self.logs().join(format!("{component}.log"))
    }

    /// The kubeconfig that a component uses, inside the cluster's network.
    pub(crate) fn kubeconfig(&self, component: &str) -> PathBuf {
        self.state.join(format!("{component}.kubeconfig"))
    }

    /// The kubeconfig for the caller, outside the cluster's network.
    pub(crate) fn caller_kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    pub(crate) fn pause_image(&self) -> PathBuf {
        self.state.join("pause.tar")
    }

    pub(crate) fn node(&self, name: &str) -> PathBuf {
        self.state.join("nodes").join(name)
    }

    /// What a node has in [`DRIVER_ROOT`](super::gpus::DRIVER_ROOT).
    pub(crate) fn driver(&self, node: &str) -> PathBuf {
        self.node(node).join("driver")
    }

    /// Exists when the files are to stay at the end.
    pub(crate) fn keep_mark(&self) -> PathBuf {
        self.state.join("keep")
    }

    /// Exists once kubelets may start.
    pub(crate) fn api_ready(&self) -> PathBuf {
        self.state.join("api-ready")
    }
}

/// Where a node keeps sockets: in the cluster's own /run, because the path of a Unix socket may not exceed
/// 107 bytes.
pub(crate) fn run_folder(node: &str) -> PathBuf {
    Path::new("/run/gqla").join(node)
}

/// A node's containerd.
pub(crate) fn containerd_socket(node: &str) -> PathBuf {
    run_folder(node).join("containerd.sock")
}
