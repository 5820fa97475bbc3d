//! What the fleet's facts make of each kind of GPU its labels tell apart.
//!
//! A kind is all that labels say of a node with whole GPUs: device, product and statement. Pods are scheduled by those, so
//! nodes of one kind count as one class. Multiprocessors are in no label: where the fleet's agents count other numbers than
//! the class that the labels lead to has, the kind counts as another class. When its nodes disagree, it counts as what its
//! labels say if any of them bears that out, and the others are left out by name: one odd node must not stop its fleet.

use std::collections::{BTreeMap, BTreeSet};

use gqla_api::labels::{GPU_CLASS, GPU_DEVICE, GPU_PRODUCT};
use gqla_planner::{Catalogue, GpuClass, Part};

use crate::{
    derive::{Derivation, derive},
    node::FleetNode,
    route::{By, Route, Unplanned, route},
    words::{Agent, Words, device_id},
};

/// Device, product and statement, each as its label has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub device: String,
    pub product: Option<String>,
    pub stated: Option<String>,
}

impl Kind {
    fn of(words: &Words<'_>) -> Option<Self> {
        let Agent::Whole(device) = words.agent else { return None };
        Some(Self {
            device: device.to_owned(),
            product: words.product.map(str::to_owned),
            stated: words.stated.map(str::to_owned),
        })
    }

    /// The labels of a node of this kind.
    pub fn labels(&self) -> BTreeMap<&str, &str> {
        let pairs = [
            (GPU_DEVICE, Some(&self.device)),
            (GPU_PRODUCT, self.product.as_ref()),
            (GPU_CLASS, self.stated.as_ref()),
        ];
        pairs.into_iter().filter_map(|(key, value)| Some((key, value?.as_str()))).collect()
    }

    /// What such a node says.
    fn words<'a>(&'a self, none: &'a BTreeMap<String, String>) -> Words<'a> {
        Words {
            agent: Agent::Whole(&self.device),
            product: self.product.as_deref(),
            stated: self.stated.as_deref(),
            discovered: None,
            shared: false,
            all: none,
        }
    }
}

/// What a kind counts as: a class by name, or nothing.
pub(crate) type Verdict = Result<(String, By), Unplanned>;

/// Every kind that the fleet has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kinds {
    verdicts: BTreeMap<Kind, Verdict>,
    /// Kinds of which some nodes bear out the verdict and others do not.
    contested: BTreeSet<Kind>,
    /// By device, what could be derived of GPUs that no class has.
    derived: BTreeMap<u16, Derivation>,
}

impl Kinds {
    pub fn of<'n>(catalogue: &Catalogue, nodes: impl Iterator<Item = &'n FleetNode>) -> Self {
        let (counts, unknown) = observe(catalogue, nodes);
        let derived: BTreeMap<_, _> =
            unknown.into_iter().map(|(id, nodes)| (id, derive(id, nodes))).collect();
        let (mut verdicts, mut contested) = (BTreeMap::new(), BTreeSet::new());
        for (kind, counts) in counts {
            let (verdict, agreed) = verdict(catalogue, &kind, &counts);
            let verdict = match verdict {
                Err(Unplanned::UnknownDevice(device)) => rescued(catalogue, device, &derived),
                other => other,
            };
            if !agreed {
                contested.insert(kind.clone());
            }
            verdicts.insert(kind, verdict);
        }
        Self { verdicts, contested, derived }
    }

    /// What a node counts as, whose agent counts `multiprocessors`.
    pub fn verdict(&self, catalogue: &Catalogue, words: &Words<'_>, multiprocessors: Option<u32>) -> Verdict {
        let of_kind = self.of_kind(catalogue, words);
        let contested = Kind::of(words).is_some_and(|kind| self.contested.contains(&kind));
        if !contested || multiprocessors.is_none() || of_kind.is_err() {
            return of_kind;
        }
        let own = owned(route(catalogue, words, multiprocessors));
        if class_of(&own) == class_of(&of_kind) { of_kind } else { Err(Unplanned::Disputed) }
    }

    /// What nodes count as by what pods are scheduled by.
    pub fn of_kind(&self, catalogue: &Catalogue, words: &Words<'_>) -> Verdict {
        match Kind::of(words).and_then(|kind| self.verdicts.get(&kind)) {
            Some(Ok((_, by))) if words.shared && *by != By::Statement => Err(Unplanned::Part(Part::Shared)),
            Some(verdict) => verdict.clone(),
            None => owned(route(catalogue, words, None)),
        }
    }

    /// What was derived for `device`, or what is missing for it.
    pub fn derivation(&self, device: u16) -> Option<&Derivation> {
        self.derived.get(&device)
    }

    /// The classes that were derived.
    pub fn classes(&self) -> impl Iterator<Item = &GpuClass> {
        self.derived.values().filter_map(|derivation| derivation.as_ref().ok())
    }

    /// Every kind, and by what it counts as `name`, if it does.
    pub fn counted_as<'k>(&'k self, name: &'k str) -> impl Iterator<Item = (&'k Kind, Option<By>)> {
        self.verdicts.iter().map(move |(kind, verdict)| match verdict {
            Ok((class, by)) if class == name => (kind, Some(*by)),
            _ => (kind, None),
        })
    }
}

type Counts = BTreeMap<Kind, BTreeSet<u32>>;
type Unknown<'n> = BTreeMap<u16, Vec<&'n FleetNode>>;

/// The multiprocessors counted on each kind, and the nodes whose device no class may have.
fn observe<'n>(catalogue: &Catalogue, nodes: impl Iterator<Item = &'n FleetNode>) -> (Counts, Unknown<'n>) {
    let (mut counts, mut unknown) = (Counts::new(), Unknown::new());
    for node in nodes {
        let words = Words::of(&node.labels);
        let Some(kind) = Kind::of(&words) else { continue };
        let multiprocessors = node.multiprocessors();
        if let (Err(Unplanned::UnknownDevice(device)), Some(_)) =
            (route(catalogue, &words, multiprocessors), node.believed_inventory())
            && let Some(id) = device_id(&device)
        {
            unknown.entry(id).or_default().push(node);
        }
        counts.entry(kind).or_default().extend(multiprocessors);
    }
    (counts, unknown)
}

/// What a kind counts as, and whether all its nodes agree.
fn verdict(catalogue: &Catalogue, kind: &Kind, counts: &BTreeSet<u32>) -> (Verdict, bool) {
    let none = BTreeMap::new();
    let words = kind.words(&none);
    let by_labels = owned(route(catalogue, &words, None));
    let answers: Vec<_> = counts.iter().map(|count| owned(route(catalogue, &words, Some(*count)))).collect();
    let Some(first) = answers.first() else { return (by_labels, true) };
    if answers.iter().all(|other| class_of(other) == class_of(first)) {
        return (first.clone(), true);
    }
    let borne_out = by_labels.is_ok() && answers.iter().any(|one| class_of(one) == class_of(&by_labels));
    (if borne_out { by_labels } else { Err(Unplanned::Disputed) }, false)
}

fn class_of(verdict: &Verdict) -> Option<&str> {
    verdict.as_ref().ok().map(|(class, _)| class.as_str())
}

/// A class of the derived name, declared or derived.
fn rescued(catalogue: &Catalogue, device: String, derived: &BTreeMap<u16, Derivation>) -> Verdict {
    let derivation = device_id(&device).and_then(|id| derived.get(&id));
    match derivation {
        Some(Ok(class)) => {
            let declared = catalogue.get(class.name()).unwrap_or(class);
            Ok((declared.name().to_owned(), By::Device))
        }
        _ => Err(Unplanned::UnknownDevice(device)),
    }
}

fn owned(route: Route<'_>) -> Verdict {
    route.map(|(class, by)| (class.name().to_owned(), by))
}
