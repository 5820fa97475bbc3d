//! Node selector terms that match exactly the nodes that count as a class.
//!
//! Required affinity with alternatives, because autoscalers look at nothing else when they choose which nodes to add, and a
//! node that does not exist yet carries a cloud's labels only. Each function writes down one arm of [`route`](crate::route),
//! and depends on the class and on those it shares a name with, so that a new GPUClass rolls few other classes' pods. The kinds
//! of node that the fleet has and of which that is not the whole truth are named one by one ([`one_by_one`]).
//!
//! Clouds' labels are the exception. A node that is announced as two classes counts as neither, and no term can say so without
//! the other's labels. So a GPUClass that adds or removes a pair in `nodeLabels` rolls the pods of every class that has
//! `nodeLabels` with another key, and those of class CPU unless the key is one of [`ACCELERATOR_LABELS`].

use std::collections::{BTreeMap, BTreeSet};

use gqla_api::{
    inventory::{DEVICE_MIG, DEVICE_MIXED, DEVICE_NONE},
    labels::{GPU_CLASS, GPU_DEVICE, GPU_MULTIPROCESSORS, GPU_PRODUCT, NVIDIA_GPU_PRODUCT, NVIDIA_SHARING},
};
use gqla_planner::{ACCELERATOR_LABELS, CPU_CLASS, Catalogue, GpuClass, PRESENCE_LABELS, Part, spellings};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::{
    counts::Counts,
    kinds::{Kind, Kinds},
    route::{By, choose, disagrees, has_slices, is_nameless, namesakes, owners},
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
    let writer = |excluded| Some(Writer { catalogue, class: catalogue.get(name)?, excluded });
    let written = |excluded| writer(excluded).map(|writer| writer.terms()).unwrap_or_default();
    let mut by_labels = written(BTreeSet::new());
    let stated = writer(BTreeSet::new()).map(|writer| writer.stated()).unwrap_or_default();
    let strangers = kinds.counted_as(name).filter(|(kind, by)| match by {
        None => matches(&by_labels, kind),
        Some(By::Statement) => false,
        // What an administrator says is not why they count, so the terms that say so, shared GPUs and all, are not theirs.
        Some(_) => matches(&stated, kind),
    });
    let excluded: BTreeSet<&str> = strangers.map(|(kind, _)| kind.device.as_str()).collect();
    if !excluded.is_empty() {
        by_labels = written(excluded);
    }
    let mut terms = one_by_one(kinds, name, &by_labels);
    terms.extend(by_labels);
    let fields = (!fields.is_empty()).then_some(fields);
    terms
        .into_iter()
        .map(|mut term| {
            term.extend(selector.iter().map(|(key, value)| within(key, [value.as_str()])));
            NodeSelectorTerm { match_expressions: Some(term), match_fields: fields.clone() }
        })
        .collect()
}

/// Whether any of `terms` holds for such a node.
fn matches(terms: &[Term], kind: &Kind) -> bool {
    let labels = kind.labels();
    terms.iter().any(|term| term.iter().all(|one| holds(one, &labels)))
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

/// Kinds that count as the class, and which the terms `by_labels` say nothing of.
fn one_by_one(kinds: &Kinds, name: &str, by_labels: &[Term]) -> Vec<Term> {
    let counted = kinds.counted_as(name).filter_map(|(kind, by)| Some((kind, by?)));
    counted
        .filter(|(kind, _)| !matches(by_labels, kind))
        .take(MAX_KINDS)
        .map(|(kind, by)| {
            let exactly = |label, value: &Option<String>| match value {
                Some(value) => within(label, [value.as_str()]),
                None => absent(label),
            };
            let mut term = vec![
                within(GPU_DEVICE, [kind.device.as_str()]),
                exactly(GPU_PRODUCT, &kind.product),
                exactly(GPU_MULTIPROCESSORS, &kind.multiprocessors),
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
    /// Devices that GPUClasses declare, on nodes that are told by product and are not of this class, or not by statement.
    excluded: BTreeSet<&'a str>,
}

impl Writer<'_> {
    fn terms(&self) -> Vec<Term> {
        let whole = self.by_device().into_iter().chain(self.by_product_name());
        self.stated().into_iter().chain(whole).chain(self.slices()).chain(self.silent()).collect()
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

    /// An administrator says so, and the agent does not contradict.
    fn stated(&self) -> Vec<Term> {
        let stated = || within(GPU_CLASS, spellings(self.class.name()));
        let mut whole = vec![];
        if is_nameless(self.class) {
            whole.push(vec![stated(), outside(GPU_DEVICE, [DEVICE_MIG, DEVICE_MIXED])]);
            if self.class.multiprocessors.is_none() {
                return whole;
            }
        }
        let devices = &self.class.pci_device_ids;
        if !devices.is_empty() {
            whole.push(vec![stated(), within(GPU_DEVICE, devices.iter().copied().map(device_word))]);
        }
        let products = products(self.class);
        if !products.is_empty() {
            let [told, unnamed] = self.nameless_device();
            whole.push(vec![stated(), within(GPU_PRODUCT, products), told, unnamed]);
        }
        let silent = silences().map(|silence| vec![stated(), silence]);
        let agreed = Counts::of([self.class], |count| !disagrees(self.class, count));
        silent.into_iter().chain(whole.iter().flat_map(|term| with(term, &agreed))).collect()
    }

    /// The agent tells a device of which nothing but the product is to be looked up.
    fn nameless_device(&self) -> [NodeSelectorRequirement; 2] {
        [present(GPU_DEVICE), outside(GPU_DEVICE, self.named_devices())]
    }

    /// The agent tells a PCI device id of this class.
    fn by_device(&self) -> Vec<Term> {
        let counts = |id: &u16| self.counts(&owners(self.catalogue, *id));
        let term = |devices: Vec<u16>| vec![within(GPU_DEVICE, devices.into_iter().map(device_word))];
        self.alike(self.class.pci_device_ids.iter().copied(), counts, term)
    }

    /// The agent tells a device that no class has, and a product of this class.
    fn by_product_name(&self) -> Vec<Term> {
        let counts = |product: &String| self.counts(&namesakes(self.catalogue, product));
        let term = |products: Vec<String>| {
            let [told, unnamed] = self.nameless_device();
            vec![within(GPU_PRODUCT, products), told, unnamed]
        };
        self.alike(products(self.class).into_iter(), counts, term)
    }

    /// The numbers of multiprocessors that lead to this class where a name leads to `classes`.
    fn counts(&self, classes: &[&GpuClass]) -> Counts {
        Counts::of(classes.iter().copied(), |count| self.is_own(choose(classes, count)))
    }

    /// Terms of whole GPUs that no administrator speaks of: names that lead here with the same numbers share theirs.
    fn alike<T>(
        &self,
        names: impl Iterator<Item = T>,
        counts: impl Fn(&T) -> Counts,
        term: impl Fn(Vec<T>) -> Term,
    ) -> Vec<Term> {
        let mut alike: BTreeMap<Counts, Vec<T>> = BTreeMap::new();
        names.for_each(|name| alike.entry(counts(&name)).or_default().push(name));
        let terms = alike.into_iter().flat_map(|(counts, names)| {
            let whole = [absent(GPU_CLASS), outside(NVIDIA_SHARING, SHARING)];
            with(&[term(names), whole.into()].concat(), &counts)
        });
        terms.collect()
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

/// `term` for each alternative of numbers.
fn with(term: &[NodeSelectorRequirement], counts: &Counts) -> Vec<Term> {
    counts.alternatives().into_iter().map(|counted| [term, &counted].concat()).collect()
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

pub(crate) fn within<S: ToString>(key: &str, values: impl IntoIterator<Item = S>) -> NodeSelectorRequirement {
    requirement(key, "In", values)
}

/// Also holds where the label is absent. Without values it always holds.
pub(crate) fn outside<S: ToString>(
    key: &str,
    values: impl IntoIterator<Item = S>,
) -> NodeSelectorRequirement {
    requirement(key, "NotIn", values)
}

pub(crate) fn present(key: &str) -> NodeSelectorRequirement {
    requirement::<&str>(key, "Exists", [])
}

pub(crate) fn absent(key: &str) -> NodeSelectorRequirement {
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
