//! From nodes to GPU classes, pure.

use std::{borrow::Cow, collections::BTreeMap};

use gqla_api::{GPUClass, GPUClassSpec};
use gqla_planner::{Catalogue, Confidence, GpuClass, GpuSpec, Identification, spellings};

use super::FleetNode;

/// Nodes of one class that pods may use.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassNodes {
    /// The class.
    pub class: GpuClass,
    /// Allocatable GPUs of each node, one entry per node.
    pub gpus_per_node: Vec<u32>,
}

impl ClassNodes {
    /// Most GPUs one node has.
    pub fn most_gpus(&self) -> u32 {
        self.gpus_per_node.iter().copied().max().unwrap_or(0)
    }

    /// Replicas of `degree` GPUs that fit the nodes when they are otherwise empty.
    pub fn capacity(&self, degree: u32) -> u32 {
        self.gpus_per_node.iter().map(|gpus| gpus / degree.max(1)).sum()
    }
}

/// What nodes turned out to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// Recognised classes by name, each with at least one node.
    pub classes: BTreeMap<String, ClassNodes>,
    /// One sentence per kind of node that cannot be planned for, with the number of nodes.
    pub unrecognised: BTreeMap<String, usize>,
}

/// Groups `nodes` by class.
pub fn survey<'a>(catalogue: &Catalogue, nodes: impl IntoIterator<Item = &'a FleetNode>) -> Survey {
    let mut survey = Survey::default();
    for node in nodes {
        match class_of(catalogue, node) {
            Ok(class) => survey
                .classes
                .entry(class.name().to_owned())
                .or_insert_with(|| ClassNodes { class: class.clone(), gpus_per_node: Vec::new() })
                .gpus_per_node
                .push(node.gpus),
            Err(sentence) => *survey.unrecognised.entry(sentence).or_default() += 1,
        }
    }
    survey
}

fn class_of<'a>(catalogue: &'a Catalogue, node: &FleetNode) -> Result<&'a GpuClass, String> {
    if let Some(name) = node.stated_class() {
        return stated(catalogue, name);
    }
    match catalogue.identify(&node.labels) {
        Identification::Recognised { class, .. } | Identification::Cpu { class } => Ok(class),
        Identification::Unrecognised { product } => Err(format!(
            "GPU product {product} is not in the catalogue; create a GPUClass whose productLabels contain it"
        )),
        Identification::Refused { product, reason } => Err(format!("GPU product {product}: {reason}")),
        Identification::Unlabelled => {
            Err("a GPU is present, but the node has no label nvidia.com/gpu.product yet".to_owned())
        }
    }
}

/// Only spellings that pods can require of a node count: another would be planned for and never scheduled on.
fn stated<'a>(catalogue: &'a Catalogue, name: &str) -> Result<&'a GpuClass, String> {
    match catalogue.get(name) {
        Some(class) if spellings(class.name()).contains(name) => Ok(class),
        Some(class) => Err(format!("label gqla.dev/gpu-class={name} must be spelled {}", class.name())),
        None => Err(format!(
            "label gqla.dev/gpu-class={name} names no class of the catalogue; create a GPUClass {name}"
        )),
    }
}

/// The built-in catalogue extended and overridden by GPUClasses, with the cost of each class, and a sentence for
/// each GPUClass that cannot be used.
pub fn catalogue<'a>(
    classes: impl IntoIterator<Item = &'a GPUClass>,
) -> (Catalogue, BTreeMap<String, f64>, Vec<String>) {
    let (mut catalogue, mut costs, mut refused) = (Catalogue::builtin(), BTreeMap::new(), Vec::new());
    for class in classes {
        let name = class.metadata.name.clone().unwrap_or_default();
        match merged(catalogue.get(&name), &name, &class.spec) {
            Ok(entry) => {
                if let Some(cost) = class.spec.cost_per_gpu_hour.filter(|cost| *cost > 0.0) {
                    costs.insert(entry.name().to_owned(), cost);
                }
                catalogue = catalogue.with(entry);
            }
            Err(sentence) => refused.push(sentence),
        }
    }
    (catalogue, costs, refused)
}

/// Kubernetes object names are lower case, so `h20` overrides `H20` and keeps its spelling.
fn merged(known: Option<&GpuClass>, name: &str, spec: &GPUClassSpec) -> Result<GpuClass, String> {
    let missing = |field: &str| {
        format!("GPUClass {name}: {field} is required, the catalogue has no class of that name")
    };
    let number = |own: Option<f64>, scale: f64, known: Option<f64>, field: &str| {
        own.map(|value| value * scale).or(known).ok_or_else(|| missing(field))
    };
    let base = known.map(|class| &class.spec);
    let memory = number(
        spec.memory_gib,
        f64::from(1_u32 << 30),
        base.map(|base| base.memory_bytes as f64),
        "memoryGiB",
    )?;
    let labels = spec.product_labels.iter().map(|label| Cow::Owned(label.clone()));
    let known_labels = known.into_iter().flat_map(|class| class.product_labels.iter().cloned());
    let entry = GpuSpec {
        name: base.map_or_else(|| Cow::Owned(name.to_owned()), |base| base.name.clone()),
        flops_per_second: number(
            spec.bf16_tflops,
            1e12,
            base.map(|base| base.flops_per_second),
            "bf16TFLOPS",
        )?,
        bytes_per_second: number(
            spec.memory_bandwidth_gbps,
            1e9,
            base.map(|base| base.bytes_per_second),
            "memoryBandwidthGBps",
        )?,
        memory_bytes: memory as u64,
    };
    entry.validate().map_err(|error| format!("GPUClass {name}: {error}"))?;
    Ok(GpuClass {
        spec: entry,
        multiprocessors: known.and_then(|class| class.multiprocessors),
        pci_device_ids: known.map_or(Cow::Borrowed(&[]), |class| class.pci_device_ids.clone()),
        product_labels: Cow::Owned(labels.chain(known_labels).collect()),
        source: Cow::Owned(format!("GPUClass {name}")),
        confidence: known.map_or(Confidence::High, |class| class.confidence),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn node(labels: serde_json::Value, gpus: u32) -> FleetNode {
        FleetNode {
            name: "n".to_owned(),
            labels: from_value(labels).unwrap(),
            taints: Vec::new(),
            schedulable: true,
            gpus,
        }
    }

    #[test]
    fn nodes_are_grouped_by_exact_product() {
        let nodes = [
            node(json!({ "nvidia.com/gpu.product": "NVIDIA-H20" }), 8),
            node(json!({ "nvidia.com/gpu.product": "NVIDIA-H200" }), 4),
            node(json!({ "nvidia.com/gpu.product": "NVIDIA-H200" }), 8),
            node(json!({ "kubernetes.io/arch": "amd64" }), 0),
            node(json!({ "nvidia.com/gpu.product": "NVIDIA-X9" }), 8),
            node(json!({ "gqla.dev/gpu-class": "L40S", "nvidia.com/gpu.product": "NVIDIA-X9" }), 1),
        ];
        let survey = survey(&Catalogue::builtin(), &nodes);
        let names: Vec<_> = survey.classes.keys().map(String::as_str).collect();
        assert_eq!(names, ["CPU", "H20", "H200", "L40S"]);
        assert_eq!((survey.classes["H200"].most_gpus(), survey.classes["H200"].capacity(3)), (8, 3));
        let sentence =
            "GPU product NVIDIA-X9 is not in the catalogue; create a GPUClass whose productLabels contain it";
        assert_eq!(survey.unrecognised, BTreeMap::from([(sentence.to_owned(), 1)]));
    }

    #[test]
    fn a_stated_class_is_taken_in_the_spellings_that_pods_require() {
        let stated = |name: &str| node(json!({ "gqla.dev/gpu-class": name }), 1);
        let nodes = ["h20", "H20", "h100-pcie", "H100-PCIE", "H100-PCIe", "H100-pcie"].map(stated);
        let survey = survey(&Catalogue::builtin(), &nodes);
        assert_eq!((survey.classes["H20"].most_gpus(), survey.classes["H20"].gpus_per_node.len()), (1, 2));
        assert_eq!(survey.classes["H100-PCIe"].gpus_per_node.len(), 3);
        let sentence = "label gqla.dev/gpu-class=H100-pcie must be spelled H100-PCIe";
        assert_eq!(survey.unrecognised, BTreeMap::from([(sentence.to_owned(), 1)]));
    }

    #[test]
    fn a_gpu_class_overrides_one_figure_and_keeps_the_others() {
        let slower =
            GPUClass::new("h20", GPUClassSpec { bf16_tflops: Some(120.0), ..GPUClassSpec::default() });
        let unknown = GPUClass::new("x9", GPUClassSpec::default());
        let priced =
            GPUClass::new("h100", GPUClassSpec { cost_per_gpu_hour: Some(2.5), ..GPUClassSpec::default() });
        let (catalogue, costs, refused) = catalogue([&slower, &unknown, &priced]);
        let spec = &catalogue.get("H20").unwrap().spec;
        assert_eq!((spec.flops_per_second, spec.bytes_per_second), (120e12, 4.0e12));
        assert!(catalogue.by_product("NVIDIA-H20").is_some_and(|class| class.name() == "H20"));
        assert_eq!(costs, BTreeMap::from([("H100".to_owned(), 2.5)]));
        assert_eq!(refused, ["GPUClass x9: memoryGiB is required, the catalogue has no class of that name"]);
    }
}
