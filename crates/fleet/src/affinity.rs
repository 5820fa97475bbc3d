//! Node selector terms that match exactly the nodes that count as a class.
//!
//! Required affinity with alternatives, because autoscalers look at nothing else when they choose which nodes to add, and a
//! node that does not exist yet carries a cloud's labels only. Each function writes down one arm of [`route`](crate::route),
//! and depends on the class and on those it shares a name with, so that a new GPUClass rolls few other classes' pods. Where
//! that is not the whole truth for a kind of node that the fleet has, the kinds of its device
//! are named one by one instead ([`one_by_one`]).
//!
//! Clouds' labels are the exception. A node that is announced as two classes counts as neither, and no term can say so without
//! the other's labels. So a GPUClass that adds or removes a pair in `nodeLabels` rolls the pods of every class that has
//! `nodeLabels` with another key, and those of class CPU unless the key is one of [`ACCELERATOR_LABELS`].

use std::collections::{BTreeMap, BTreeSet};

use gqla_api::{
    inventory::{DEVICE_MIG, DEVICE_MIXED, DEVICE_NONE},
    labels::{GPU_CLASS, GPU_DEVICE, GPU_PRODUCT, NVIDIA_GPU_PRODUCT, NVIDIA_SHARING},
};
use gqla_planner::{ACCELERATOR_LABELS, CPU_CLASS, Catalogue, GpuClass, PRESENCE_LABELS, Part, spellings};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::{
    kinds::{Kind, Kinds},
    route::{By, has_slices, is_nameless},
    words::{SHARING, device_word},
};

/// Most kinds that are named one by one. More is no fleet but somebody's prank with labels; nodes beyond get no pod.
const MAX_KINDS: usize = 64;

/// Requirements that must all hold.
type Term = Vec<NodeSelectorRequirement>;

/// Most nodes of a class that are excluded by name: a pod's template must stay small. With more, no node gets a pod.
pub const MAX_REFUTED: usize = 256;

/// The terms of the class `name`, each with `selector`, and none for the nodes `refuted`, whose labels are known to be wrong.
/// None at all when these are more than [`MAX_REFUTED`].
pub(crate) fn terms<'n>(
    catalogue: &Catalogue,
    kinds: &Kinds,
    name: &str,
    selector: &BTreeMap<String, String>,
    refuted: impl Iterator<Item = &'n str>,
) -> Vec<NodeSelectorTerm> {
    // A field takes one value per requirement.
    let fields: Vec<_> = refuted.map(|node| outside("metadata.name", [node])).collect();
    if fields.len() > MAX_REFUTED {
        return Vec::new();
    }
    let written = |excluded| {
        let write = |class| Writer { catalogue, class, excluded }.terms();
        catalogue.get(name).map(write).unwrap_or_default()
    };
    let by_labels = written(BTreeSet::new());
    let surprising = |(kind, by): &(&Kind, Option<By>)| {
        let labels = kind.labels();
        by.is_some() != by_labels.iter().any(|term| term.iter().all(|one| holds(one, &labels)))
    };
    let excluded: BTreeSet<&str> =
        kinds.counted_as(name).filter(surprising).map(|(kind, _)| kind.device.as_str()).collect();
    let mut terms = one_by_one(kinds, name, &excluded);
    terms.extend(if excluded.is_empty() { by_labels } else { written(excluded) });
    let fields = (!fields.is_empty()).then_some(fields);
    terms
        .into_iter()
        .map(|mut term| {
            term.extend(selector.iter().map(|(key, value)| within(key, [value.as_str()])));
            NodeSelectorTerm { match_expressions: Some(term), match_fields: fields.clone() }
        })
        .collect()
}

/// The scheduler's rule, for the operators that are written here.
fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<&str, &str>) -> bool {
    let value = labels.get(requirement.key.as_str());
    let listed = || value.is_some_and(|value| requirement.values.iter().flatten().any(|one| one == value));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        _ => value.is_none(),
    }
}

/// Kinds on devices whose labels alone mislead: facts, or classes that labels do not name, decided.
fn one_by_one(kinds: &Kinds, name: &str, devices: &BTreeSet<&str>) -> Vec<Term> {
    let counted = kinds.counted_as(name).filter_map(|(kind, by)| Some((kind, by?)));
    counted
        .filter(|(kind, _)| devices.contains(kind.device.as_str()))
        .take(MAX_KINDS)
        .map(|(kind, by)| {
            let exactly = |label, value: &Option<String>| match value {
                Some(value) => within(label, [value.as_str()]),
                None => absent(label),
            };
            let mut term = vec![
                within(GPU_DEVICE, [kind.device.as_str()]),
                exactly(GPU_PRODUCT, &kind.product),
                exactly(GPU_CLASS, &kind.stated),
            ];
            if by != By::Statement {
                term.push(outside(NVIDIA_SHARING, SHARING));
            }
            term
        })
        .collect()
}

struct Writer<'a> {
    catalogue: &'a Catalogue,
    class: &'a GpuClass,
    /// Devices whose kinds are named one by one.
    excluded: BTreeSet<&'a str>,
}

impl Writer<'_> {
    fn terms(&self) -> Vec<Term> {
        let one = [self.by_device(), self.by_product_name()].into_iter().flatten();
        self.stated().into_iter().chain(one).chain(self.slices()).chain(self.silent()).collect()
    }

    fn is_own(&self, found: Option<&GpuClass>) -> bool {
        found.is_some_and(|found| found.name() == self.class.name())
    }

    /// Product labels, in both spellings, that lead here and not to another class.
    fn owned_products(&self, which: impl Fn(Option<Part>) -> bool) -> Vec<String> {
        let own =
            |product: &String| which(Part::of(product)) && self.is_own(self.catalogue.by_product(product));
        products(self.class).into_iter().filter(own).collect()
    }

    /// Devices of which an agent's word is not to be looked up by product.
    fn named_devices(&self) -> BTreeSet<String> {
        let builtin = Catalogue::builtin();
        let known = builtin.iter().flat_map(|class| class.pci_device_ids.iter().copied().map(device_word));
        let words = [DEVICE_MIG, DEVICE_MIXED, DEVICE_NONE].map(str::to_owned);
        known.chain(words).chain(self.excluded.iter().map(|device| (*device).to_owned())).collect()
    }

    /// The labels' values for PCI device ids, without those whose kinds are named one by one.
    fn devices(&self, ids: impl Iterator<Item = u16>) -> Vec<String> {
        ids.map(device_word).filter(|device| !self.excluded.contains(device.as_str())).collect()
    }

    /// An administrator says so, and the agent does not contradict.
    fn stated(&self) -> Vec<Term> {
        let stated = || within(GPU_CLASS, spellings(self.class.name()));
        if is_nameless(self.class) {
            let not = [DEVICE_MIG, DEVICE_MIXED].into_iter().chain(self.excluded.iter().copied());
            return vec![vec![stated(), outside(GPU_DEVICE, not)]];
        }
        let mut terms: Vec<Term> = silences().map(|silence| vec![stated(), silence]).into();
        let devices = self.devices(self.class.pci_device_ids.iter().copied());
        if !devices.is_empty() {
            terms.push(vec![stated(), within(GPU_DEVICE, devices)]);
        }
        let products = products(self.class);
        if !products.is_empty() {
            terms.push(vec![
                stated(),
                within(GPU_PRODUCT, products),
                present(GPU_DEVICE),
                outside(GPU_DEVICE, self.named_devices()),
            ]);
        }
        terms
    }

    /// The agent tells a PCI device id of this class.
    fn by_device(&self) -> Option<Term> {
        let own = |id: &u16| self.is_own(self.catalogue.by_pci_device(*id));
        let devices = self.devices(self.class.pci_device_ids.iter().copied().filter(own));
        (!devices.is_empty())
            .then(|| vec![within(GPU_DEVICE, devices), absent(GPU_CLASS), outside(NVIDIA_SHARING, SHARING)])
    }

    /// The agent tells a device that no class has, and a product of this class.
    fn by_product_name(&self) -> Option<Term> {
        let products = self.owned_products(|_| true);
        (!products.is_empty()).then(|| {
            vec![
                within(GPU_PRODUCT, products),
                present(GPU_DEVICE),
                outside(GPU_DEVICE, self.named_devices()),
                absent(GPU_CLASS),
                outside(NVIDIA_SHARING, SHARING),
            ]
        })
    }

    /// The agent tells of MIG, and this class stands for slices.
    fn slices(&self) -> Vec<Term> {
        let sliced = || within(GPU_DEVICE, [DEVICE_MIG]);
        let stated =
            has_slices(self.class).then(|| vec![sliced(), within(GPU_CLASS, spellings(self.class.name()))]);
        let products = self.owned_products(|part| part == Some(Part::MigSlice));
        let discovered = (!products.is_empty())
            .then(|| vec![sliced(), within(NVIDIA_GPU_PRODUCT, products), absent(GPU_CLASS)]);
        stated.into_iter().chain(discovered).collect()
    }

    /// No agent ever saw a GPU, and no administrator says anything.
    fn silent(&self) -> Vec<Term> {
        let mut arms = vec![];
        let whole = self.owned_products(|part| part.is_none());
        if !whole.is_empty() {
            arms.push(vec![within(NVIDIA_GPU_PRODUCT, whole), outside(NVIDIA_SHARING, SHARING)]);
        }
        let parts = self.owned_products(|part| part.is_some());
        if !parts.is_empty() {
            arms.push(vec![within(NVIDIA_GPU_PRODUCT, parts)]);
        }
        arms.extend(self.announced());
        if self.class.name() == CPU_CLASS {
            arms.push(self.without_gpu());
        }
        arms.into_iter()
            .flat_map(|arm| {
                silences().map(|silence| {
                    let silence = [silence, absent(GPU_CLASS)];
                    arm.iter().cloned().chain(silence).collect()
                })
            })
            .collect()
    }

    /// A cloud announces this class and no other, and nothing on the node has spoken yet.
    fn announced(&self) -> Vec<Term> {
        let (mut own, mut foreign) = (BTreeMap::new(), BTreeMap::new());
        for (key, value) in self.catalogue.iter().flat_map(|class| class.node_labels.iter()) {
            let owner = self.catalogue.by_node_label(key, value);
            let side: &mut BTreeMap<&str, BTreeSet<String>> =
                if self.is_own(owner) { &mut own } else { &mut foreign };
            side.entry(key.as_ref()).or_default().insert(value.clone().into_owned());
        }
        own.iter()
            .map(|(key, values)| {
                let others = foreign.iter().filter(|(other, _)| *other != key);
                let mut term = vec![within(key, values.clone()), absent(NVIDIA_GPU_PRODUCT)];
                term.extend(others.map(|(key, values)| outside(key, values.clone())));
                term
            })
            .collect()
    }

    fn without_gpu(&self) -> Term {
        let mut announced: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (key, value) in self.catalogue.iter().flat_map(|class| class.node_labels.iter()) {
            if !ACCELERATOR_LABELS.contains(&key.as_ref()) {
                announced.entry(key.as_ref()).or_default().insert(value.clone().into_owned());
            }
        }
        let mut term = vec![absent(NVIDIA_GPU_PRODUCT)];
        term.extend(PRESENCE_LABELS.map(|label| outside(label, ["true"])));
        term.extend(ACCELERATOR_LABELS.map(absent));
        term.extend(announced.into_iter().map(|(key, values)| outside(key, values)));
        term
    }
}

/// The two ways in which an agent says nothing.
fn silences() -> [NodeSelectorRequirement; 2] {
    [absent(GPU_DEVICE), within(GPU_DEVICE, [DEVICE_NONE])]
}

/// Old drivers omit the vendor.
fn products(class: &GpuClass) -> Vec<String> {
    let labels = class.product_labels.iter().map(ToString::to_string);
    let short = class.product_labels.iter().filter_map(|label| label.strip_prefix("NVIDIA-"));
    labels.chain(short.map(str::to_owned)).collect()
}

fn within<S: ToString>(key: &str, values: impl IntoIterator<Item = S>) -> NodeSelectorRequirement {
    requirement(key, "In", values)
}

/// Also holds where the label is absent. Without values it always holds.
fn outside<S: ToString>(key: &str, values: impl IntoIterator<Item = S>) -> NodeSelectorRequirement {
    requirement(key, "NotIn", values)
}

fn present(key: &str) -> NodeSelectorRequirement {
    requirement::<&str>(key, "Exists", [])
}

fn absent(key: &str) -> NodeSelectorRequirement {
    requirement::<&str>(key, "DoesNotExist", [])
}

fn requirement<S: ToString>(
    key: &str,
    operator: &str,
    values: impl IntoIterator<Item = S>,
) -> NodeSelectorRequirement {
    let values: BTreeSet<String> = values.into_iter().map(|value| value.to_string()).collect();
    NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then(|| values.into_iter().collect()),
    }
}
