//! What a cluster should be, and how it comes up: everything that does not wait for something else starts at
//! once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::{Api, Client};

use super::control_plane::{self, API_PORT, DNS_READY_PORT, Starter};
use super::error::{ClusterError, api, io};
use super::forward::Forwarder;
use super::gpus::StandIns;
use super::kwok::KwokNode;
use super::layout::{HUB, Layout, MAX_NODES, node_address};
use super::node::{self, NodeSpec, Taint};
use super::ready::{Waiter, any_loopback_port};
use super::supervisor::{Network, Supervisor};
use super::{Cluster, cgroup, network, state};
use crate::image::Image;
use crate::progress::Progress;
use crate::tools::{Tools, find_program};

mod gpus;

/// Describes a cluster; see [`Cluster::builder`].
#[derive(Debug, Clone)]
#[must_use = "nothing is started before `start`"]
pub struct Builder {
    nodes: Vec<NodeSpec>,
    kwok: Vec<(usize, KwokNode)>,
    images: Vec<PathBuf>,
    state: Option<PathBuf>,
    stand_ins: Option<StandIns>,
    progress: Progress,
    invalid: Option<(&'static str, String, &'static str)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: vec![],
            kwok: vec![],
            images: vec![],
            state: None,
            stand_ins: None,
            progress: Progress::silent(),
            invalid: None,
        }
    }
}

impl Builder {
    /// Adds a real node with its own kubelet, containerd and network. Without any there is a control plane
    /// only, which is all that tests of the API server need.
    pub fn node(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        if !is_dns_label(&name) {
            self.refuse(
                "node name",
                &name,
                "is not lower-case letters, digits and dashes, at most 63 of them",
            );
        } else if self.nodes.iter().any(|node| node.name == name) {
            self.refuse("node name", &name, "is given twice: every node needs its own");
        } else if self.nodes.len() == MAX_NODES {
            self.refuse("node name", &name, "is one too many: 200 real nodes are the limit, use kwok nodes");
        }
        self.nodes.push(NodeSpec { name, labels: BTreeMap::new(), taints: vec![], gpus: None });
        self
    }

    /// Gives the node added last a label, which its kubelet registers it with. The API server refuses labels
    /// of `kubernetes.io` that a kubelet may not set.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        match self.nodes.last_mut() {
            Some(node) if !key.is_empty() && !key.contains([',', '=']) && !value.contains([',', '=']) => {
                node.labels.insert(key, value);
            }
            Some(_) => self.refuse(
                "label",
                &format!("{key}={value}"),
                "is not a key and a value without commas and equals signs",
            ),
            None => self.refuse("label", &key, "has no node: call `node` before `label`"),
        }
        self
    }

    /// Gives the node added last a taint, as kubectl writes it: `nvidia.com/gpu=present:NoSchedule`.
    pub fn taint(mut self, taint: &str) -> Self {
        match (self.nodes.last_mut(), Taint::parse(taint)) {
            (Some(node), Some(taint)) => node.taints.push(taint),
            (Some(_), None) => self.refuse(
                "taint",
                taint,
                "is not KEY=VALUE:EFFECT with NoSchedule, PreferNoSchedule or NoExecute",
            ),
            (None, _) => self.refuse("taint", taint, "has no node: call `node` before `taint`"),
        }
        self
    }

    /// Adds `count` nodes that only kwok plays.
    pub fn kwok_nodes(mut self, count: usize, template: KwokNode) -> Self {
        self.kwok.push((count, template));
        self
    }

    /// Loads an OCI image archive (see [`Image`]) on every real node.
    pub fn image(mut self, archive: impl Into<PathBuf>) -> Self {
        self.images.push(archive.into());
        self
    }

    /// Keeps the cluster's files, logs among them, in `folder`, which must not exist or be empty, and leaves
    /// them there at the end. Unless called, they are in the cache folder and removed at the end.
    pub fn state_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.state = Some(folder.into());
        self
    }

    /// Tells `progress` what is being done.
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Obtains the programs when they are missing, starts the cluster and waits until its nodes are Ready,
    /// pods can be created and DNS answers. Needs root.
    ///
    /// # Errors
    /// One sentence when this machine can't hold a cluster, else what failed with the end of its log. Nothing
    /// is left running.
    pub async fn start(mut self) -> Result<Cluster, ClusterError> {
        self.refuse_gpus_without_stand_ins();
        if let Some((what, value, problem)) = self.invalid {
            return Err(ClusterError::Invalid { what, value, problem });
        }
        let progress = self.progress.clone();
        let tools = blocking(move || Tools::obtain(&progress).map_err(ClusterError::from)).await?;
        let progress = self.progress.clone();
        let started = progress.start("starting the cluster");
        let builder = Arc::new(self);
        let raising = builder.clone();
        let cluster = blocking(move || raising.raise(tools)).await?;
        builder.make_ready(&cluster).await.inspect_err(|_| cluster.keep_files())?;
        progress.finish("starting the cluster", started);
        Ok(cluster)
    }

    /// Makes namespaces, files and links, and starts what needs no API server.
    fn raise(&self, tools: Tools) -> Result<Cluster, ClusterError> {
        let hierarchy = cgroup::Hierarchy::detect(Path::new(cgroup::MOUNT));
        state::sweep();
        let layout = state::create(self.state.as_deref())?;
        let supervisor = Supervisor::start(layout.state())?;
        let authority = super::pki::Authority::create(&layout.pki(""))?;
        control_plane::issue(&authority, &layout)?;
        supervisor.run_script(Network::Hub, &network::script(self.names()))?;
        let forwarder = Forwarder::start(&supervisor.network(Network::Hub))?;
        let api_address = forwarder.forward(any_loopback_port(), SocketAddr::from((HUB, API_PORT)))?;
        authority.write_kubeconfig(
            &layout.caller_kubeconfig(),
            "admin",
            &format!("https://{api_address}"),
        )?;

        let starter = Starter { tools: &tools, layout: &layout, supervisor: &supervisor };
        control_plane::start_api(starter)?;
        if let (Some(hierarchy), false) = (hierarchy, self.nodes.is_empty()) {
            hierarchy.create(&supervisor.cgroup(), self.names())?;
            write_pause_image(&layout)?;
        }
        let stand_ins = self.stand_ins.as_ref().map(StandIns::find).transpose()?;
        let gpus = self.write_gpus(&layout, stand_ins.as_ref())?;
        for (index, spec) in self.nodes.iter().enumerate() {
            node::write(spec, index, &supervisor.cgroup(), &layout, &authority)?;
            node::start(spec, index, stand_ins.as_ref(), starter)?;
        }
        let nodes = self.nodes.iter().map(|node| node.name.clone()).collect();
        Ok(Cluster { tools, layout, nodes, gpus, forwarder, supervisor })
    }

    /// Loads the images while the API server comes up, and then everything that needs it.
    async fn make_ready(&self, cluster: &Cluster) -> Result<(), ClusterError> {
        let images = async {
            if !self.nodes.is_empty() {
                cluster.load_image(&cluster.layout.pause_image()).await?;
            }
            try_join_all(self.images.iter().map(|image| cluster.load_image(image))).await
        };
        tokio::try_join!(images, self.bring_up(cluster)).map(drop)
    }

    /// Starts what needs the API server and waits for all of it.
    async fn bring_up(&self, cluster: &Cluster) -> Result<(), ClusterError> {
        let (layout, supervisor, client) = (&cluster.layout, &cluster.supervisor, cluster.client().await?);
        let waiter = Waiter { layout, supervisor, client: client.clone() };
        waiter.api().await?;
        let go = layout.api_ready();
        std::fs::write(&go, "").map_err(io("write", &go))?;
        self.start_rest(cluster.starter())?;
        let mut names: BTreeSet<_> = self.names().map(str::to_owned).collect();
        names.extend(self.create_kwok_nodes(client).await?);
        let dns = async {
            if self.nodes.is_empty() {
                return Ok(());
            }
            let page = SocketAddr::from((HUB, DNS_READY_PORT));
            waiter.dns(cluster.forwarder.forward(any_loopback_port(), page)?).await
        };
        tokio::try_join!(waiter.service_account(), waiter.nodes(&names), dns).map(drop)
    }

    /// Starts the components that would only fail before the API server is ready. Most try again; the controllers end
    /// after ten seconds, which it may take on a machine that is busy with other things.
    fn start_rest(&self, starter: Starter<'_>) -> Result<(), ClusterError> {
        control_plane::start_controllers(starter)?;
        if !self.kwok.is_empty() {
            control_plane::start_kwok(starter)?;
        }
        if let Some(first) = self.nodes.first() {
            control_plane::start_dns(starter)?;
            // A proxy waits until the node it is named after exists, and the hub is no node.
            control_plane::start_proxy(starter, Network::Hub, &first.name, HUB)?;
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let address = node_address(index);
            control_plane::start_proxy(starter, Network::Node(&node.name), &node.name, address)?;
        }
        Ok(())
    }

    async fn create_kwok_nodes(&self, client: Client) -> Result<Vec<String>, ClusterError> {
        let nodes: Api<Node> = Api::all(client);
        let mut names = vec![];
        for (template, index) in
            self.kwok.iter().flat_map(|(count, template)| (0..*count).map(move |index| (template, index)))
        {
            let name = template.name(index);
            let action = || format!("create the kwok node {name}");
            let object =
                template.object(index).map_err(|source| api(action())(kube::Error::SerdeError(source)))?;
            nodes.create(&PostParams::default(), &object).await.map_err(api(action()))?;
            names.push(name);
        }
        Ok(names)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }

    /// Remembers the first thing that is wrong, for [`Builder::start`] to say.
    fn refuse(&mut self, what: &'static str, value: &str, problem: &'static str) {
        self.invalid.get_or_insert_with(|| (what, value.to_owned(), problem));
    }
}

fn write_pause_image(layout: &Layout) -> Result<(), ClusterError> {
    let busybox = find_program("busybox").unwrap_or_else(|| "/bin/busybox".into());
    Ok(Image::pause(&busybox)?.write(&layout.pause_image())?)
}

fn is_dns_label(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Runs `work` where blocking harms nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClusterError> + Send + 'static,
) -> Result<T, ClusterError> {
    let stopped = |error| io("run", Path::new("the cluster's start"))(std::io::Error::other(error));
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_can_not_be_is_refused_before_anything_starts() {
        let cases = [
            (Builder::default().node("Node A"), "Node A"),
            (Builder::default().node("a").node("a"), "twice"),
            (Builder::default().label("k", "v"), "call `node` before `label`"),
            (Builder::default().taint("k=v:NoSchedule"), "call `node` before `taint`"),
            (Builder::default().node("a").taint("k=v"), "KEY=VALUE:EFFECT"),
            (Builder::default().node("a").label("k", "v,w=x"), "without commas"),
            (Builder::default().gpus("H20", 1), "call `node` before `gpus`"),
            (Builder::default().node("a").gpus("H21", 1), "GPU profile \"H21\" is none"),
            (Builder::default().node("a").gpus("H20", 1), "call `gpu_stand_ins`"),
            (Builder::default().node("a").without_driver(), "call `gpus` before `without_driver`"),
        ];
        for (builder, words) in cases {
            let refusal = builder.start().await.expect_err(words).to_string();
            assert!(refusal.contains(words), "{refusal:?} does not say {words:?}");
        }
    }
}
