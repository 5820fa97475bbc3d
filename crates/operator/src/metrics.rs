//! What the operator counts. Names of objects are no labels here, except where a series is about them.

use std::{collections::BTreeMap, time::Duration};

use gqla_fleet::{Hardware, ProblemKind};
use gqla_telemetry::prometheus::{
    self, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use parking_lot::Mutex;
use std::sync::Arc;

use crate::scrape::Series;

/// Seconds; a pass is a handful of requests, a struggling API server makes it tens of seconds.
const BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The operator's metrics.
#[derive(Clone)]
pub struct Metrics {
    reconciles: IntCounterVec,
    errors: IntCounterVec,
    duration: Histogram,
    leader: prometheus::IntGauge,
    scrape_failures: IntCounter,
    throughput: GaugeVec,
    fleet_nodes: IntGaugeVec,
    fleet_problems: IntGaugeVec,
    /// Label values published last, to withdraw those that are gone.
    published: Arc<Mutex<BTreeMap<Series, f64>>>,
}

impl Metrics {
    /// Registers everything with `registry`.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            reconciles: IntCounterVec::new(
                Opts::new("gqla_operator_reconciles_total", "Passes over a GQLADeployment, by outcome."),
                &["outcome"],
            )?,
            errors: IntCounterVec::new(
                Opts::new("gqla_operator_reconcile_errors_total", "Passes that failed, by kind of failure."),
                &["kind"],
            )?,
            duration: Histogram::with_opts(
                HistogramOpts::new("gqla_operator_reconcile_duration_seconds", "Duration of a pass.")
                    .buckets(BUCKETS.to_vec()),
            )?,
            leader: prometheus::IntGauge::new(
                "gqla_operator_leader",
                "1 while this process holds the Lease.",
            )?,
            scrape_failures: IntCounter::new(
                "gqla_operator_scrape_failures_total",
                "Serving pods whose metrics could not be read.",
            )?,
            throughput: GaugeVec::new(
                Opts::new(
                    "gqla_path_throughput_tokens_per_second",
                    "Tokens generated per second and decode path, from the pods' own counters. Absent when a ready pod \
                     of the pool cannot be reached.",
                ),
                &["namespace", "deployment", "pool", "gpu_class", "path"],
            )?,
            fleet_nodes: IntGaugeVec::new(
                Opts::new("gqla_fleet_nodes", "Nodes by the GPU class they count as; none is no class."),
                &["class"],
            )?,
            fleet_problems: IntGaugeVec::new(
                Opts::new("gqla_fleet_problems", "Problems of nodes, by kind."),
                &["kind"],
            )?,
            published: Arc::default(),
        };
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.scrape_failures.clone()))?;
        registry.register(Box::new(metrics.throughput.clone()))?;
        registry.register(Box::new(metrics.fleet_nodes.clone()))?;
        registry.register(Box::new(metrics.fleet_problems.clone()))?;
        Ok(metrics)
    }

    /// Counts a pass; `error` is the kind of its failure.
    pub fn observe(&self, duration: Duration, error: Option<&'static str>) {
        self.duration.observe(duration.as_secs_f64());
        self.reconciles.with_label_values(&[if error.is_some() { "failed" } else { "done" }]).inc();
        if let Some(kind) = error {
            self.errors.with_label_values(&[kind]).inc();
        }
    }

    /// Says whether this process holds the Lease.
    pub fn set_leader(&self, leading: bool) {
        self.leader.set(i64::from(leading));
    }

    /// Counts pods whose metrics could not be read.
    pub fn scrapes_failed(&self, pods: u64) {
        self.scrape_failures.inc_by(pods);
    }

    /// Counts nodes by class and problems by kind. A kind without a problem is 0, so that alerts need no absent().
    pub fn set_fleet(&self, hardware: &Hardware) {
        let mut classes: BTreeMap<&str, i64> = BTreeMap::new();
        let mut kinds: BTreeMap<ProblemKind, i64> = ProblemKind::ALL.map(|kind| (kind, 0)).into();
        for node in &hardware.nodes {
            *classes.entry(node.recognition.class().unwrap_or("none")).or_default() += 1;
            for problem in &node.problems {
                *kinds.entry(problem.kind).or_default() += 1;
            }
        }
        self.fleet_nodes.reset();
        for (class, count) in classes {
            self.fleet_nodes.with_label_values(&[class]).set(count);
        }
        for (kind, count) in kinds {
            self.fleet_problems.with_label_values(&[kind.as_str()]).set(count);
        }
    }

    /// Publishes these series and withdraws all others.
    pub fn set_throughput(&self, series: BTreeMap<Series, f64>) {
        let mut published = self.published.lock();
        for gone in published.keys().filter(|old| !series.contains_key(old)) {
            // Only fails for labels that were never set.
            let _ = self.throughput.remove_label_values(&gone.labels());
        }
        for (labels, rate) in &series {
            self.throughput.with_label_values(&labels.labels()).set(*rate);
        }
        *published = series;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(pool: &str) -> Series {
        Series {
            namespace: "n".to_owned(),
            deployment: "d".to_owned(),
            pool: pool.to_owned(),
            gpu_class: "H20".to_owned(),
            path: "gqa".to_owned(),
        }
    }

    #[test]
    fn series_that_are_gone_are_withdrawn() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let text = || prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        metrics.set_throughput(BTreeMap::from([(series("a"), 5.0), (series("b"), 0.0)]));
        let line = "gqla_path_throughput_tokens_per_second{deployment=\"d\",gpu_class=\"H20\",namespace=\"n\",\
                    path=\"gqa\",pool=\"a\"} 5";
        assert!(text().contains(line), "{}", text());
        metrics.set_throughput(BTreeMap::from([(series("b"), 1.0)]));
        assert!(!text().contains("pool=\"a\"") && text().contains("pool=\"b\""), "{}", text());
    }
}
