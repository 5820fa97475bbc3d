//! When a measured rate is worth a status write. Rates change all the time; a write per change would be a storm.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use gqla_api::GQLADeploymentStatus;

/// Shortest time between two writes that change nothing but rates.
const QUIET: Duration = Duration::from_secs(30);
/// Smallest relative change worth a write.
const NOTABLE: f64 = 0.1;

/// The rates to publish: the measured ones when one of them changed notably and the last publication is long enough
/// ago, otherwise those of the previous status.
pub fn to_publish(
    previous: Option<&GQLADeploymentStatus>,
    measured: BTreeMap<String, f64>,
    last: Option<Instant>,
    now: Instant,
) -> BTreeMap<String, f64> {
    let before: BTreeMap<String, f64> = previous
        .into_iter()
        .flat_map(|status| &status.pools)
        .filter_map(|pool| Some((pool.name.clone(), pool.measured_tokens_per_second?)))
        .collect();
    let recent = last.is_some_and(|last| now.saturating_duration_since(last) < QUIET);
    if recent || !notable(&before, &measured) { before } else { measured }
}

fn notable(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> bool {
    let changed = |(name, new): (&String, &f64)| {
        before.get(name).is_none_or(|old| (old - new).abs() > NOTABLE * old.abs().max(f64::MIN_POSITIVE))
    };
    after.iter().any(changed) || before.keys().any(|name| !after.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(value: f64) -> BTreeMap<String, f64> {
        BTreeMap::from([("a".to_owned(), value)])
    }

    #[test]
    fn small_changes_are_kept_back() {
        for (old, new, expected) in
            [(100.0, 105.0, false), (100.0, 120.0, true), (0.0, 0.0, false), (0.0, 1.0, true)]
        {
            assert_eq!(notable(&rates(old), &rates(new)), expected, "{old} {new}");
        }
        assert!(notable(&rates(1.0), &BTreeMap::new()), "a pool that cannot be reached has no rate");
    }

    #[test]
    fn quick_changes_are_kept_back() {
        let now = Instant::now();
        assert_eq!(to_publish(None, rates(5.0), Some(now), now + Duration::from_secs(5)), BTreeMap::new());
        assert_eq!(to_publish(None, rates(5.0), Some(now), now + Duration::from_secs(31)), rates(5.0));
        assert_eq!(to_publish(None, rates(5.0), None, now), rates(5.0));
    }
}
