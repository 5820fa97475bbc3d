//! A synchronous index over a watch: what it saw goes in, and whether anything changed comes out.

use std::collections::BTreeMap;

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
    /// The watch starts over: what follows through [`Self::restarted`] replaces everything.
    pub fn restart(&mut self) {
        self.incoming = Some(BTreeMap::new());
    }

    /// One object of the new listing; `None` when it does not belong here. An object that is as it was keeps its old
    /// value, so that shared values stay shared.
    pub fn restarted(&mut self, key: String, value: Option<V>)
    where
        V: Clone,
    {
        let value = value.map(|value| match self.values.get(&key) {
            Some(known) if *known == value => known.clone(),
            _ => value,
        });
        if let (Some(incoming), Some(value)) = (&mut self.incoming, value) {
            incoming.insert(key, value);
        }
    }

    /// The new listing is complete.
    pub fn finish(&mut self) -> bool {
        let incoming = self.incoming.take().unwrap_or_default();
        let changed = !self.complete || incoming != self.values;
        self.values = incoming;
        self.complete = true;
        changed
    }

    /// An object as it is now; `None` when it does not belong here.
    pub fn set(&mut self, key: String, value: Option<V>) -> bool {
        let Some(value) = value else { return self.remove(&key) };
        let changed = self.values.get(&key) != Some(&value);
        if changed {
            self.values.insert(key, value);
        }
        changed
    }

    /// An object is gone.
    pub fn remove(&mut self, key: &str) -> bool {
        self.values.remove(key).is_some()
    }

    /// Whether the first listing is complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&V> {
        self.values.get(key)
    }

    /// The values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.values.values()
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        "a".to_owned()
    }

    #[test]
    fn only_changes_that_matter_are_reported() {
        let mut index = Index::default();
        index.restart();
        index.restarted(key(), Some(1));
        assert!(!index.is_complete());
        assert!(index.finish());
        assert!(!index.set(key(), Some(1)));
        assert!(index.set(key(), Some(2)));
        assert!(index.set(key(), None), "a value that no longer belongs here is removed");
        assert!(!index.remove("a"));
    }

    #[test]
    fn a_restarted_watch_drops_what_is_gone_and_only_then() {
        let mut index = Index::default();
        index.restart();
        index.restarted(key(), Some(1));
        index.restarted("b".to_owned(), Some(1));
        index.finish();
        index.restart();
        index.restarted("b".to_owned(), Some(1));
        assert_eq!(index.values().count(), 2, "the old values serve until the new ones are complete");
        assert!(index.finish());
        assert_eq!(index.values().count(), 1);
    }
}
