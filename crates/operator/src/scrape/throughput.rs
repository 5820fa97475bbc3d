//! Reads all pods again and again, and holds the rates.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use gqla_api::labels::{COMPONENT, COMPONENT_SERVER, MANAGED_BY, MANAGER};
use gqla_fleet::Index;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use parking_lot::RwLock;
use tokio::time::MissedTickBehavior;

use super::{PodRates, Reading, Series, ServingPod, per_series, rate, read::Reader};
use crate::{fleet::apply, metrics::Metrics};

/// Pods read at once.
const CONCURRENCY: usize = 32;

#[derive(Default)]
struct State {
    pods: Index<ServingPod>,
    series: BTreeMap<Series, f64>,
}

/// Measured tokens per second of all pools.
#[derive(Clone, Default)]
pub struct Throughput(Arc<RwLock<State>>);

impl Throughput {
    /// Tokens per second by pool of one GQLADeployment, over all paths its pods decode on.
    pub fn of_deployment(&self, namespace: &str, deployment: &str) -> BTreeMap<String, f64> {
        let state = self.0.read();
        let own = state
            .series
            .iter()
            .filter(|(series, _)| series.namespace == namespace && series.deployment == deployment);
        let mut pools = BTreeMap::new();
        for (series, rate) in own {
            *pools.entry(series.pool.clone()).or_insert(0.0) += rate;
        }
        pools
    }

    /// Follows and reads pods until dropped, publishing to `metrics` after every round.
    pub async fn follow(
        &self,
        client: Client,
        namespace: Option<String>,
        interval: Duration,
        metrics: Metrics,
    ) {
        tokio::join!(self.follow_pods(client, namespace), self.read_pods(interval, metrics));
    }

    async fn follow_pods(&self, client: Client, namespace: Option<String>) {
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(client, &namespace),
            None => Api::all(client),
        };
        let labels = format!("{MANAGED_BY}={MANAGER},{COMPONENT}={COMPONENT_SERVER}");
        let mut stream =
            std::pin::pin!(watcher(api, watcher::Config::default().labels(&labels)).default_backoff());
        while let Some(event) = stream.next().await {
            match event {
                Ok(event) => {
                    apply(&mut self.0.write().pods, event, ServingPod::prune);
                }
                Err(error) => tracing::warn!(%error, "watching pods failed; the last known ones are read"),
            }
        }
    }

    async fn read_pods(&self, interval: Duration, metrics: Metrics) {
        let reader = Reader::new();
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before: BTreeMap<String, Reading> = BTreeMap::new();
        loop {
            ticks.tick().await;
            let pods: Vec<ServingPod> = self.0.read().pods.values().cloned().collect();
            let (rates, unreachable) = round(&reader, &pods, &mut before).await;
            metrics.scrapes_failed(unreachable.len() as u64);
            let series = per_series(&pods, &rates, &unreachable);
            self.0.write().series.clone_from(&series);
            metrics.set_throughput(series);
        }
    }
}

/// Reads every pod once. A pod's first reading is only what the next is compared with.
async fn round(
    reader: &Reader,
    pods: &[ServingPod],
    before: &mut BTreeMap<String, Reading>,
) -> (BTreeMap<String, PodRates>, BTreeSet<String>) {
    let reads = pods.iter().map(|pod| async move { (pod, reader.read(&pod.ip).await, Instant::now()) });
    let answers: Vec<_> = stream::iter(reads).buffer_unordered(CONCURRENCY).collect().await;
    let (mut rates, mut unreachable) = (BTreeMap::new(), BTreeSet::new());
    for (pod, answer, at) in answers {
        match answer {
            Ok(tokens) => {
                let after = Reading { at, tokens };
                if let Some(before) = before.get(&pod.uid) {
                    rates.insert(pod.uid.clone(), rate(before, &after));
                }
                before.insert(pod.uid.clone(), after);
            }
            Err(error) => {
                tracing::debug!(pod = pod.uid, ip = pod.ip, %error, "metrics cannot be read");
                unreachable.insert(pod.uid.clone());
            }
        }
    }
    before.retain(|uid, _| pods.iter().any(|pod| &pod.uid == uid));
    (rates, unreachable)
}
