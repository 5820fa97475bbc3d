//! Which numbers of multiprocessors lead to a class, as requirements on the agent's label.
//!
//! Nothing but the numbers that classes are known to have tells classes apart, so there are as many cases as those, and two
//! more: any other number, and none. None stands for agents that do not write the label and for nodes that do not exist yet.

use std::collections::BTreeSet;

use gqla_api::labels::GPU_MULTIPROCESSORS;
use gqla_planner::GpuClass;
use k8s_openapi::api::core::v1::NodeSelectorRequirement;

use crate::affinity::{absent, outside, present, within};

/// A value of the label that is no class's number.
const OTHER: &str = "";

/// The numbers that lead somewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Counts {
    untold: bool,
    other: bool,
    /// Numbers with which it is not as with any other.
    except: BTreeSet<String>,
}

impl Counts {
    /// By `leads`, which tells a number apart from others only when one of `classes` has it.
    pub fn of<'c>(
        classes: impl IntoIterator<Item = &'c GpuClass>,
        leads: impl Fn(Option<&str>) -> bool,
    ) -> Self {
        let other = leads(Some(OTHER));
        let known = classes.into_iter().filter_map(|class| class.multiprocessors);
        let except = known.map(|count| count.to_string()).filter(|count| leads(Some(count)) != other);
        Self { untold: leads(None), other, except: except.collect() }
    }

    /// Alternatives, each of requirements that must all hold; none when no number leads there.
    pub fn alternatives(&self) -> Vec<Vec<NodeSelectorRequirement>> {
        let but = || outside(GPU_MULTIPROCESSORS, &self.except);
        let listed = (!self.except.is_empty()).then(|| vec![within(GPU_MULTIPROCESSORS, &self.except)]);
        match (self.untold, self.other) {
            (true, true) if self.except.is_empty() => vec![vec![]],
            (true, true) => vec![vec![but()]],
            (false, true) if self.except.is_empty() => vec![vec![present(GPU_MULTIPROCESSORS)]],
            (false, true) => vec![vec![present(GPU_MULTIPROCESSORS), but()]],
            (true, false) => [vec![absent(GPU_MULTIPROCESSORS)]].into_iter().chain(listed).collect(),
            (false, false) => listed.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use gqla_planner::Catalogue;

    use super::*;

    fn written(known: &[Option<u32>], leads: &[Option<&str>]) -> Vec<String> {
        let base = Catalogue::builtin().get("H20").unwrap().clone();
        let class =
            |multiprocessors: &Option<u32>| GpuClass { multiprocessors: *multiprocessors, ..base.clone() };
        let classes: Vec<_> = known.iter().map(class).collect();
        let one = |one: &NodeSelectorRequirement| {
            assert_ne!(one.values, Some(vec![]), "the API server refuses it");
            format!("{} {}", one.operator, one.values.clone().unwrap_or_default().join(","))
        };
        let alternatives = Counts::of(&classes, |count| leads.contains(&count)).alternatives();
        alternatives.iter().map(|all| all.iter().map(one).collect::<Vec<_>>().join("; ")).collect()
    }

    #[test]
    fn every_set_of_numbers_is_written_in_at_most_two_terms() {
        let (none, other) = (None, Some(OTHER));
        let (small, full) = (Some("60"), Some("78"));
        let known = [Some(60), Some(78), None];
        let table: [(&[Option<&str>], &[&str]); 9] = [
            (&[], &[]),
            (&[none, other, small, full], &[""]),
            (&[none, other, small], &["NotIn 78"]),
            (&[other, small, full], &["Exists "]),
            (&[other], &["Exists ; NotIn 60,78"]),
            (&[none], &["DoesNotExist "]),
            (&[none, full], &["DoesNotExist ", "In 78"]),
            (&[full], &["In 78"]),
            (&[small, full], &["In 60,78"]),
        ];
        for (leads, expected) in table {
            assert_eq!(written(&known, leads), expected, "{leads:?}");
        }
    }
}
