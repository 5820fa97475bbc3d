//! ResourceSlices of NVIDIA's DRA driver, pruned to what tells GPUs apart.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{Device, ResourceSlice};

/// The driver whose devices are GPUs.
pub const GPU_DRIVER: &str = "gpu.nvidia.com";
/// Most devices of one slice that are read; the API allows no more.
const MAX_DEVICES: usize = 128;
/// Longest product that is kept: more fits into no label.
const MAX_PRODUCT: usize = 63;

/// A GPU or a MIG slice of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceDevice {
    /// Product, spelled as label values are. Attributes keep its spaces.
    pub product: String,
    /// Whether it is a MIG slice.
    pub is_slice: bool,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
}

/// What the slices of one node say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceFacts {
    /// Its devices.
    pub devices: Vec<SliceDevice>,
}

/// One slice, pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSlice {
    node: String,
    pool: String,
    generation: i64,
    devices: Vec<SliceDevice>,
}

impl NodeSlice {
    /// Prunes one slice; `None` for another driver's or one of no single node.
    pub fn of(slice: &ResourceSlice) -> Option<Self> {
        let spec = &slice.spec;
        let node = spec.node_name.clone().filter(|_| spec.driver == GPU_DRIVER)?;
        let devices = spec.devices.iter().flatten().take(MAX_DEVICES).filter_map(device).collect();
        Some(Self { node, pool: spec.pool.name.clone(), generation: spec.pool.generation, devices })
    }
}

/// What all slices say, by node. Of each pool only the newest generation counts: older slices are about to be deleted.
pub fn slice_facts<'s>(slices: impl Iterator<Item = &'s NodeSlice> + Clone) -> BTreeMap<String, SliceFacts> {
    let mut newest: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for slice in slices.clone() {
        let known = newest.entry((&slice.node, &slice.pool)).or_insert(slice.generation);
        *known = slice.generation.max(*known);
    }
    let mut nodes: BTreeMap<String, SliceFacts> = BTreeMap::new();
    let is_newest =
        |slice: &&NodeSlice| newest[&(slice.node.as_str(), slice.pool.as_str())] == slice.generation;
    for slice in slices.filter(is_newest) {
        nodes.entry(slice.node.clone()).or_default().devices.extend(slice.devices.iter().cloned());
    }
    nodes
}

fn device(device: &Device) -> Option<SliceDevice> {
    let attributes = device.attributes.as_ref()?;
    let text = |name: &str| {
        let qualified = format!("{GPU_DRIVER}/{name}");
        attributes.get(name).or_else(|| attributes.get(&qualified)).and_then(|value| value.string.as_deref())
    };
    let is_slice = match text("type") {
        Some("gpu") => false,
        Some("mig") => true,
        _ => return None,
    };
    let memory = device.capacity.iter().flatten().find(|(name, _)| {
        name.as_str() == "memory" || name.strip_prefix(GPU_DRIVER).is_some_and(|name| name == "/memory")
    });
    Some(SliceDevice {
        product: text("productName")?.trim().replace(' ', "-").chars().take(MAX_PRODUCT).collect(),
        is_slice,
        memory_mib: memory.and_then(|(_, capacity)| mebibytes(&capacity.value.0)),
    })
}

/// A quantity of bytes in MiB, in the binary suffixes the driver writes.
fn mebibytes(quantity: &str) -> Option<u64> {
    let digits = quantity.trim_end_matches(|c: char| !c.is_ascii_digit());
    let value: u64 = digits.parse().ok()?;
    match &quantity[digits.len()..] {
        "" => Some(value >> 20),
        "Ki" => Some(value >> 10),
        "Mi" => Some(value),
        "Gi" => value.checked_mul(1 << 10),
        "Ti" => value.checked_mul(1 << 20),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn only_gpus_of_single_nodes_are_read() {
        let slice = |driver: &str, node: serde_json::Value| -> ResourceSlice {
            from_value(json!({ "metadata": {}, "spec": {
                "driver": driver, "nodeName": node, "pool": { "name": "p", "generation": 1, "resourceSliceCount": 1 },
                "devices": [
                    { "name": "gpu-0", "capacity": { "memory": { "value": "97871Mi" } }, "attributes": {
                        "type": { "string": "gpu" }, "productName": { "string": "NVIDIA H20" } } },
                    { "name": "mig-0", "attributes": {
                        "type": { "string": "mig" }, "productName": { "string": "NVIDIA H20" } } },
                    { "name": "vfio-0", "attributes": { "type": { "string": "vfio" } } },
                ],
            }}))
            .unwrap()
        };
        let slices = [
            slice(GPU_DRIVER, json!("a")),
            slice("other.driver", json!("b")),
            slice(GPU_DRIVER, json!(null)),
        ];
        let device =
            |is_slice, memory_mib| SliceDevice { product: "NVIDIA-H20".to_owned(), is_slice, memory_mib };
        let expected = SliceFacts { devices: vec![device(false, Some(97_871)), device(true, None)] };
        let slices: Vec<_> = slices.iter().filter_map(NodeSlice::of).collect();
        assert_eq!(slice_facts(slices.iter()), BTreeMap::from([("a".to_owned(), expected)]));
    }

    #[test]
    fn only_the_newest_generation_of_a_pool_counts() {
        let slice = |node: &str, pool: &str, generation, product: &str| NodeSlice {
            node: node.to_owned(),
            pool: pool.to_owned(),
            generation,
            devices: vec![SliceDevice { product: product.to_owned(), is_slice: false, memory_mib: None }],
        };
        let slices = [
            slice("a", "p", 2, "new-0"),
            slice("a", "p", 1, "old"),
            slice("a", "p", 2, "new-1"),
            slice("a", "q", 1, "other pool"),
            slice("b", "p", 1, "other node"),
        ];
        let facts = slice_facts(slices.iter());
        let products =
            |node: &str| facts[node].devices.iter().map(|device| device.product.as_str()).collect::<Vec<_>>();
        assert_eq!(products("a"), ["new-0", "new-1", "other pool"]);
        assert_eq!(products("b"), ["other node"]);
    }

    #[test]
    fn quantities_become_mebibytes() {
        let cases = [
            ("80Gi", Some(81_920)),
            ("1048576", Some(1)),
            ("2048Ki", Some(2)),
            ("x", None),
            ("1e9", None),
            ("", None),
        ];
        for (quantity, expected) in cases {
            assert_eq!(mebibytes(quantity), expected, "{quantity}");
        }
    }
}
