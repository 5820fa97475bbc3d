//! From what is said of a node to its class, or to why it has none.
//!
//! This is a function of labels alone, and [`affinity`](crate::affinity) writes the same function down as node selector
//! terms. The two change together; a property test holds them to each other.

use gqla_planner::{ACCELERATOR_LABELS, CPU_CLASS, Catalogue, GpuClass, PRESENCE_LABELS, Part, spellings};

use crate::words::{Agent, Words, device_id};

/// By what a node was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum By {
    /// PCI device id.
    Device,
    /// Number of multiprocessors, which overruled or told apart names.
    Multiprocessors,
    /// Name that NVML gives.
    ProductName,
    /// An administrator's label.
    Statement,
    /// Label of GPU feature discovery.
    ProductLabel,
    /// Label of a cloud.
    Announcement,
    /// Nothing speaks of a GPU.
    NoGpu,
}

/// Why a node counts as no class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unplanned {
    /// Several kinds of GPU.
    Mixed,
    /// A part of a GPU that no class claims.
    Part(Part),
    /// A device, by its label, that no class has.
    UnknownDevice(String),
    /// A product label that no class has.
    UnknownProduct(String),
    /// A GPU is there, and nothing says which.
    Unlabelled,
    /// Labels of clouds announce several classes.
    Ambiguous,
    /// The administrator's label names no class.
    UnknownStatement(String),
    /// The administrator's label is spelled as no pod requires it.
    Misspelt { stated: String, class: String },
}

pub(crate) type Route<'a> = Result<(&'a GpuClass, By), Unplanned>;

/// What a node counts as.
pub(crate) fn route<'a>(catalogue: &'a Catalogue, words: &Words<'_>) -> Route<'a> {
    if words.agent == Agent::Mixed {
        return Err(Unplanned::Mixed);
    }
    if let Some(stated) = words.stated {
        let class = spelled(catalogue, stated)?;
        if is_accepted(catalogue, class, words) {
            return Ok((class, By::Statement));
        }
    }
    match words.agent {
        // Stated by mistake: what the slices are is for the administrator to say.
        Agent::Sliced if words.stated.is_some() => Err(Unplanned::Part(Part::MigSlice)),
        Agent::Sliced => slice(catalogue, words),
        Agent::Whole(_) if words.shared => Err(Unplanned::Part(Part::Shared)),
        Agent::Whole(device) => whole(catalogue, device, words),
        Agent::Silent | Agent::Mixed => silent(catalogue, words),
    }
}

/// An administrator's statement holds unless the agent's word contradicts it.
fn is_accepted(catalogue: &Catalogue, class: &GpuClass, words: &Words<'_>) -> bool {
    match words.agent {
        Agent::Silent => true,
        Agent::Mixed => false,
        Agent::Sliced => has_slices(class),
        Agent::Whole(device) => {
            may_be(catalogue, class, device, words.product) && !disagrees(class, words.multiprocessors)
        }
    }
}

/// Whether the labels of a node with whole GPUs leave room for `class`: it says nothing of what it is, or has the
/// device, or the product of a device that nobody has.
fn may_be(catalogue: &Catalogue, class: &GpuClass, device: &str, product: Option<&str>) -> bool {
    if is_nameless(class) {
        return true;
    }
    match device_id(device) {
        Some(id) if class.pci_device_ids.contains(&id) => true,
        Some(id) if catalogue.by_pci_device(id).is_some() => false,
        _ => product.is_some_and(|product| class.claims_product(product)),
    }
}

/// Whether nothing in a label can say that a node is, or is not, of this class.
pub(crate) fn is_nameless(class: &GpuClass) -> bool {
    class.pci_device_ids.is_empty() && class.product_labels.is_empty()
}

/// Whether the class stands for MIG slices.
pub(crate) fn has_slices(class: &GpuClass) -> bool {
    class.product_labels.iter().any(|label| Part::of(label) == Some(Part::MigSlice))
}

/// Whether the class is known to have another number of multiprocessors than the label says.
pub(crate) fn disagrees(class: &GpuClass, multiprocessors: Option<&str>) -> bool {
    matches!((class.multiprocessors, multiprocessors), (Some(known), Some(found)) if known.to_string() != found)
}

/// Only spellings that pods can require of a node count: another would be planned for and never scheduled on.
fn spelled<'a>(catalogue: &'a Catalogue, stated: &str) -> Result<&'a GpuClass, Unplanned> {
    match catalogue.get(stated) {
        Some(class) if spellings(class.name()).contains(stated) => Ok(class),
        Some(class) => Err(Unplanned::Misspelt { stated: stated.to_owned(), class: class.name().to_owned() }),
        None => Err(Unplanned::UnknownStatement(stated.to_owned())),
    }
}

fn slice<'a>(catalogue: &'a Catalogue, words: &Words<'_>) -> Route<'a> {
    let product = words.discovered.filter(|product| Part::of(product) == Some(Part::MigSlice));
    product
        .and_then(|product| catalogue.by_product(product))
        .map(|class| (class, By::ProductLabel))
        .ok_or(Unplanned::Part(Part::MigSlice))
}

/// By what the agent tells of whole GPUs, of which `device` is the label's value.
pub(crate) fn whole<'a>(catalogue: &'a Catalogue, device: &str, words: &Words<'_>) -> Route<'a> {
    let owners = device_id(device).map(|id| owners(catalogue, id)).unwrap_or_default();
    if let Some(class) = choose(&owners, words.multiprocessors) {
        return Ok((class, By::Device));
    }
    let namesakes = words.product.map(|product| namesakes(catalogue, product)).unwrap_or_default();
    let by = if namesakes.len() > 1 { By::Multiprocessors } else { By::ProductName };
    match choose(&namesakes, words.multiprocessors) {
        Some(class) => Ok((class, by)),
        None => Err(Unplanned::UnknownDevice(device.to_owned())),
    }
}

/// Classes with the PCI device id.
pub(crate) fn owners(catalogue: &Catalogue, id: u16) -> Vec<&GpuClass> {
    catalogue.iter().filter(|class| class.pci_device_ids.contains(&id)).collect()
}

/// Classes with the product.
pub(crate) fn namesakes<'a>(catalogue: &'a Catalogue, product: &str) -> Vec<&'a GpuClass> {
    catalogue.iter().filter(|class| class.claims_product(product)).collect()
}

/// The first class with just that many multiprocessors, else the first that does not disagree.
pub(crate) fn choose<'a>(classes: &[&'a GpuClass], multiprocessors: Option<&str>) -> Option<&'a GpuClass> {
    let mut open = classes.iter().copied().filter(|class| !disagrees(class, multiprocessors));
    let exact = open.clone().find(|class| multiprocessors.is_some() && class.multiprocessors.is_some());
    exact.or_else(|| open.next())
}

fn silent<'a>(catalogue: &'a Catalogue, words: &Words<'_>) -> Route<'a> {
    match words.discovered {
        Some(product) => discovered(catalogue, product, words.shared),
        None => announced(catalogue, words),
    }
}

fn discovered<'a>(catalogue: &'a Catalogue, product: &str, shared: bool) -> Route<'a> {
    let part = Part::of(product);
    // Exact names come first, so that a declared class can claim a slice.
    match (catalogue.by_product(product), part) {
        (Some(_), None) if shared => Err(Unplanned::Part(Part::Shared)),
        (Some(class), _) => Ok((class, By::ProductLabel)),
        (None, Some(part)) => Err(Unplanned::Part(part)),
        (None, None) if product.is_empty() => Err(Unplanned::Unlabelled),
        (None, None) => Err(Unplanned::UnknownProduct(product.to_owned())),
    }
}

fn announced<'a>(catalogue: &'a Catalogue, words: &Words<'_>) -> Route<'a> {
    let mut classes = words.all.iter().filter_map(|(key, value)| catalogue.by_node_label(key, value));
    if let Some(first) = classes.next() {
        let agreed = classes.all(|other| other.name() == first.name());
        return if agreed { Ok((first, By::Announcement)) } else { Err(Unplanned::Ambiguous) };
    }
    let present =
        PRESENCE_LABELS.iter().any(|label| words.all.get(*label).is_some_and(|value| value == "true"));
    let accelerated = ACCELERATOR_LABELS.iter().any(|label| words.all.contains_key(*label));
    match catalogue.get(CPU_CLASS) {
        Some(class) if !present && !accelerated => Ok((class, By::NoGpu)),
        _ => Err(Unplanned::Unlabelled),
    }
}
