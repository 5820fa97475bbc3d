//! What is wrong with one node, in sentences.

use std::collections::BTreeMap;

use gqla_api::{
    inventory::{DriverState, GpuHealth, NodeInventory},
    labels::{GPU_CLASS, GPU_INVENTORY, NVIDIA_GPU_PRODUCT},
};
use gqla_planner::{CPU_CLASS, Catalogue, PRESENCE_LABELS, Part};

use crate::{
    agents::UNKNOWN_AGE,
    derive::derived_name,
    hardware::{NodeHardware, Recognition},
    kinds::{Kinds, Verdict},
    node::FleetNode,
    problem::{Problem, ProblemKind as Kind},
    route::{By, Unplanned, whole},
    slices::SliceFacts,
    words::{Agent, Words, device_id},
};

/// What is wrong, before the node's name is put to it: kind, fact and sentence.
type Finding = (Kind, String, String);

/// What a node is examined with.
pub(crate) struct Case<'a> {
    pub catalogue: &'a Catalogue,
    pub kinds: &'a Kinds,
    pub node: &'a FleetNode,
    pub words: Words<'a>,
    pub slices: Option<&'a SliceFacts>,
    pub verdict: &'a Verdict,
}

/// Everything that is wrong with the node that `hardware` describes.
pub(crate) fn problems(case: &Case<'_>, hardware: &NodeHardware) -> Vec<Problem> {
    let inventory = case.node.believed_inventory();
    let unbelieved = case.node.inventory.as_ref().and_then(|inventory| inventory.as_ref().err());
    let findings = unbelieved
        .map(|sentence| (Kind::BadAnnotation, format!("annotation {GPU_INVENTORY}"), sentence.clone()))
        .into_iter()
        .chain(unplanned(case, hardware))
        .chain(untrue_statement(case))
        .chain(untrue_product(case))
        .chain(untrue_presence(case, inventory))
        .chain(contradicting_slices(&case.words, case.slices))
        .chain(driver(case, inventory))
        .chain(hardware.unhealthy.iter().map(|(index, health)| unhealthy(*index, *health)))
        .chain(hardware.stale.map(stale));
    findings
        .map(|(kind, fact, sentence)| Problem {
            kind,
            node: case.node.name.clone(),
            fact: printable(&fact),
            sentence: printable(&sentence),
        })
        .collect()
}

/// What others wrote on a node is shown on terminals.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn unplanned(case: &Case<'_>, hardware: &NodeHardware) -> Option<Finding> {
    let finding = |kind, fact: String, sentence: &str| Some((kind, fact, sentence.to_owned()));
    let words = &case.words;
    let stated = || format!("label {GPU_CLASS}={}", words.stated.unwrap_or_default());
    match case.verdict {
        Ok((name, _)) => match &hardware.recognition {
            Recognition::Unknown { .. } => {
                Some((Kind::UnknownProduct, product(words), derived(&stranger(case), name)))
            }
            _ => None,
        },
        Err(Unplanned::Mixed) => finding(
            Kind::MixedModels,
            models(case.node.believed_inventory()),
            "a pod cannot ask for one of several kinds of GPU, so the node gets none; move each kind to a node of its own",
        ),
        Err(Unplanned::Part(part)) => {
            let kind = if *part == Part::Shared { Kind::SharedGpu } else { Kind::MigSlice };
            finding(kind, product(words), &part.to_string())
        }
        Err(Unplanned::UnknownDevice(device)) => {
            Some((Kind::UnknownProduct, product(words), underived(&stranger(case), case.kinds, device)))
        }
        Err(Unplanned::UnknownProduct(product)) => Some((
            Kind::UnknownProduct,
            String::new(),
            format!(
                "GPU product {product} is not in the catalogue; create a GPUClass whose productLabels contain it"
            ),
        )),
        Err(Unplanned::Unlabelled) => finding(
            Kind::Unlabelled,
            String::new(),
            "a GPU is present, but no label says which: neither gqla.dev/gpu.device nor nvidia.com/gpu.product is there \
             yet; run the agent or GPU feature discovery",
        ),
        Err(Unplanned::UnknownStatement(name)) => Some((
            Kind::UnknownClass,
            stated(),
            format!(
                "the label names no class of the catalogue; create a GPUClass {name} or correct the label"
            ),
        )),
        Err(Unplanned::Misspelt { class, .. }) => {
            Some((Kind::UnknownClass, stated(), format!("the label must be spelled {class}")))
        }
        Err(Unplanned::Ambiguous) => finding(
            Kind::Disputed,
            announcements(case),
            "labels of clouds announce GPUs of several classes; correct nodeLabels of the GPUClasses or label the node \
             gqla.dev/gpu-class",
        ),
    }
}

/// Why the GPU is of no class.
fn stranger(case: &Case<'_>) -> String {
    let Agent::Whole(device) = case.words.agent else { return "no class has this GPU".to_owned() };
    let by_id = device_id(device).and_then(|id| case.catalogue.by_pci_device(id));
    let namesake =
        by_id.or_else(|| case.words.product.and_then(|product| case.catalogue.by_product(product)));
    let counts =
        namesake.and_then(|class| Some((class, class.multiprocessors?, case.words.multiprocessors?)));
    match counts {
        Some((class, known, found)) => format!(
            "it goes by the name of {}, but has {found} multiprocessors and not {known}, so no class has this GPU",
            class.name()
        ),
        None => "no class has this GPU".to_owned(),
    }
}

fn derived(stranger: &str, name: &str) -> String {
    format!(
        "{stranger}: it is planned for as {name}, with the bandwidth of its memory bus and clock and half the \
         FLOPs of its multiprocessors and clock; create a GPUClass {name} with measured or published figures"
    )
}

fn underived(stranger: &str, kinds: &Kinds, device: &str) -> String {
    let derivation = device_id(device).map(|id| (id, kinds.derivation(id)));
    match derivation {
        Some((id, Some(Err(missing)))) => format!(
            "{stranger}, and a class {} cannot be derived because NVML does not tell: {missing}; create a \
             GPUClass whose pciDeviceIDs contain {device}",
            derived_name(id)
        ),
        Some((_, _)) => format!(
            "{stranger}, and there is no inventory of it to derive one from; create a GPUClass whose \
             pciDeviceIDs contain {device}"
        ),
        None => {
            format!("label gqla.dev/gpu.device={device} is no PCI device id; only the agent may write it")
        }
    }
}

fn product(words: &Words<'_>) -> String {
    let name = words.product.or(words.discovered).unwrap_or("GPU");
    match words.agent {
        Agent::Whole(device) => format!("{name}, PCI device {device}"),
        _ => name.to_owned(),
    }
}

/// Such as `1 × NVIDIA H20, 2 × NVIDIA L40S`.
fn models(inventory: Option<&NodeInventory>) -> String {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for gpu in inventory.into_iter().flat_map(|inventory| &inventory.gpus) {
        *counts.entry(gpu.product.as_str()).or_default() += 1;
    }
    let counts: Vec<_> =
        counts.iter().take(4).map(|(product, count)| format!("{count} × {product}")).collect();
    counts.join(", ")
}

fn announcements(case: &Case<'_>) -> String {
    let announced = |(key, value): (&String, &String)| {
        case.catalogue.by_node_label(key, value).map(|_| format!("{key}={value}"))
    };
    case.words.all.iter().filter_map(announced).take(4).collect::<Vec<_>>().join(", ")
}

/// An administrator's label that NVML contradicts.
fn untrue_statement(case: &Case<'_>) -> Option<Finding> {
    let words = &case.words;
    let stated = words.stated?;
    let contradicted = match (words.agent, case.verdict) {
        (Agent::Whole(_), Ok((_, by))) => *by != By::Statement,
        (Agent::Whole(_), Err(Unplanned::UnknownDevice(_) | Unplanned::Part(_))) => true,
        (Agent::Mixed, _) => true,
        _ => false,
    };
    contradicted
        .then(|| (Kind::LyingLabel, format!("label {GPU_CLASS}={stated}"), overruled(words, case.verdict)))
}

/// A label of GPU feature discovery that NVML contradicts.
fn untrue_product(case: &Case<'_>) -> Option<Finding> {
    let words = &case.words;
    let (Agent::Whole(device), Some(told)) = (words.agent, words.discovered) else { return None };
    let labelled = case.catalogue.by_product(told)?;
    let real = whole(case.catalogue, device, words);
    let agrees = real.is_ok_and(|(class, _)| class.name() == labelled.name());
    (!agrees && words.product != Some(told)).then(|| {
        (Kind::LyingLabel, format!("label {NVIDIA_GPU_PRODUCT}={told}"), overruled(words, case.verdict))
    })
}

fn overruled(words: &Words<'_>, verdict: &Verdict) -> String {
    let counts = match verdict {
        Ok((name, _)) => format!("the node counts as {name}"),
        Err(_) => "the node counts as no class".to_owned(),
    };
    let nvml = match words.agent {
        Agent::Mixed => "several kinds of GPU".to_owned(),
        _ => product(words),
    };
    format!("NVML says {nvml}, and NVML wins: {counts}; correct or remove the label")
}

/// Labels that speak of GPUs where NVML answers and sees none.
fn untrue_presence(case: &Case<'_>, inventory: Option<&NodeInventory>) -> Option<Finding> {
    let sees_none = inventory.is_some_and(|seen| seen.driver == DriverState::Ready && seen.gpus.is_empty());
    let label = claim(&case.words).filter(|_| sees_none)?;
    let sentence = "NVML answers and sees no GPU on the node; correct or remove the label";
    Some((Kind::LyingLabel, label, sentence.to_owned()))
}

/// The label by which a node claims to have a GPU, when its agent says nothing.
fn claim(words: &Words<'_>) -> Option<String> {
    let stated = words.stated.filter(|stated| !stated.eq_ignore_ascii_case(CPU_CLASS));
    let stated = stated.map(|stated| format!("label {GPU_CLASS}={stated}"));
    let discovered = || words.discovered.map(|told| format!("label {NVIDIA_GPU_PRODUCT}={told}"));
    let present = || {
        let mut labels = PRESENCE_LABELS.iter();
        labels
            .find(|label| words.all.get(**label).is_some_and(|value| value == "true"))
            .map(|label| format!("label {label}"))
    };
    stated.or_else(discovered).or_else(present)
}

/// What the DRA driver says against the label that pods are scheduled by. An agent's word is stronger than both.
pub(crate) fn contradicting_slices(words: &Words<'_>, slices: Option<&SliceFacts>) -> Option<Finding> {
    let slices = slices.filter(|_| words.agent == Agent::Silent && words.stated.is_none())?;
    let first = slices.devices.iter().find(|device| !device.is_slice);
    if slices.devices.iter().any(|device| device.is_slice) && words.discovered.and_then(Part::of).is_none() {
        let sentence = "its ResourceSlices hold MIG slices, whose rates are not those of the whole GPU";
        return Some((Kind::MigSlice, "ResourceSlice".to_owned(), sentence.to_owned()));
    }
    let first = first?;
    if slices.devices.iter().any(|device| !device.is_slice && device.product != first.product) {
        let sentence = "its ResourceSlices hold GPUs of several kinds; move each kind to a node of its own";
        return Some((Kind::MixedModels, "ResourceSlice".to_owned(), sentence.to_owned()));
    }
    let told = words.discovered.filter(|told| {
        Part::of(told).is_none()
            && *told != first.product
            && first.product.strip_prefix("NVIDIA-") != Some(told)
    })?;
    Some((
        Kind::LyingLabel,
        format!("label {NVIDIA_GPU_PRODUCT}={told}"),
        format!(
            "its ResourceSlices say {}, so the node gets no pod; correct the label or run the agent",
            first.product
        ),
    ))
}

/// NVML that does not answer where there is, or is said to be, a GPU. A node without GPUs needs no driver.
fn driver(case: &Case<'_>, inventory: Option<&NodeInventory>) -> Option<Finding> {
    let inventory = inventory?;
    let (kind, what) = match inventory.driver {
        DriverState::Ready => return None,
        DriverState::Missing => (Kind::DriverMissing, "there is no NVIDIA driver"),
        DriverState::TooOld => (Kind::DriverTooOld, "the driver is too old for CUDA 12"),
        DriverState::NoPermission => (Kind::DriverNoPermission, "the agent may not open the GPU's devices"),
        DriverState::Hanging => (Kind::DriverHanging, "the driver does not answer"),
        DriverState::Failing => (Kind::DriverFailing, "the driver fails"),
    };
    if inventory.gpus.is_empty() {
        claim(&case.words)?;
    }
    let consequence = match inventory.driver {
        DriverState::TooOld => "pods cannot use its GPUs, so they are not planned with until it is upgraded",
        _ if inventory.gpus.is_empty() => {
            "NVML has told nothing of its GPUs, and labels are all that is known"
        }
        _ => "the GPUs seen before stay in the plan",
    };
    let said = inventory.message.as_ref().map(|message| format!(" ({message})")).unwrap_or_default();
    Some((kind, "driver".to_owned(), format!("{what}{said}; {consequence}")))
}

fn unhealthy(index: u32, health: GpuHealth) -> Finding {
    let (kind, sentence) = match health {
        GpuHealth::Xid(xid) => (
            Kind::GpuUnhealthy,
            format!("reported XID {xid}, which ends the work on it; it is not planned with until it is reset"),
        ),
        GpuHealth::Ecc => (
            Kind::GpuUnhealthy,
            "has memory errors that could not be corrected; it is not planned with until it is reset or replaced"
                .to_owned(),
        ),
        GpuHealth::Lost | GpuHealth::Healthy => (
            Kind::GpuLost,
            "fell off the bus; it is not planned with until NVML sees it, or another card in its place, again; restart the node \
             or replace the card".to_owned(),
        ),
    };
    (kind, format!("GPU {index}"), sentence)
}

fn stale(age: &str) -> Finding {
    let old = if age == UNKNOWN_AGE { "of unknown age".to_owned() } else { format!("over {age} old") };
    let sentence =
        format!("the agent is not running: what NVML told is the last known, {old}; the plan stays as it is");
    (Kind::StaleFacts, "agent".to_owned(), sentence)
}
