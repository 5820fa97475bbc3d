//! The Node's annotation and labels: written when they differ from what they should be, and read again from time to time,
//! since others can change them and a Node can be made anew.

use std::{collections::BTreeMap, time::Duration};

use gqla_api::{
    inventory::{InventoryError, NodeInventory},
    labels::{AGENT_MANAGER, GPU_DEVICE, GPU_INVENTORY, GPU_MULTIPROCESSORS, GPU_PRODUCT},
};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{metrics::Metrics, state::State};

/// Longest one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Most of the time between two readings that is left out at random, so that a fleet's agents spread out.
const JITTER: f64 = 0.2;

/// When the Node is read and written again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// After failures.
    pub backoff: Backoff,
    /// Longest time until the Node is read again, to write what somebody else changed.
    pub reread: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { backoff: Backoff::default(), reread: Duration::from_secs(300) }
    }
}

impl Pace {
    fn until_reread(self, random: f64) -> Duration {
        self.reread.mul_f64(1.0 - JITTER * random.clamp(0.0, 1.0))
    }
}

/// Waits between tries that fail.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// After many.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(60) }
    }
}

impl Backoff {
    /// Doubles with every failure. Up to a half is taken off at random, so that the agents of a fleet do not come back
    /// to an API server all at once.
    fn delay(self, failures: u32, random: f64) -> Duration {
        let doubled =
            self.first.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(1.0 - 0.5 * random.clamp(0.0, 1.0))
    }
}

/// Why the Node could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The API server refused or did not answer.
    #[error("Node `{node}` cannot be {what}: {source}")]
    Refused {
        /// The Node.
        node: String,
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// No answer in time.
    #[error("Node `{node}` cannot be {what}: no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Late {
        /// The Node.
        node: String,
        /// What was tried.
        what: &'static str,
    },
    /// The inventory is larger than any reader accepts.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
}

/// What the Node holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys {
    annotation: Option<String>,
    device: Option<String>,
    product: Option<String>,
    multiprocessors: Option<String>,
}

impl Keys {
    fn of(inventory: &NodeInventory) -> Result<Self, InventoryError> {
        Ok(Self {
            annotation: Some(inventory.render()?),
            device: Some(inventory.device_label()),
            product: inventory.product_label(),
            multiprocessors: inventory.multiprocessors_label(),
        })
    }

    fn labels(&self) -> BTreeMap<&'static str, &str> {
        let pairs = [
            (GPU_DEVICE, &self.device),
            (GPU_PRODUCT, &self.product),
            (GPU_MULTIPROCESSORS, &self.multiprocessors),
        ];
        pairs.into_iter().filter_map(|(key, value)| value.as_deref().map(|value| (key, value))).collect()
    }
}

/// Hands the inventory that the Node holds to `stored`, then keeps the Node at the newest inventory of `wanted`. Ends when
/// nobody wants anything any more.
pub async fn publish(
    client: Client,
    node: String,
    pace: Pace,
    metrics: Metrics,
    state: &State,
    stored: oneshot::Sender<NodeInventory>,
    mut wanted: watch::Receiver<Option<NodeInventory>>,
) {
    let publisher = Publisher { nodes: Api::all(client), node, metrics };
    let mut failures = 0;
    let first = loop {
        match publisher.read().await {
            Ok(held) => break held,
            Err(error) => wait(&error, &mut failures, pace.backoff, state).await,
        }
    };
    state.reached(false);
    // Nobody listens when the agent is about to end; what it wants is then closed, too.
    let _ = stored.send(inventory_of(&first));
    failures = 0;
    let mut held = Some(first);
    let mut reread = Instant::now() + pace.until_reread(rand::random());
    loop {
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(reread) => {
                held = None;
                reread = Instant::now() + pace.until_reread(rand::random());
            }
        }
        loop {
            let newest = wanted.borrow_and_update().clone();
            let Some(inventory) = newest else { break };
            match publisher.bring(&mut held, &inventory).await {
                Ok(()) => {
                    failures = 0;
                    state.reached(!wanted.has_changed().unwrap_or(false));
                    break;
                }
                Err(error) => wait(&error, &mut failures, pace.backoff, state).await,
            }
        }
    }
}

async fn wait(error: &PublishError, failures: &mut u32, backoff: Backoff, state: &State) {
    state.failed(error);
    *failures = failures.saturating_add(1);
    let delay = backoff.delay(*failures, rand::random());
    tracing::warn!(%error, retry_in_seconds = delay.as_secs_f64(), "the Node is not up to date");
    tokio::time::sleep(delay).await;
}

fn inventory_of(held: &Keys) -> NodeInventory {
    let parsed = held.annotation.as_deref().map(NodeInventory::parse);
    match parsed {
        Some(Ok(inventory)) => inventory,
        Some(Err(error)) => {
            tracing::warn!(%error, "the Node's inventory is not ours and will be replaced");
            NodeInventory::default()
        }
        None => NodeInventory::default(),
    }
}

struct Publisher {
    nodes: Api<Node>,
    node: String,
    metrics: Metrics,
}

impl Publisher {
    async fn read(&self) -> Result<Keys, PublishError> {
        let node = self.request("read", self.nodes.get_metadata(&self.node)).await?;
        let label = |key| node.labels().get(key).cloned();
        Ok(Keys {
            annotation: node.annotations().get(GPU_INVENTORY).cloned(),
            device: label(GPU_DEVICE),
            product: label(GPU_PRODUCT),
            multiprocessors: label(GPU_MULTIPROCESSORS),
        })
    }

    /// Writes `inventory`, unless the Node holds it already. What it holds is read where it is not known, as after a
    /// write that failed: it may have arrived.
    async fn bring(&self, held: &mut Option<Keys>, inventory: &NodeInventory) -> Result<(), PublishError> {
        let keys = Keys::of(inventory)?;
        let current = match held.take() {
            Some(current) => current,
            None => self.read().await?,
        };
        if keys == current {
            *held = Some(keys);
            return Ok(());
        }
        let patch = Patch::Apply(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.node,
                "labels": keys.labels(),
                "annotations": { GPU_INVENTORY: keys.annotation },
            },
        }));
        // Forced, because the keys are the agent's alone: whoever wrote them before was wrong.
        let params = PatchParams::apply(AGENT_MANAGER).force();
        self.request("written", self.nodes.patch_metadata(&self.node, &params, &patch)).await?;
        self.metrics.node_written();
        tracing::info!(driver = ?inventory.driver, gpus = inventory.gpus.len(), "the Node was brought up to date");
        *held = Some(keys);
        Ok(())
    }

    async fn request<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, PublishError> {
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(answer) => answer.map_err(|source| PublishError::Refused {
                node: self.node.clone(),
                what,
                source: Box::new(source),
            }),
            Err(_) => Err(PublishError::Late { node: self.node.clone(), what }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_bound_and_are_spread() {
        let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        let delays = [1, 2, 3, 6, 7, 8, 40].map(|failures| backoff.delay(failures, 0.0).as_secs());
        assert_eq!(delays, [1, 2, 4, 32, 60, 60, 60]);
        assert_eq!(backoff.delay(1, 1.0), Duration::from_millis(500));
    }

    #[test]
    fn readings_are_spread_over_the_last_fifth() {
        let waits = [0.0, 0.5, 1.0].map(|random| Pace::default().until_reread(random).as_secs());
        assert_eq!(waits, [300, 270, 240]);
    }

    #[test]
    fn a_label_without_a_value_is_left_out() {
        let keys = Keys::of(&NodeInventory::default()).unwrap();
        assert_eq!(keys.labels(), BTreeMap::from([(GPU_DEVICE, "none")]));
    }
}
