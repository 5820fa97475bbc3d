//! The catalogue that a fleet's GPUClasses make of the built-in one.

use std::{borrow::Cow, collections::BTreeMap};

use gqla_api::{GPUClass, GPUClassSpec};
use gqla_planner::{Catalogue, ComputeCapability, Confidence, GpuClass, GpuSpec};

use crate::words::device_id;

/// Begins the source of every class that a GPUClass declares.
const DECLARED: &str = "GPUClass ";

/// Whether a GPUClass declares or overrides the class.
pub(crate) fn is_declared(class: &GpuClass) -> bool {
    class.source.starts_with(DECLARED)
}

/// What GPUClasses come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Classes {
    /// The built-in catalogue, extended and overridden.
    pub catalogue: Catalogue,
    /// Cost per GPU and hour of the classes that have one, by name.
    pub costs: BTreeMap<String, f64>,
    /// A sentence for each GPUClass that cannot be used.
    pub refused: Vec<String>,
}

/// The built-in catalogue extended and overridden by GPUClasses.
pub fn classes<'a>(declared: impl IntoIterator<Item = &'a GPUClass>) -> Classes {
    let (mut catalogue, mut costs, mut refused) = (Catalogue::builtin(), BTreeMap::new(), Vec::new());
    for class in declared {
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
    Classes { catalogue, costs, refused }
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
        compute_capability: compute_capability(name, spec)?.or(base.and_then(|base| base.compute_capability)),
        derived: false,
    };
    entry.validate().map_err(|error| format!("GPUClass {name}: {error}"))?;
    Ok(GpuClass {
        spec: entry,
        multiprocessors: spec.multiprocessors.or(known.and_then(|class| class.multiprocessors)),
        pci_device_ids: together(pci_device_ids(name, spec)?, known.map(|class| &*class.pci_device_ids)),
        product_labels: together(
            spec.product_labels.iter().map(|label| Cow::Owned(label.clone())).collect(),
            known.map(|class| &*class.product_labels),
        ),
        node_labels: together(
            spec.node_labels
                .iter()
                .map(|label| (Cow::Owned(label.key.clone()), Cow::Owned(label.value.clone())))
                .collect(),
            known.map(|class| &*class.node_labels),
        ),
        source: Cow::Owned(format!("{DECLARED}{name}")),
        confidence: known.map_or(Confidence::High, |class| class.confidence),
    })
}

fn together<T: Clone + PartialEq>(mut own: Vec<T>, known: Option<&[T]>) -> Cow<'static, [T]> {
    for value in known.into_iter().flatten() {
        if !own.contains(value) {
            own.push(value.clone());
        }
    }
    Cow::Owned(own)
}

fn pci_device_ids(name: &str, spec: &GPUClassSpec) -> Result<Vec<u16>, String> {
    let id = |text: &String| {
        device_id(text).ok_or_else(|| {
            format!(
                "GPUClass {name}: pciDeviceIDs holds `{text}`, expected four hex digits in lower case such as 2329"
            )
        })
    };
    spec.pci_device_ids.iter().map(id).collect()
}

fn compute_capability(name: &str, spec: &GPUClassSpec) -> Result<Option<ComputeCapability>, String> {
    let stated = spec.compute_capability.as_deref().map(str::parse).transpose();
    stated.map_err(|error| format!("GPUClass {name}: computeCapability: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_gpu_class_overrides_one_figure_and_keeps_the_others() {
        let slower =
            GPUClass::new("h20", GPUClassSpec { bf16_tflops: Some(120.0), ..GPUClassSpec::default() });
        let unknown = GPUClass::new("x9", GPUClassSpec::default());
        let priced =
            GPUClass::new("h100", GPUClassSpec { cost_per_gpu_hour: Some(2.5), ..GPUClassSpec::default() });
        let Classes { catalogue, costs, refused } = classes([&slower, &unknown, &priced]);
        let spec = &catalogue.get("H20").unwrap().spec;
        assert_eq!((spec.flops_per_second, spec.bytes_per_second), (120e12, 4.0e12));
        assert!(catalogue.by_product("NVIDIA-H20").is_some_and(|class| class.name() == "H20"));
        assert_eq!(costs, BTreeMap::from([("H100".to_owned(), 2.5)]));
        assert_eq!(refused, ["GPUClass x9: memoryGiB is required, the catalogue has no class of that name"]);
    }

    #[test]
    fn a_gpu_class_says_how_its_nodes_are_known() {
        let spec: GPUClassSpec = from_value(json!({
            "memoryGiB": 24, "memoryBandwidthGBps": 300, "bf16TFLOPS": 120, "multiprocessors": 60,
            "computeCapability": "8.9",
            "pciDeviceIDs": ["27ff"], "productLabels": ["NVIDIA-X9"],
            "nodeLabels": [{ "key": "cloud.google.com/gke-accelerator", "value": "nvidia-x9" }],
        }))
        .unwrap();
        let wrong = GPUClassSpec { pci_device_ids: vec!["0x27B8".to_owned()], ..spec.clone() };
        let (x9, wrong) = (GPUClass::new("x9", spec), GPUClass::new("wrong", wrong));
        let Classes { catalogue, refused, .. } = classes([&x9, &wrong]);
        let found = [
            catalogue.by_pci_device(0x27ff),
            catalogue.by_product("X9"),
            catalogue.by_node_label("cloud.google.com/gke-accelerator", "nvidia-x9"),
        ];
        assert!(found.iter().all(|class| class.is_some_and(|class| class.name() == "x9")));
        let x9 = catalogue.get("x9").unwrap();
        assert_eq!(x9.multiprocessors, Some(60));
        assert_eq!(x9.spec.compute_capability, Some(ComputeCapability { major: 8, minor: 9 }));
        assert_eq!(
            refused,
            [
                "GPUClass wrong: pciDeviceIDs holds `0x27B8`, expected four hex digits in lower case such as 2329"
            ]
        );
    }
}
