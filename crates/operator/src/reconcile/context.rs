//! What passes share.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kube::Client;
use parking_lot::Mutex;

use super::backoff::Backoff;
use crate::{events::Events, fleet::Fleet, metrics::Metrics, scrape::Throughput};

/// What passes share.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The cluster's hardware.
    pub fleet: Fleet,
    /// Measured tokens per second.
    pub throughput: Throughput,
    /// Where decisions and failures are told.
    pub events: Events,
    /// Where passes are counted.
    pub metrics: Metrics,
    /// Image of pods whose GQLADeployment names none.
    pub server_image: String,
    /// Longest a pass may take.
    pub timeout: Duration,
    /// Failures in a row.
    pub backoff: Backoff,
    /// When rates were last written, by UID.
    pub rates_written: Mutex<HashMap<String, Instant>>,
}

impl Context {
    /// Shared state of passes against `client`.
    pub fn new(
        client: Client,
        fleet: Fleet,
        throughput: Throughput,
        metrics: Metrics,
        identity: &str,
    ) -> Self {
        Self {
            events: Events::new(client.clone(), identity),
            client,
            fleet,
            throughput,
            metrics,
            server_image: "gqla-server:dev".to_owned(),
            timeout: Duration::from_secs(60),
            backoff: Backoff::default(),
            rates_written: Mutex::default(),
        }
    }
}
