//! Everything known of every node's GPUs, and what each node counts as.

use std::collections::BTreeMap;

use gqla_api::{
    GPUClass,
    inventory::{DriverState, GpuHealth, NodeInventory},
};
use gqla_planner::{CPU_CLASS, Catalogue, Confidence, GpuClass, Part};
use k8s_openapi::api::{
    core::v1::{Node, NodeSelectorTerm},
    resource::v1::ResourceSlice,
};
use serde::Serialize;

use crate::{
    affinity,
    agents::Agents,
    classes::{classes, is_declared},
    facts::{Fact, FactSource, HardwareFacts},
    inspect::{Case, contradicting_slices, problems},
    kinds::{Kinds, Verdict},
    node::FleetNode,
    problem::Problem,
    route::{By, Unplanned},
    slices::{NodeSlice, SliceFacts, slice_facts},
    words::{Agent, Words},
};

/// What a node counts as when pods are planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Recognition {
    /// A class of the catalogue.
    Class {
        /// Its name.
        name: String,
        /// By what it was recognised.
        by: By,
    },
    /// Nothing speaks of a GPU.
    Cpu,
    /// No class has this GPU.
    Unknown {
        /// The class derived from what NVML tells, where that is enough. It is planned with, and not trusted.
        class: Option<String>,
    },
    /// GPUs of several kinds.
    Mixed,
    /// MIG slices that no class claims.
    MigSlice,
    /// GPUs that pods share.
    Shared,
    /// A GPU is there, and nothing says which.
    Unlabelled,
    /// An administrator's label names no class.
    UnknownClass,
    /// Labels or facts contradict each other and none of them knows better.
    Disputed,
}

impl Recognition {
    /// The class to plan for.
    pub fn class(&self) -> Option<&str> {
        match self {
            Self::Class { name, .. } => Some(name),
            Self::Cpu => Some(CPU_CLASS),
            Self::Unknown { class } => class.as_deref(),
            _ => None,
        }
    }

    fn of(verdict: &Verdict, kinds: &Kinds, catalogue: &Catalogue) -> Self {
        match verdict {
            Ok((_, By::NoGpu)) => Self::Cpu,
            Ok((name, _))
                if catalogue.get(name).is_none() && kinds.classes().any(|class| class.name() == name) =>
            {
                Self::Unknown { class: Some(name.clone()) }
            }
            Ok((name, by)) => Self::Class { name: name.clone(), by: *by },
            Err(Unplanned::Mixed) => Self::Mixed,
            Err(Unplanned::Part(Part::Shared)) => Self::Shared,
            Err(Unplanned::Part(Part::MigSlice | Part::MigInvalid)) => Self::MigSlice,
            Err(Unplanned::UnknownDevice(_) | Unplanned::UnknownProduct(_)) => Self::Unknown { class: None },
            Err(Unplanned::Unlabelled) => Self::Unlabelled,
            Err(Unplanned::Ambiguous) => Self::Disputed,
            Err(Unplanned::UnknownStatement(_) | Unplanned::Misspelt { .. }) => Self::UnknownClass,
        }
    }
}

/// GPUs of a node. How many of them pods hold is not known here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GpuCounts {
    /// Those that pods may be given, by the kubelet: allocatable `nvidia.com/gpu`.
    pub allocatable: u32,
    /// Those that work, by NVML; absent without an agent's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<u32>,
    /// Those that can be planned with: allocatable and healthy. While nothing is allocatable, those that the device plugin
    /// told before, and while the driver does not answer, those that were healthy before: a restart of kubelet, plugin or
    /// driver must not move replicas. None while the driver is too old to run pods at all.
    pub usable: u32,
}

/// What one node really has.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeHardware {
    /// Name of the node.
    pub node: String,
    /// Its GPUs by number.
    pub gpus: GpuCounts,
    /// Its GPUs by kind.
    pub facts: HardwareFacts,
    /// The class it counts as, and who said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<Fact<String>>,
    /// What it counts as.
    pub recognition: Recognition,
    /// Whether NVML answers there; absent without an agent's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverState>,
    /// Version of the driver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// GPUs that do not work, by index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unhealthy: Vec<(u32, GpuHealth)>,
    /// How long ago the agent was last seen, when it is gone; `unknown` where nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<&'static str>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// The whole fleet's hardware at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hardware {
    /// Every node, in the order they were given.
    pub nodes: Vec<NodeHardware>,
    catalogue: Catalogue,
    kinds: Kinds,
    derived: Vec<GpuClass>,
    /// By node, the class that its labels name and that its ResourceSlices contradict.
    refuted: BTreeMap<String, String>,
}

impl Hardware {
    /// Judges `nodes` together.
    pub fn new<'n, N>(
        catalogue: Catalogue,
        nodes: N,
        slices: &BTreeMap<String, SliceFacts>,
        agents: Option<&Agents>,
    ) -> Self
    where
        N: Iterator<Item = &'n FleetNode> + Clone,
    {
        let kinds = Kinds::of(&catalogue, nodes.clone());
        let derived =
            kinds.classes().filter(|class| catalogue.get(class.name()).is_none()).cloned().collect();
        let mut hardware = Self { nodes: Vec::new(), catalogue, kinds, derived, refuted: BTreeMap::new() };
        hardware.refuted = nodes.clone().filter_map(|node| hardware.refuted(node, slices)).collect();
        hardware.nodes = nodes.map(|node| hardware.node(node, slices.get(&node.name), agents)).collect();
        hardware
    }

    /// A class of the catalogue or one that was derived for this fleet, ignoring case.
    pub fn class(&self, name: &str) -> Option<&GpuClass> {
        let derived = || self.derived.iter().find(|class| class.name().eq_ignore_ascii_case(name));
        self.catalogue.get(name).or_else(derived)
    }

    /// Whether `name` was derived for this fleet: its figures are not to be trusted.
    pub fn is_derived(&self, name: &str) -> bool {
        self.derived.iter().any(|class| class.name() == name)
    }

    /// Node selector terms, alternatives of each other, that match exactly the nodes which count as class `name` and carry
    /// the labels of `selector`. Empty when there is no such class, or when more than [`MAX_REFUTED`](crate::MAX_REFUTED)
    /// nodes would have to be excluded by name. An empty list must not become a pod's affinity.
    pub fn terms(&self, name: &str, selector: &BTreeMap<String, String>) -> Vec<NodeSelectorTerm> {
        let name = self.class(name).map_or(name, GpuClass::name);
        affinity::terms(&self.catalogue, &self.kinds, name, selector, self.refuted_nodes(name))
    }

    /// Nodes whose labels say class `name` and which do not count as it, because their ResourceSlices contradict. Pods keep
    /// off them by their names.
    pub fn refuted_nodes(&self, name: &str) -> impl Iterator<Item = &str> {
        self.refuted.iter().filter(move |(_, class)| *class == name).map(|(node, _)| node.as_str())
    }

    fn refuted(&self, node: &FleetNode, slices: &BTreeMap<String, SliceFacts>) -> Option<(String, String)> {
        let words = Words::of(&node.labels);
        contradicting_slices(&words, slices.get(&node.name))?;
        let (class, _) = self.kinds.verdict(&self.catalogue, &words).ok()?;
        Some((node.name.clone(), class))
    }

    fn node(&self, node: &FleetNode, slices: Option<&SliceFacts>, agents: Option<&Agents>) -> NodeHardware {
        let words = Words::of(&node.labels);
        let inventory = node.believed_inventory();
        let verdict = self.kinds.verdict(&self.catalogue, &words);
        let recognition = if contradicting_slices(&words, slices).is_some() {
            Recognition::Disputed
        } else {
            Recognition::of(&verdict, &self.kinds, &self.catalogue)
        };
        let class = recognition.class().and_then(|name| self.class(name));
        let stale = match (words.agent, agents) {
            (Agent::Silent, _) | (_, None) => None,
            (_, Some(agents)) => agents.stale(&node.name),
        };
        let mut hardware = NodeHardware {
            node: node.name.clone(),
            gpus: counts(node, inventory),
            facts: facts(&words, inventory, slices, class),
            class: class.map(|class| self.told_class(class, &verdict)),
            recognition,
            driver: inventory.map(|inventory| inventory.driver),
            driver_version: inventory.and_then(|inventory| inventory.driver_version.clone()),
            unhealthy: inventory.into_iter().flat_map(unhealthy).collect(),
            stale,
            problems: Vec::new(),
        };
        let case =
            Case { catalogue: &self.catalogue, kinds: &self.kinds, node, words, slices, verdict: &verdict };
        hardware.problems = problems(&case, &hardware);
        hardware
    }

    fn told_class(&self, class: &GpuClass, verdict: &Verdict) -> Fact<String> {
        let by = verdict.as_ref().map_or(By::NoGpu, |(_, by)| *by);
        let (source, confidence) = match by {
            By::Device | By::Multiprocessors | By::ProductName if self.is_derived(class.name()) => {
                (FactSource::Nvml, Confidence::Low)
            }
            By::Device | By::Multiprocessors | By::ProductName => (FactSource::Nvml, Confidence::High),
            By::Statement => (FactSource::AdministratorLabel, Confidence::High),
            By::ProductLabel => (FactSource::GfdLabel, Confidence::High),
            By::Announcement => (FactSource::ProviderLabel, Confidence::Low),
            By::NoGpu => (FactSource::GfdLabel, Confidence::Low),
        };
        Fact { value: class.name().to_owned(), source, confidence }
    }
}

fn unhealthy(inventory: &NodeInventory) -> impl Iterator<Item = (u32, GpuHealth)> {
    inventory.gpus.iter().filter(|gpu| !gpu.health.is_healthy()).map(|gpu| (gpu.index, gpu.health))
}

fn counts(node: &FleetNode, inventory: Option<&NodeInventory>) -> GpuCounts {
    let allocatable = node.gpus;
    let lasting = if allocatable == 0 { node.advertised } else { allocatable };
    let too_old = inventory.is_some_and(|inventory| inventory.driver == DriverState::TooOld);
    let Some(inventory) = inventory.filter(|inventory| !inventory.gpus.is_empty()) else {
        return GpuCounts { allocatable, healthy: None, usable: if too_old { 0 } else { lasting } };
    };
    let healthy = inventory.gpus.iter().filter(|gpu| gpu.health.is_healthy()).count();
    let healthy = u32::try_from(healthy).unwrap_or(u32::MAX);
    let usable = match inventory.driver {
        DriverState::Ready => lasting.min(healthy),
        DriverState::TooOld => 0,
        _ => healthy,
    };
    GpuCounts { allocatable, healthy: Some(healthy), usable }
}

fn facts(
    words: &Words<'_>,
    inventory: Option<&NodeInventory>,
    slices: Option<&SliceFacts>,
    class: Option<&GpuClass>,
) -> HardwareFacts {
    let told = [
        inventory.filter(|inventory| !inventory.gpus.is_empty()).map(HardwareFacts::of_inventory),
        slices.map(HardwareFacts::of_slices),
        Some(of_labels(words)),
        class.map(of_class),
    ];
    told.into_iter().flatten().fold(HardwareFacts::default(), HardwareFacts::merge)
}

/// What GPU feature discovery tells.
fn of_labels(words: &Words<'_>) -> HardwareFacts {
    let number = |label: &str| words.all.get(label).and_then(|text| text.parse::<u64>().ok());
    HardwareFacts {
        product: words.discovered.map(|product| Fact::told(product.to_owned(), FactSource::GfdLabel)),
        gpus: number("nvidia.com/gpu.count")
            .and_then(|count| u32::try_from(count).ok())
            .map(|count| Fact::told(count, FactSource::GfdLabel)),
        memory_mib: number("nvidia.com/gpu.memory").map(|mib| Fact::told(mib, FactSource::GfdLabel)),
        ..HardwareFacts::default()
    }
}

/// What follows from the class.
fn of_class(class: &GpuClass) -> HardwareFacts {
    let source = if is_declared(class) { FactSource::GpuClass } else { FactSource::Catalogue };
    let confidence = class.confidence;
    HardwareFacts {
        multiprocessors: class.multiprocessors.map(|value| Fact { value, source, confidence }),
        memory_mib: Some(Fact { value: class.spec.memory_bytes >> 20, source, confidence }),
        bytes_per_second: Some(Fact { value: class.spec.bytes_per_second, source, confidence }),
        flops_per_second: Some(Fact { value: class.spec.flops_per_second, source, confidence }),
        ..HardwareFacts::default()
    }
}

/// What every node really has, by whatever is known of it. `agents` is `None` where agents are not watched.
pub fn describe(
    nodes: &[Node],
    declared: &[GPUClass],
    slices: &[ResourceSlice],
    agents: Option<&Agents>,
) -> Vec<NodeHardware> {
    let nodes: Vec<_> = nodes.iter().cloned().map(FleetNode::new).collect();
    let slices: Vec<_> = slices.iter().filter_map(NodeSlice::of).collect();
    let slices = slice_facts(slices.iter());
    Hardware::new(classes(declared).catalogue, nodes.iter(), &slices, agents).nodes
}
