//! What runs in the hub: etcd, the API server, the controllers, the scheduler, cluster DNS and the rules that
//! route Services.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use super::error::{ClusterError, io};
use super::layout::{API_SERVICE, HUB, KWOK_PODS, Layout, PODS, SERVICES};
use super::pki::{Authority, Subject};
use super::supervisor::{Network, Supervisor};
use crate::tools::Tools;

/// The API server's port.
pub(crate) const API_PORT: u16 = 6443;
/// The port on which CoreDNS says that it knows the cluster's Services.
pub(crate) const DNS_READY_PORT: u16 = 8181;

/// Starts components of one cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Starter<'a> {
    pub(crate) tools: &'a Tools,
    pub(crate) layout: &'a Layout,
    pub(crate) supervisor: &'a Supervisor,
}

impl Starter<'_> {
    /// Starts one program of the `kube` binary.
    pub(crate) fn start_kube(
        &self,
        network: Network<'_>,
        name: &str,
        program: &str,
        flags: &[String],
    ) -> Result<(), ClusterError> {
        let mut command = self.supervisor.command(network, &self.tools.kube);
        command.arg(program).args(flags);
        self.supervisor.components().start(self.layout, name, command)
    }

    /// A command for the hub.
    fn hub(&self, program: &Path) -> Command {
        self.supervisor.command(Network::Hub, program)
    }
}

/// Issues the certificates and kubeconfigs of the control plane.
pub(crate) fn issue(authority: &Authority, layout: &Layout) -> Result<(), ClusterError> {
    let addresses = [Ipv4Addr::LOCALHOST, HUB, API_SERVICE].map(IpAddr::V4);
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    authority.issue(&Subject {
        name: "apiserver",
        user: "kube-apiserver",
        addresses: &addresses,
        names: &names,
        ..Subject::default()
    })?;
    let masters = Some("system:masters");
    authority.issue(&Subject {
        name: "apiserver-to-kubelet",
        user: "kube-apiserver-kubelet-client",
        group: masters,
        ..Subject::default()
    })?;
    let clients = [
        ("admin", "admin", masters),
        ("kube-controller-manager", "system:kube-controller-manager", None),
        ("kube-scheduler", "system:kube-scheduler", None),
    ];
    for (name, user, group) in clients {
        authority.issue(&Subject { name, user, group, ..Subject::default() })?;
        authority.write_kubeconfig(&layout.kubeconfig(name), name, &format!("https://{HUB}:{API_PORT}"))?;
    }
    Ok(())
}

/// Starts etcd and the API server.
pub(crate) fn start_api(starter: Starter<'_>) -> Result<(), ClusterError> {
    let data = starter.layout.state().join("etcd");
    // A test cluster does not outlive its process: what is not on disk at a power failure is not missed.
    let etcd = [
        format!("--data-dir={}", data.display()),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    starter.start_kube(Network::Hub, "etcd", "etcd", &etcd)?;
    starter.start_kube(Network::Hub, "kube-apiserver", "kube-apiserver", &api_server_flags(starter.layout))
}

fn api_server_flags(layout: &Layout) -> Vec<String> {
    let pki = |file: &str| layout.pki(file).display().to_string();
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={HUB}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", pki("apiserver.crt")),
        format!("--tls-private-key-file={}", pki("apiserver.key")),
        format!("--client-ca-file={}", pki("ca.crt")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki("sa.pub")),
        format!("--service-account-signing-key-file={}", pki("sa.key")),
        format!("--service-cluster-ip-range={SERVICES}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Node names are in no DNS, and logs and exec would look them up.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--kubelet-client-certificate={}", pki("apiserver-to-kubelet.crt")),
        format!("--kubelet-client-key={}", pki("apiserver-to-kubelet.key")),
    ]
}

/// Starts the controllers and the scheduler.
pub(crate) fn start_controllers(starter: Starter<'_>) -> Result<(), ClusterError> {
    let pki = |file: &str| starter.layout.pki(file).display().to_string();
    let common = |name: &str| {
        vec![
            format!("--kubeconfig={}", starter.layout.kubeconfig(name).display()),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            // Making an RSA key for themselves takes them a good part of a second.
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            // By default they ask 20 times a second, and their first questions take seconds at that rate.
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=1000".to_owned(),
        ]
    };
    let mut flags = common("kube-controller-manager");
    flags.extend([
        "--use-service-account-credentials".to_owned(),
        format!("--service-account-private-key-file={}", pki("sa.key")),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
    ]);
    starter.start_kube(Network::Hub, "kube-controller-manager", "kube-controller-manager", &flags)?;
    starter.start_kube(Network::Hub, "kube-scheduler", "kube-scheduler", &common("kube-scheduler"))
}

/// Starts the rules that route Services, in the network of the hub or of a node; `node` must be a node's name.
pub(crate) fn start_proxy(
    starter: Starter<'_>,
    network: Network<'_>,
    node: &str,
    address: Ipv4Addr,
) -> Result<(), ClusterError> {
    let log = match network {
        Network::Hub => "kube-proxy".to_owned(),
        Network::Node(name) => format!("kube-proxy-{name}"),
    };
    let flags = [
        format!("--kubeconfig={}", starter.layout.kubeconfig("admin").display()),
        format!("--hostname-override={node}"),
        "--proxy-mode=iptables".to_owned(),
        format!("--cluster-cidr={PODS}"),
        // The connection table's size is the machine's, and not a namespace's to set.
        "--conntrack-max-per-core=0".to_owned(),
        format!("--bind-address={address}"),
    ];
    starter.start_kube(network, &log, "kube-proxy", &flags)
}

/// Starts cluster DNS on the hub's address.
pub(crate) fn start_dns(starter: Starter<'_>) -> Result<(), ClusterError> {
    let (path, kubeconfig) = (starter.layout.state().join("Corefile"), starter.layout.kubeconfig("admin"));
    let corefile = format!(
        ".:53 {{
  bind {HUB}
  errors
  ready {HUB}:{DNS_READY_PORT}
  kubernetes cluster.local {{
    kubeconfig {}
  }}
}}
",
        kubeconfig.display()
    );
    std::fs::write(&path, corefile).map_err(io("write", &path))?;
    let mut command = starter.hub(&starter.tools.coredns);
    command.arg("-conf").arg(&path);
    starter.supervisor.components().start(starter.layout, "coredns", command)
}

/// Starts kwok for the nodes that carry its annotation. Its own stages (node and pod, fast, heartbeat by
/// Lease) apply when it is given none.
pub(crate) fn start_kwok(starter: Starter<'_>) -> Result<(), ClusterError> {
    let mut command = starter.hub(&starter.tools.kwok);
    command
        .arg(format!("--kubeconfig={}", starter.layout.kubeconfig("admin").display()))
        .arg("--manage-all-nodes=false");
    command.arg(format!("--manage-nodes-with-annotation-selector={}", super::kwok::ANNOTATION));
    command.args([
        format!("--cidr={KWOK_PODS}"),
        format!("--node-ip={HUB}"),
        "--node-lease-duration-seconds=40".to_owned(),
    ]);
    // Its default configuration file is looked up in the home folder, and the user's own is none of ours.
    command.env("HOME", starter.layout.state());
    starter.supervisor.components().start(starter.layout, "kwok", command)
}
