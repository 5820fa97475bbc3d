//! Each kind of GPU that the fleet's labels tell apart, and the classes derived for GPUs that the catalogue does not have.
//!
//! A kind is all that labels say of a node with whole GPUs. Pods are scheduled by those, so nodes of one kind count as one
//! class. Only what a class without an entry in the catalogue is derived from stands in no label.

use std::collections::{BTreeMap, BTreeSet};

use gqla_api::labels::{GPU_CLASS, GPU_DEVICE, GPU_MULTIPROCESSORS, GPU_PRODUCT};
use gqla_planner::{Catalogue, GpuClass};

use crate::{
    derive::{Derivation, derive},
    node::FleetNode,
    route::{By, Unplanned, route},
    words::{Agent, Words, device_id},
};

/// What labels say of whole GPUs, each as its label has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Kind {
    pub device: String,
    pub product: Option<String>,
    pub multiprocessors: Option<String>,
    pub stated: Option<String>,
}

impl Kind {
    fn of(words: &Words<'_>) -> Option<Self> {
        let Agent::Whole(device) = words.agent else { return None };
        Some(Self {
            device: device.to_owned(),
            product: words.product.map(str::to_owned),
            multiprocessors: words.multiprocessors.map(str::to_owned),
            stated: words.stated.map(str::to_owned),
        })
    }

    /// The labels of a node of this kind.
    pub fn labels(&self) -> BTreeMap<&str, &str> {
        let pairs = [
            (GPU_DEVICE, Some(&self.device)),
            (GPU_PRODUCT, self.product.as_ref()),
            (GPU_MULTIPROCESSORS, self.multiprocessors.as_ref()),
            (GPU_CLASS, self.stated.as_ref()),
        ];
        pairs.into_iter().filter_map(|(key, value)| Some((key, value?.as_str()))).collect()
    }

    /// What such a node says.
    fn words<'a>(&'a self, none: &'a BTreeMap<String, String>) -> Words<'a> {
        Words {
            agent: Agent::Whole(&self.device),
            product: self.product.as_deref(),
            multiprocessors: self.multiprocessors.as_deref(),
            stated: self.stated.as_deref(),
            discovered: None,
            shared: false,
            all: none,
        }
    }
}

/// What a node counts as: a class by name, or nothing.
pub(crate) type Verdict = Result<(String, By), Unplanned>;

/// Every kind that the fleet has.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kinds {
    verdicts: BTreeMap<Kind, Verdict>,
    /// By device, what could be derived of GPUs that no class has.
    derived: BTreeMap<u16, Derivation>,
}

impl Kinds {
    pub fn of<'n>(catalogue: &Catalogue, nodes: impl Iterator<Item = &'n FleetNode>) -> Self {
        let (mut kinds, mut unknown) = (BTreeSet::new(), BTreeMap::<u16, Vec<&FleetNode>>::new());
        for node in nodes {
            let words = Words::of(&node.labels);
            kinds.extend(Kind::of(&words));
            if let (Err(Unplanned::UnknownDevice(device)), Some(_)) =
                (route(catalogue, &words), node.believed_inventory())
                && let Some(id) = device_id(&device)
            {
                unknown.entry(id).or_default().push(node);
            }
        }
        let derived = unknown.into_iter().map(|(id, nodes)| (id, derive(id, nodes))).collect();
        let unjudged = Self { verdicts: BTreeMap::new(), derived };
        let none = BTreeMap::new();
        let judge = |kind: Kind| {
            let verdict = unjudged.verdict(catalogue, &kind.words(&none));
            (kind, verdict)
        };
        let verdicts = kinds.into_iter().map(judge).collect();
        Self { verdicts, ..unjudged }
    }

    /// What a node counts as that says `words`.
    pub fn verdict(&self, catalogue: &Catalogue, words: &Words<'_>) -> Verdict {
        match route(catalogue, words) {
            Ok((class, by)) => Ok((class.name().to_owned(), by)),
            Err(Unplanned::UnknownDevice(device)) => self.rescued(catalogue, device),
            Err(unplanned) => Err(unplanned),
        }
    }

    /// A class of the derived name, declared or derived.
    fn rescued(&self, catalogue: &Catalogue, device: String) -> Verdict {
        match device_id(&device).and_then(|id| self.derived.get(&id)) {
            Some(Ok(class)) => {
                let declared = catalogue.get(class.name()).unwrap_or(class);
                Ok((declared.name().to_owned(), By::Device))
            }
            _ => Err(Unplanned::UnknownDevice(device)),
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
