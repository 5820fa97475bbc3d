//! From counters to rates. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::ServingPod;

/// Labels of one throughput series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    /// Namespace of the GQLADeployment.
    pub namespace: String,
    /// Its name (its label, when the name is longer than a label may be).
    pub deployment: String,
    /// Pool.
    pub pool: String,
    /// GPU class planned for.
    pub gpu_class: String,
    /// `mqa_absorb` or `gqa`.
    pub path: String,
}

impl Series {
    /// Values in the order of the metric's labels.
    pub fn labels(&self) -> [&str; 5] {
        [&self.namespace, &self.deployment, &self.pool, &self.gpu_class, &self.path]
    }
}

/// One pod's token counters at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// When they were read.
    pub at: Instant,
    /// Tokens generated since the process started, by path.
    pub tokens: BTreeMap<String, f64>,
}

/// Tokens per second of one pod, by path.
pub type PodRates = BTreeMap<String, f64>;

/// Tokens per second between two readings. A counter that fell was reset by a restart, so all it shows is new.
pub fn rate(before: &Reading, after: &Reading) -> PodRates {
    let elapsed = after.at.saturating_duration_since(before.at);
    if elapsed < Duration::from_millis(1) {
        return PodRates::new();
    }
    let per_path = |(path, now): (&String, &f64)| {
        let then = before.tokens.get(path).copied().unwrap_or(0.0);
        let generated = if *now >= then { now - then } else { *now };
        (path.clone(), generated / elapsed.as_secs_f64())
    };
    after.tokens.iter().map(per_path).collect()
}

/// Sums pods into series. A pool with a pod that could not be read has no series: a partial sum would look like a
/// slow pool.
pub fn per_series<'a>(
    pods: impl IntoIterator<Item = &'a ServingPod>,
    rates: &BTreeMap<String, PodRates>,
    unreachable: &BTreeSet<String>,
) -> BTreeMap<Series, f64> {
    let pods: Vec<_> = pods.into_iter().collect();
    let pool = |pod: &ServingPod| (pod.namespace.clone(), pod.deployment.clone(), pod.pool.clone());
    let partial: BTreeSet<_> =
        pods.iter().filter(|pod| unreachable.contains(&pod.uid)).map(|pod| pool(pod)).collect();
    let mut sums = BTreeMap::new();
    for pod in pods.iter().filter(|candidate| !partial.contains(&pool(candidate))) {
        for (path, rate) in rates.get(&pod.uid).into_iter().flatten() {
            let series = Series {
                namespace: pod.namespace.clone(),
                deployment: pod.deployment.clone(),
                pool: pod.pool.clone(),
                gpu_class: pod.gpu_class.clone(),
                path: path.clone(),
            };
            *sums.entry(series).or_insert(0.0) += rate;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(start: Instant, second: u64, tokens: &[(&str, f64)]) -> Reading {
        Reading {
            at: start + Duration::from_secs(second),
            tokens: tokens.iter().map(|(path, count)| ((*path).to_owned(), *count)).collect(),
        }
    }

    #[test]
    fn rates_survive_restarts_and_new_paths() {
        type Counts = [(&'static str, f64)];
        let start = Instant::now();
        let cases: [(&Counts, &Counts, &Counts); 5] = [
            (&[("gqa", 100.0)], &[("gqa", 150.0)], &[("gqa", 10.0)]),
            (&[("gqa", 100.0)], &[("gqa", 100.0)], &[("gqa", 0.0)]),
            (&[("gqa", 100.0)], &[("gqa", 20.0)], &[("gqa", 4.0)]),
            (&[("gqa", 100.0)], &[("mqa_absorb", 5.0)], &[("mqa_absorb", 1.0)]),
            (&[("gqa", 100.0)], &[], &[]),
        ];
        for (before, after, expected) in cases {
            let expected: PodRates =
                expected.iter().map(|(path, rate)| ((*path).to_owned(), *rate)).collect();
            assert_eq!(rate(&reading(start, 0, before), &reading(start, 5, after)), expected);
        }
        assert!(rate(&reading(start, 0, &[]), &reading(start, 0, &[("gqa", 1.0)])).is_empty());
    }

    fn pod(uid: &str, pool: &str) -> ServingPod {
        ServingPod {
            uid: uid.to_owned(),
            namespace: "n".to_owned(),
            deployment: "d".to_owned(),
            pool: pool.to_owned(),
            gpu_class: "H20".to_owned(),
            ip: "10.0.0.1".to_owned(),
        }
    }

    #[test]
    fn pools_are_summed_and_absent_when_a_pod_is_out_of_reach() {
        let pods = [pod("1", "a"), pod("2", "a"), pod("3", "b"), pod("4", "b")];
        let rates = ["1", "2", "3"]
            .into_iter()
            .map(|uid| (uid.to_owned(), PodRates::from([("gqa".to_owned(), 2.0)])))
            .collect();
        let sums = per_series(&pods, &rates, &BTreeSet::from(["4".to_owned()]));
        let sums: Vec<_> = sums.into_iter().map(|(series, rate)| (series.pool, rate)).collect();
        assert_eq!(sums, [("a".to_owned(), 4.0)]);
    }
}
