//! A real node: a kubelet and a containerd with a network namespace, a mount namespace, cgroups and a folder
//! of their own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::control_plane::{API_PORT, Starter};
use super::error::{ClusterError, io};
use super::gpus::{DRIVER_ROOT, GpuSpec, StandIns, library_inside};
use super::layout::{HUB, Layout, containerd_socket, node_address, pod_addresses, run_folder};
use super::pki::{Authority, Subject};
use super::supervisor::{Network, Supervisor};
use crate::tools::debian::CNI_FOLDER;

/// A taint, parsed from `key=value:Effect` or `key:Effect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effect: String,
}

impl Taint {
    /// `None` when `text` is not a taint.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (pair, effect) = text.rsplit_once(':')?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect);
        (known && !key.is_empty()).then(|| Self {
            key: key.to_owned(),
            value: value.to_owned(),
            effect: effect.to_owned(),
        })
    }
}

/// A node to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeSpec {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) gpus: Option<GpuSpec>,
}

/// Writes a node's certificate and configuration; `index` counts from 0, `cgroup` is the cluster's.
pub(crate) fn write(
    spec: &NodeSpec,
    index: usize,
    cgroup: &str,
    layout: &Layout,
    authority: &Authority,
) -> Result<(), ClusterError> {
    let (name, folder) = (spec.name.as_str(), layout.node(&spec.name));
    for subfolder in ["cni", "cni-cache", "containerd", "driver", "kubelet", "var-log"] {
        let path = folder.join(subfolder);
        std::fs::create_dir_all(&path).map_err(io("create the folder", &path))?;
    }
    let certificate = format!("kubelet-{name}");
    let user = format!("system:node:{name}");
    let address = [IpAddr::V4(node_address(index))];
    authority.issue(&Subject {
        name: &certificate,
        user: &user,
        group: Some("system:nodes"),
        addresses: &address,
        names: &[name],
    })?;
    authority.write_kubeconfig(
        &layout.kubeconfig(&certificate),
        &certificate,
        &format!("https://{HUB}:{API_PORT}"),
    )?;
    let files = [
        ("containerd.toml", containerd_config(name, &folder)),
        ("cni/10-pods.conflist", format!("{:#}\n", cni_config(index, &folder))),
        ("kubelet.json", format!("{:#}\n", kubelet_config(spec, index, cgroup, layout))),
    ];
    for (file, content) in files {
        let path = folder.join(file);
        std::fs::write(&path, content).map_err(io("write", &path))?;
    }
    Ok(())
}

/// Starts a node. Its containerd comes up at once, its kubelet waits for [`Layout::api_ready`], and its device
/// plugin, which only a node with GPUs has, for a driver.
pub(crate) fn start(
    spec: &NodeSpec,
    index: usize,
    stand_ins: Option<&StandIns>,
    starter: Starter<'_>,
) -> Result<(), ClusterError> {
    let layout = starter.layout;
    let device_plugin = spec.gpus.as_ref().and(stand_ins).map(|stand_ins| stand_ins.device_plugin.as_path());
    let mut command = starter.supervisor.command(Network::Node(&spec.name), "unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-euc", SCRIPT, "node"]);
    command
        .arg(layout.node(&spec.name))
        .arg(run_folder(&spec.name))
        .arg(layout.log(&format!("containerd-{}", spec.name)))
        .arg(layout.api_ready());
    command
        .arg(DRIVER_ROOT)
        .arg(library_inside())
        .arg(device_plugin.unwrap_or(Path::new("")))
        .arg(layout.log(&format!("deviceplugin-{}", spec.name)));
    command.arg(&starter.tools.kube).args(kubelet_flags(spec, index, layout));
    starter.supervisor.components().start(layout, &format!("kubelet-{}", spec.name), command)
}

/// Arguments: the node's folder, its folder in /run, containerd's log, the file that says when to go on, where
/// the driver goes, its NVML, the device plugin or nothing, its log, and the kubelet's command line. A kubelet
/// that ends ends the script, unless [`RESTART`] said so.
const SCRIPT: &str = r#"
folder=$1 run=$2 log=$3 go=$4 driver=$5 nvml=$6 plugin=$7 plugin_log=$8; shift 8
mkdir -p "$run" "$driver"
mount --bind "$folder/kubelet" /var/lib/kubelet   # the path of the device plugin socket in it is a constant
mount --bind "$folder/cni-cache" /var/lib/cni
mount --bind "$folder/var-log" /var/log
mount --bind "$folder/driver" "$driver"
mount --make-shared "$driver"   # as systemd has it: pods may ask for mounts that are made there later
containerd --config "$folder/containerd.toml" > "$log" 2>&1 &
if [ -n "$plugin" ]; then
  (until [ -e "$nvml" ]; do sleep 0.2; done; exec "$plugin" --driver-root "$driver") > "$plugin_log" 2>&1 &
fi
until [ -S "$run/containerd.sock" ] && [ -e "$go" ]; do sleep 0.05; done
while :; do
  "$@" &
  echo $! > "$run/kubelet.pid"
  status=0; wait $! || status=$?
  [ -e "$run/kubelet.restart" ] || exit "$status"
  rm "$run/kubelet.restart"
done
"#;

/// Argument: the node's folder in /run.
const RESTART: &str = r#"
pid=$(cat "$1/kubelet.pid")
touch "$1/kubelet.restart"
kill -KILL "$pid"
until [ "$(cat "$1/kubelet.pid")" != "$pid" ]; do sleep 0.05; done
"#;

/// Kills a node's kubelet and waits until the next one has started.
pub(crate) async fn restart_kubelet(supervisor: &Supervisor, node: &str) -> Result<(), ClusterError> {
    let mut command = supervisor.command(Network::Hub, "sh");
    command.args(["-euc", RESTART, "restart"]).arg(run_folder(node));
    super::run(command, &format!("restart the kubelet of {node}")).await.map(drop)
}

fn kubelet_flags(spec: &NodeSpec, index: usize, layout: &Layout) -> Vec<String> {
    let mut flags = vec![
        "kubelet".to_owned(),
        format!("--config={}", layout.node(&spec.name).join("kubelet.json").display()),
        format!("--kubeconfig={}", layout.kubeconfig(&format!("kubelet-{}", spec.name)).display()),
        format!("--hostname-override={}", spec.name),
        format!("--node-ip={}", node_address(index)),
    ];
    if !spec.labels.is_empty() {
        let labels: Vec<_> = spec.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        flags.push(format!("--node-labels={}", labels.join(",")));
    }
    flags
}

fn containerd_config(name: &str, folder: &Path) -> String {
    let (folder, run, socket) = (folder.display(), run_folder(name), containerd_socket(name));
    let (run, socket, pause) = (run.display(), socket.display(), crate::image::PAUSE);
    // restrict_oom_score_adj: a container's machine often withholds CAP_SYS_RESOURCE, without which runc
    // can't protect the pause process from the memory killer.
    format!(
        r#"version = 2
root = "{folder}/containerd"
state = "{run}/containerd"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_FOLDER}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{run}/runc"
"#
    )
}

fn cni_config(index: usize, folder: &Path) -> Value {
    let ipam = json!({
        "type": "host-local",
        "ranges": [[{"subnet": pod_addresses(index)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": folder.join("ipam"),
    });
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]})
}

fn kubelet_config(spec: &NodeSpec, index: usize, cgroup: &str, layout: &Layout) -> Value {
    let pki = |file: String| layout.pki(&file);
    let taints: Vec<_> = spec
        .taints
        .iter()
        .map(|taint| json!({"key": taint.key, "value": taint.value, "effect": taint.effect}))
        .collect();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}/{}", spec.name),
        "address": node_address(index),
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": pki("ca.crt".to_owned())}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": pki(format!("kubelet-{}.crt", spec.name)),
        "tlsPrivateKeyFile": pki(format!("kubelet-{}.key", spec.name)),
        "containerRuntimeEndpoint": format!("unix://{}", containerd_socket(&spec.name).display()),
        "clusterDNS": [HUB],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "enforceNodeAllocatable": [],
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "nodeStatusUpdateFrequency": "2s",
        "registerWithTaints": taints,
        // The disk is the whole machine's: neither evict pods nor remove images that nothing could pull again
        // because others fill it.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
    })
}

/// Loads an image archive on a node, waiting for its containerd first.
pub(crate) async fn load_image(
    supervisor: &Supervisor,
    node: &str,
    archive: &Path,
) -> Result<(), ClusterError> {
    let mut command = supervisor.command(Network::Hub, "sh");
    command.args(["-euc", r#"until [ -S "$1" ]; do sleep 0.05; done; exec ctr --address "$1" --namespace k8s.io images import "$2""#, "load"]);
    command.arg(containerd_socket(node)).arg(archive);
    super::run(command, &format!("ctr images import {} on {node}", archive.display())).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_taints_as_kubectl_writes_them() {
        let taint = |key: &str, value: &str, effect: &str| {
            Some(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
        };
        let cases = [
            ("nvidia.com/gpu=present:NoSchedule", taint("nvidia.com/gpu", "present", "NoSchedule")),
            ("dedicated:NoExecute", taint("dedicated", "", "NoExecute")),
            ("a=b:Sometimes", None),
            ("a=b", None),
            ("=b:NoSchedule", None),
        ];
        for (text, expected) in cases {
            assert_eq!(Taint::parse(text), expected, "{text}");
        }
    }
}
