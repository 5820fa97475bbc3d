//! The fleet as people and programs are shown it.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use gqla_api::labels::NVIDIA_GPU;
use gqla_fleet::{FactSource, NodeHardware, describe};
use gqla_planner::Confidence;
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    jiff::Timestamp,
};
use serde::Serialize;

use super::{Sources, agents::agents};
use crate::table::{TableFormat, columns};

/// How to print nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Class, source, GPUs, ridge and health.
    Table,
    /// The same with product, PCI device, multiprocessors, memory and driver.
    Wide,
    /// One object with every fact, its source and its confidence.
    Json,
}

impl Output {
    pub(super) fn or_default(asked: Option<Self>) -> Self {
        asked.unwrap_or(if io::stdout().is_terminal() { Self::Table } else { Self::Json })
    }

    pub(super) fn print(self, view: &View) -> io::Result<()> {
        match self {
            Self::Table => write!(io::stdout(), "{}{}", table(view), problems(view)),
            Self::Wide => write!(io::stdout(), "{}{}", wide(view), problems(view)),
            Self::Json => TableFormat::Json.print(view, |_| String::new()),
        }
    }
}

/// Every node. Field names are an interface.
#[derive(Debug, Serialize)]
pub(super) struct View {
    nodes: Vec<Row>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(flatten)]
    hardware: NodeHardware,
    /// GPUs that unfinished pods hold; absent where pods are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated: Option<u64>,
    /// Usable GPUs that the kubelet may give to another pod now.
    #[serde(skip_serializing_if = "Option::is_none")]
    free: Option<u64>,
    /// FLOP per byte above which the GPU computes rather than waits for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    ridge: Option<f64>,
}

impl View {
    pub(super) fn of(sources: &Sources, now: Timestamp) -> Self {
        let held = sources.pods.as_deref().map(held);
        let row = |hardware: NodeHardware| {
            let allocated = held.as_ref().map(|held| held.get(&hardware.node).copied().unwrap_or(0));
            let given = hardware.gpus.usable.min(hardware.gpus.allocatable);
            let free = allocated.map(|held| u64::from(given).saturating_sub(held));
            let facts = &hardware.facts;
            let ridge = facts.flops_per_second.as_ref().zip(facts.bytes_per_second.as_ref());
            let ridge = ridge.map(|(flops, bytes)| (flops.value / bytes.value * 10.0).round() / 10.0);
            Row { hardware, allocated, free, ridge }
        };
        let agents = sources.pods.as_deref().map(|pods| agents(pods, now));
        let hardware = describe(&sources.nodes, &sources.classes, &sources.slices, agents.as_ref());
        let is_shown = |hardware: &NodeHardware| {
            sources.shown.as_ref().is_none_or(|shown| shown.contains(&hardware.node))
        };
        Self { nodes: hardware.into_iter().filter(is_shown).map(row).collect() }
    }
}

/// GPUs that pods hold, by node.
fn held(pods: &[Pod]) -> BTreeMap<String, u64> {
    let mut held = BTreeMap::new();
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let Some(spec) = pod.spec.as_ref().filter(|_| !matches!(phase, Some("Succeeded" | "Failed"))) else {
            continue;
        };
        let Some(node) = &spec.node_name else { continue };
        *held.entry(node.clone()).or_default() += asked(spec);
    }
    held
}

/// The scheduler's sum. Init containers run one after another and before the others; those that are always restarted go on
/// running beside all that come later.
fn asked(spec: &PodSpec) -> u64 {
    let (mut beside, mut most) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            beside += gpus(container);
            most = most.max(beside);
        } else {
            most = most.max(beside + gpus(container));
        }
    }
    most.max(beside + spec.containers.iter().map(gpus).sum::<u64>())
}

/// Extended resources are asked for as limits; requests equal them.
fn gpus(container: &Container) -> u64 {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    limits.and_then(|limits| limits.get(NVIDIA_GPU)?.0.parse().ok()).unwrap_or(0)
}

fn table(view: &View) -> String {
    let header = ["NODE", "CLASS", "SOURCE", "CONFIDENCE", "GPUS", "FREE", "RIDGE", "HEALTH"];
    columns(header, &view.nodes.iter().map(cells).collect::<Vec<_>>())
}

fn wide(view: &View) -> String {
    let header = [
        "NODE",
        "CLASS",
        "SOURCE",
        "CONFIDENCE",
        "GPUS",
        "FREE",
        "RIDGE",
        "HEALTH",
        "PRODUCT",
        "PCI",
        "SMS",
        "MEMORY",
        "DRIVER",
    ];
    let rows: Vec<[String; 13]> = view
        .nodes
        .iter()
        .map(|row| {
            let facts = &row.hardware.facts;
            let [a, b, c, d, e, f, g, h] = cells(row);
            let product = or_dash(facts.product.as_ref().map(|fact| fact.value.clone()));
            let pci = or_dash(facts.pci_device_id.as_ref().map(|fact| format!("{:04x}", fact.value)));
            let sms = or_dash(facts.multiprocessors.as_ref().map(|fact| fact.value.to_string()));
            let memory = or_dash(facts.memory_mib.as_ref().map(|fact| format!("{} MiB", fact.value)));
            let driver = or_dash(row.hardware.driver_version.clone());
            [a, b, c, d, e, f, g, h, product, pci, sms, memory, driver]
        })
        .collect();
    columns(header, &rows)
}

fn cells(row: &Row) -> [String; 8] {
    let hardware = &row.hardware;
    let class = hardware.class.as_ref();
    [
        hardware.node.clone(),
        or_dash(class.map(|class| class.value.clone())),
        or_dash(class.map(|class| source(class.source).to_owned())),
        or_dash(class.map(|class| confidence(class.confidence).to_owned())),
        format!("{}/{}", hardware.gpus.usable, installed(hardware)),
        or_dash(row.free.map(|free| free.to_string())),
        or_dash(row.ridge.map(|ridge| format!("{ridge:.1}"))),
        health(hardware),
    ]
}

/// GPUs that are there, whether they work or not.
fn installed(hardware: &NodeHardware) -> u32 {
    hardware.facts.gpus.as_ref().map_or(0, |fact| fact.value).max(hardware.gpus.allocatable)
}

fn source(source: FactSource) -> &'static str {
    source.as_str()
}

fn confidence(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::High => "high",
        Confidence::Low => "low",
    }
}

fn health(hardware: &NodeHardware) -> String {
    let mut kinds: Vec<&str> = hardware.problems.iter().map(|problem| problem.kind.as_str()).collect();
    kinds.dedup();
    if kinds.is_empty() { "ok".to_owned() } else { kinds.join(",") }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn problems(view: &View) -> String {
    let all = view.nodes.iter().flat_map(|row| &row.hardware.problems);
    gqla_fleet::grouped(all)
        .iter()
        .map(|group| format!("{}: {}\n", group.kind.as_str(), group.sentence))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use gqla_api::inventory::{DriverState, GpuFacts, GpuHealth, NodeInventory};
    use serde_json::{Value, from_value, json};

    use super::*;

    fn inventory(cards: &[(&str, u16, u32)]) -> NodeInventory {
        let gpu = |(index, (product, device, sms)): (usize, &(&str, u16, u32))| GpuFacts {
            index: index as u32,
            product: (*product).to_owned(),
            pci_device_id: *device,
            multiprocessors: Some(*sms),
            memory_mib: 97_871,
            ..GpuFacts::default()
        };
        let gpus = cards.iter().enumerate().map(gpu).collect();
        NodeInventory { driver: DriverState::Ready, gpus, ..NodeInventory::default() }
    }

    /// A node as an agent leaves it, with `label` by GPU feature discovery.
    fn node(name: &str, label: &str, inventory: &NodeInventory) -> Value {
        let mut labels =
            json!({"nvidia.com/gpu.product": label, "gqla.dev/gpu.device": inventory.device_label()});
        if let Some(product) = inventory.product_label() {
            labels["gqla.dev/gpu.product"] = product.into();
        }
        if let Some(count) = inventory.multiprocessors_label() {
            labels["gqla.dev/gpu.multiprocessors"] = count.into();
        }
        let annotation = inventory.render().unwrap();
        json!({
            "metadata": {"name": name, "labels": labels, "annotations": {"gqla.dev/gpu-inventory": annotation}},
            "status": {"allocatable": {"nvidia.com/gpu": inventory.gpus.len().to_string()}},
        })
    }

    fn sources() -> Sources {
        let h20 = ("NVIDIA H20", 0x2329, 78);
        let h100 = ("NVIDIA H100 80GB HBM3", 0x2330, 132);
        let mut pulled = inventory(&[h20, h20]);
        pulled.gpus[1].health = GpuHealth::Lost;
        let nodes = [
            node("honest", "NVIDIA-H100-80GB-HBM3", &inventory(&[h100, h100])),
            node("liar", "NVIDIA-H200", &inventory(&[h20])),
            node("mixed", "NVIDIA-H20", &inventory(&[h20, h100])),
            node("pulled", "NVIDIA-H20", &pulled),
            json!({"metadata": {"name": "plain", "labels": {}}}),
        ];
        let pod = |node: &str, gpus: u32, phase: &str| {
            json!({
                "metadata": {},
                "spec": {
                    "nodeName": node,
                    "initContainers": [{"name": "i", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
                    "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}}}],
                },
                "status": {"phase": phase},
            })
        };
        let agent = |node: &str| {
            json!({
                "metadata": {"labels": {"gqla.dev/component": "agent"}},
                "spec": {"nodeName": node, "containers": []},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            })
        };
        let holding = [pod("honest", 1, "Running"), pod("honest", 2, "Succeeded"), pod("liar", 0, "Pending")];
        let pods = holding.into_iter().chain(["honest", "liar", "mixed", "pulled"].map(agent));
        Sources {
            nodes: nodes.into_iter().map(|node| from_value(node).unwrap()).collect(),
            pods: Some(pods.map(|pod| from_value(pod).unwrap()).collect()),
            ..Sources::default()
        }
    }

    fn view() -> View {
        shown(&sources())
    }

    fn shown(sources: &Sources) -> View {
        View::of(sources, Timestamp::from_second(3600).unwrap())
    }

    #[test]
    fn nothing_is_free_while_nothing_is_allocatable() {
        let mut sources = sources();
        let status = sources.nodes[0].status.as_mut().unwrap();
        status.capacity = status.allocatable.take();
        let row = &shown(&sources).nodes[0];
        assert_eq!((row.hardware.gpus.usable, row.allocated, row.free), (2, Some(1), Some(0)));
    }

    #[test]
    fn facts_without_a_ready_agent_are_never_shown_as_well() {
        let mut sources = sources();
        sources.pods.as_mut().unwrap().retain(|pod| pod.metadata.labels.is_none());
        let view = shown(&sources);
        assert_eq!(health(&view.nodes[0].hardware), "StaleFacts");
        assert!(problems(&view).contains("the last known, of unknown age"), "{}", problems(&view));
        sources.pods = None;
        assert_eq!(health(&shown(&sources).nodes[0].hardware), "ok", "nobody knows of agents");
    }

    /// What one node counts as can depend on the others.
    #[test]
    fn a_selection_shows_less_and_changes_nothing() {
        let mut sources = sources();
        let same = |view: &View| serde_json::to_value(view).unwrap()["nodes"][0].clone();
        let odd = inventory(&[("NVIDIA H20", 0x2329, 60)]);
        sources.nodes.insert(0, from_value(node("odd", "NVIDIA-H20", &odd)).unwrap());
        let whole = same(&shown(&sources));
        sources.shown = Some(BTreeSet::from(["odd".to_owned()]));
        let selected = shown(&sources);
        assert_eq!((selected.nodes.len(), same(&selected)), (1, whole));
    }

    #[test]
    fn gpus_are_held_as_the_scheduler_counts_them() {
        let cases = [
            (json!([]), 2),
            (json!([(1, false), (3, false)]), 3),
            (json!([(1, true), (1, true)]), 4),
            (json!([(1, true), (3, false)]), 4),
            (json!([(3, false), (1, true)]), 3),
        ];
        for (init, expected) in cases {
            let container = |gpus: u64, always: bool| {
                json!({"name": "c", "restartPolicy": always.then_some("Always"),
                       "resources": {"limits": {"nvidia.com/gpu": gpus.to_string()}}})
            };
            let pairs: Vec<(u64, bool)> = from_value(init.clone()).unwrap();
            let init_containers: Vec<_> =
                pairs.into_iter().map(|(gpus, always)| container(gpus, always)).collect();
            let spec = json!({"initContainers": init_containers, "containers": [container(2, false)]});
            assert_eq!(asked(&from_value(spec).unwrap()), expected, "{init}");
        }
    }

    #[test]
    fn every_node_is_told_as_what_it_is() {
        let view = view();
        let told: Vec<_> = view.nodes.iter().map(cells).collect();
        let told: Vec<Vec<&str>> = told.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
        assert_eq!(told[0], ["honest", "H100", "NVML", "high", "2/2", "1", "295.2", "ok"]);
        assert_eq!(told[1], ["liar", "H20", "NVML", "high", "1/1", "0", "37.0", "LyingLabel"]);
        assert_eq!(told[2], ["mixed", "-", "-", "-", "2/2", "2", "-", "MixedModels"]);
        assert_eq!(told[3], ["pulled", "H20", "NVML", "high", "1/2", "1", "37.0", "GpuLost"]);
        assert_eq!(told[4][..2], ["plain", "CPU"]);
        let text = problems(&view);
        assert!(
            text.contains("LyingLabel: node liar") && text.contains("GpuLost: node pulled (GPU 1)"),
            "{text}"
        );
    }

    #[test]
    fn programs_are_told_who_says_what() {
        let json = serde_json::to_value(view()).unwrap();
        let liar = &json["nodes"][1];
        assert_eq!(liar["class"], json!({"value": "H20", "source": "Nvml", "confidence": "High"}));
        assert_eq!(liar["facts"]["product"]["source"], "Nvml");
        assert_eq!((&liar["allocated"], &liar["free"]), (&json!(1), &json!(0)));
        assert_eq!(liar["problems"][0]["kind"], "LyingLabel");
    }
}
