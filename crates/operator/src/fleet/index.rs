//! A synchronous index over a watch: events go in, and whether anything changed comes out.

use std::collections::BTreeMap;

use kube::runtime::watcher::Event;

/// Values by key, replaced as a whole when the watch is restarted.
#[derive(Debug)]
pub struct Index<V> {
    values: BTreeMap<String, V>,
    /// Values seen since the watch was restarted; `None` outside a restart.
    incoming: Option<BTreeMap<String, V>>,
    complete: bool,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), incoming: None, complete: false }
    }
}

impl<V: PartialEq> Index<V> {
    /// Takes one event and says whether the values are now others. `entry` prunes an object to its key and value, or
    /// to none when the object does not belong here.
    pub fn apply<K>(&mut self, event: Event<K>, entry: impl Fn(K) -> (String, Option<V>)) -> bool {
        match event {
            Event::Init => {
                self.incoming = Some(BTreeMap::new());
                false
            }
            Event::InitApply(object) => {
                let (key, value) = entry(object);
                if let (Some(incoming), Some(value)) = (&mut self.incoming, value) {
                    incoming.insert(key, value);
                }
                false
            }
            Event::InitDone => {
                let incoming = self.incoming.take().unwrap_or_default();
                let changed = !self.complete || incoming != self.values;
                self.values = incoming;
                self.complete = true;
                changed
            }
            Event::Apply(object) => match entry(object) {
                (key, Some(value)) => {
                    let changed = self.values.get(&key) != Some(&value);
                    if changed {
                        self.values.insert(key, value);
                    }
                    changed
                }
                (key, None) => self.values.remove(&key).is_some(),
            },
            Event::Delete(object) => self.values.remove(&entry(object).0).is_some(),
        }
    }

    /// Whether the first listing is complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.values.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry((key, value): (&str, u32)) -> (String, Option<u32>) {
        (key.to_owned(), (value > 0).then_some(value))
    }

    #[test]
    fn only_changes_that_matter_are_reported() {
        let mut index = Index::default();
        assert!(!index.apply(Event::Init, entry));
        assert!(!index.apply(Event::InitApply(("a", 1)), entry));
        assert!(!index.is_complete());
        assert!(index.apply(Event::InitDone, entry));
        assert!(!index.apply(Event::Apply(("a", 1)), entry));
        assert!(index.apply(Event::Apply(("a", 2)), entry));
        assert!(index.apply(Event::Apply(("a", 0)), entry), "a value that no longer belongs here is removed");
        assert!(!index.apply(Event::Delete(("a", 1)), entry));
    }

    #[test]
    fn a_restarted_watch_drops_what_is_gone_and_only_then() {
        let mut index = Index::default();
        for event in [Event::Init, Event::InitApply(("a", 1)), Event::InitApply(("b", 1)), Event::InitDone] {
            index.apply(event, entry);
        }
        index.apply(Event::Init, entry);
        index.apply(Event::InitApply(("b", 1)), entry);
        assert_eq!(index.values().count(), 2, "the old values serve until the new ones are complete");
        assert!(index.apply(Event::InitDone, entry));
        assert_eq!(index.values().count(), 1);
    }
}
