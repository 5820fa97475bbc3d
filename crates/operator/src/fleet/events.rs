//! Events of a watch, for an index that knows no client.

use gqla_fleet::Index;
use kube::runtime::watcher::Event;

/// Takes one event and says whether the values are now others. `entry` prunes an object to its key and value, or to none
/// when the object does not belong here.
pub fn apply<K, V: Clone + PartialEq>(
    index: &mut Index<V>,
    event: Event<K>,
    entry: impl Fn(K) -> (String, Option<V>),
) -> bool {
    match event {
        Event::Init => {
            index.restart();
            false
        }
        Event::InitApply(object) => {
            let (key, value) = entry(object);
            index.restarted(key, value);
            false
        }
        Event::InitDone => index.finish(),
        Event::Apply(object) => {
            let (key, value) = entry(object);
            index.set(key, value)
        }
        Event::Delete(object) => index.remove(&entry(object).0),
    }
}
