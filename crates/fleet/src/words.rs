//! What a node's labels say, before anyone judges it.

use std::collections::BTreeMap;

use gqla_api::{
    inventory::{DEVICE_MIG, DEVICE_MIXED, DEVICE_NONE},
    labels::{GPU_CLASS, GPU_DEVICE, GPU_MULTIPROCESSORS, GPU_PRODUCT, NVIDIA_GPU_PRODUCT, NVIDIA_SHARING},
};

/// Values of `nvidia.com/gpu.sharing-strategy` under which several pods get one GPU.
pub(crate) const SHARING: [&str; 2] = ["mps", "time-slicing"];

/// The agent's word, by label `gqla.dev/gpu.device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agent<'a> {
    /// There is no agent, or it never saw a GPU: others may know more.
    Silent,
    /// GPUs of several kinds.
    Mixed,
    /// GPUs cut into MIG slices.
    Sliced,
    /// Whole GPUs of one kind; the label's value.
    Whole(&'a str),
}

/// The labels of a node that speak of its GPUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    pub agent: Agent<'a>,
    /// Product by the agent.
    pub product: Option<&'a str>,
    /// Multiprocessors by the agent, as the label has them: what is not written as an agent writes it is another number
    /// than any class has.
    pub multiprocessors: Option<&'a str>,
    /// Class by an administrator.
    pub stated: Option<&'a str>,
    /// Product by GPU feature discovery.
    pub discovered: Option<&'a str>,
    /// Whether GPU feature discovery says that pods share GPUs.
    pub shared: bool,
    /// All labels, for those that clouds write.
    pub all: &'a BTreeMap<String, String>,
}

impl<'a> Words<'a> {
    pub fn of(labels: &'a BTreeMap<String, String>) -> Self {
        let get = |key: &str| labels.get(key).map(String::as_str);
        Self {
            agent: match get(GPU_DEVICE) {
                None | Some(DEVICE_NONE) => Agent::Silent,
                Some(DEVICE_MIXED) => Agent::Mixed,
                Some(DEVICE_MIG) => Agent::Sliced,
                Some(device) => Agent::Whole(device),
            },
            product: get(GPU_PRODUCT),
            multiprocessors: get(GPU_MULTIPROCESSORS),
            stated: get(GPU_CLASS),
            discovered: get(NVIDIA_GPU_PRODUCT),
            shared: get(NVIDIA_SHARING).is_some_and(|strategy| SHARING.contains(&strategy)),
            all: labels,
        }
    }
}

/// The label's value for a PCI device id.
pub(crate) fn device_word(id: u16) -> String {
    format!("{id:04x}")
}

/// The PCI device id in a label's value, written exactly as agents write it.
pub(crate) fn device_id(word: &str) -> Option<u16> {
    let id = u16::from_str_radix(word, 16).ok()?;
    (device_word(id) == word).then_some(id)
}
