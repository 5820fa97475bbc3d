//! When a cluster counts as ready, asked often because each wait adds to every test.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::error::ClusterError;
use super::layout::Layout;
use super::supervisor::Supervisor;

/// How long anything may take on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

/// Waits for parts of one cluster.
pub(crate) struct Waiter<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) supervisor: &'a Supervisor,
    pub(crate) client: Client,
}

impl Waiter<'_> {
    /// Asks `question` until it has no objection. Ends early when a component has ended.
    async fn wait_for(
        &self,
        what: &'static str,
        mut question: impl AsyncFnMut() -> Result<(), String>,
    ) -> Result<(), ClusterError> {
        let started = Instant::now();
        loop {
            let Err(last) = question().await else { return Ok(()) };
            self.supervisor.components().check(self.layout)?;
            if started.elapsed() > PATIENCE {
                return Err(ClusterError::Timeout {
                    what,
                    seconds: PATIENCE.as_secs(),
                    last,
                    logs: self.layout.logs(),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The API server says that it is ready.
    pub(crate) async fn api(&self) -> Result<(), ClusterError> {
        let ask = async || {
            let request =
                http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
            self.client.request_text(request).await.map(drop).map_err(|error| error.to_string())
        };
        self.wait_for("the API server is", ask).await
    }

    /// Pods may be created in `default`: its service account exists, without which they are refused.
    pub(crate) async fn service_account(&self) -> Result<(), ClusterError> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        let ask = async || accounts.get("default").await.map(drop).map_err(|error| error.to_string());
        self.wait_for("the service account `default` is", ask).await
    }

    /// Every node of `names` is Ready and pods may be bound to it.
    pub(crate) async fn nodes(&self, names: &BTreeSet<String>) -> Result<(), ClusterError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let ask = async || {
            let list = nodes.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
            let ready: BTreeSet<_> = list
                .items
                .iter()
                .filter(|node| is_ready(node))
                .filter_map(|node| node.metadata.name.clone())
                .collect();
            let missing: Vec<_> = names.difference(&ready).map(String::as_str).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("waiting for {}", missing.join(", "))) }
        };
        self.wait_for("the nodes are", ask).await
    }

    /// CoreDNS knows the cluster's Services. `page` is its readiness page, as the caller reaches it.
    pub(crate) async fn dns(&self, page: SocketAddr) -> Result<(), ClusterError> {
        self.wait_for("cluster DNS is", async || says_ok(page).await).await
    }
}

/// Ready, and without the taints that the node controller removes a moment after that.
fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let taints = node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
    let ready =
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && !taints.into_iter().any(|taint| taint.key.starts_with("node.kubernetes.io/"))
}

/// A client for one status line is not worth a library's setup.
async fn says_ok(page: SocketAddr) -> Result<(), String> {
    let ask = async {
        let mut stream = TcpStream::connect(page).await?;
        stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let answer = ask.await.map_err(|error: std::io::Error| error.to_string())?;
    let first = answer.lines().next().unwrap_or("no answer");
    if first.contains(" 200 ") { Ok(()) } else { Err(first.to_owned()) }
}

/// The address of a port on the loopback that is free.
pub(crate) fn any_loopback_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_pods_may_be_bound_to_it() {
        let node = |status: &str, taint: &str| -> Node {
            let value = serde_json::json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {},
                "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
                "status": {"conditions": [{"type": "Ready", "status": status}]},
            });
            serde_json::from_value(value).unwrap()
        };
        assert!(is_ready(&node("True", "nvidia.com/gpu")));
        assert!(!is_ready(&node("True", "node.kubernetes.io/not-ready")));
        assert!(!is_ready(&node("False", "nvidia.com/gpu")));
        assert!(!is_ready(&Node::default()));
    }
}
