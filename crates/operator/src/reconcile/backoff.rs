//! How long an object that failed waits: per object, exponential, bounded and spread.

use std::{collections::HashMap, time::Duration};

use gqla_decide::names::hash;
use parking_lot::Mutex;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Failures in a row, by object.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// Notes a failure and says how long to wait.
    pub fn failed(&self, object: &str) -> Duration {
        let mut failures = self.0.lock();
        let count = failures.entry(object.to_owned()).or_default();
        *count = count.saturating_add(1);
        delay(object, *count)
    }

    /// Forgets the failures of an object.
    pub fn succeeded(&self, object: &str) {
        self.0.lock().remove(object);
    }
}

/// Doubles with every failure; up to a fifth is taken off by a hash of the object and count, so that objects that fail
/// together do not come back together.
fn delay(object: &str, failures: u32) -> Duration {
    let doubled = FIRST.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let spread = u32::from_str_radix(&hash(&[object, &failures.to_string()], 4), 16).unwrap_or(0);
    doubled.min(LONGEST).mul_f64(1.0 - 0.2 * f64::from(spread) / f64::from(0x1_0000_u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_end_with_success() {
        let backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.failed("a/b").as_secs_f64()).collect();
        assert!((0.8..=1.0).contains(&waits[0]), "{waits:?}");
        assert!((1.6..=2.0).contains(&waits[1]), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= 300.0) && waits[39] >= 240.0, "{waits:?}");
        backoff.succeeded("a/b");
        assert!(backoff.failed("a/b") <= FIRST);
    }
}
