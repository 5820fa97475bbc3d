//! Wires everything together, and ends it in order.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use gqla_api::inventory::{DriverState, NodeInventory};
use gqla_telemetry::{AdminServer, prometheus::Registry, shutdown_signal};
use kube::Client;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    args::Args,
    facts::{Reading, Refusal},
    merge::{Faults, adopt, attribute, merge},
    metrics::Metrics,
    nvml::{self, Answer, Message, Search},
    publish::{Pace, publish},
    state::State,
};

/// Messages of the NVML thread that may wait; it says at most two between two waits.
const QUEUE: usize = 4;
/// How much longer than its longest wait the loop may be silent before the process counts as dead.
const SLACK: Duration = Duration::from_secs(30);

/// Settings of a running agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the Node.
    pub node: String,
    /// Where the driver's library is.
    pub search: Search,
    /// Time between two readings.
    pub period: Duration,
    /// Time after which a driver that does not answer is hanging.
    pub nvml_timeout: Duration,
    /// When the Node is read and written again.
    pub pace: Pace,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When there is no cluster to talk to, or the admin port is taken.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let stop = shutdown_signal().context("signals cannot be handled")?;
    let client =
        Client::try_default().await.context("no cluster: neither a kubeconfig nor a service account")?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).context("metrics cannot be registered")?;
    let config = Config {
        node: args.node_name,
        search: Search { loader: true, driver_root: args.driver_root },
        period: args.period,
        nvml_timeout: args.nvml_timeout,
        pace: Pace::default(),
    };
    let state = Arc::new(State::new(config.period + config.nvml_timeout + SLACK));
    let _admin = AdminServer::start(args.admin_listen, state.clone(), registry)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = config.node, "agent started");
    tokio::select! {
        () = stop.cancelled() => Ok(ExitCode::SUCCESS),
        ended = follow(config, client, metrics, &state) => {
            ended?;
            tracing::error!("the agent has nothing left to follow; a restart begins anew");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Follows the GPUs of the node and keeps the Node and the metrics up to date. Goes on until it is dropped.
///
/// # Errors
/// When no thread can be started.
pub async fn follow(config: Config, client: Client, metrics: Metrics, state: &State) -> std::io::Result<()> {
    let (send, messages) = mpsc::channel(QUEUE);
    let (send_stored, stored) = oneshot::channel();
    let (wanted, to_publish) = watch::channel(None);
    nvml::watch(config.search.clone(), config.period, send)?;
    let publishing =
        publish(client, config.node.clone(), config.pace, metrics.clone(), state, send_stored, to_publish);
    tokio::select! {
        () = publishing => {}
        () = conclude(&config, messages, stored, &wanted, &metrics, state) => {}
    }
    Ok(())
}

/// Turns messages into inventories, until the thread that sends them ends.
async fn conclude(
    config: &Config,
    mut messages: mpsc::Receiver<Message>,
    mut stored: oneshot::Receiver<NodeInventory>,
    wanted: &watch::Sender<Option<NodeInventory>>,
    metrics: &Metrics,
    state: &State,
) {
    let mut view = View::default();
    // Asked from the start: opening the library is a call, too.
    let mut patience = config.nvml_timeout;
    loop {
        state.beat();
        tokio::select! {
            // Stored facts are taken in before what is newer than they are.
            biased;
            known = &mut stored, if !view.adopted => view.adopt(known.unwrap_or_default()),
            message = tokio::time::timeout(patience, messages.recv()) => match message {
                Ok(None) => return,
                Ok(Some(Message::Asking)) => {
                    patience = config.nvml_timeout;
                    continue;
                }
                Ok(Some(Message::Answered(answer))) => {
                    patience = config.period + config.nvml_timeout;
                    metrics.read_took(answer.took);
                    view.take(answer, metrics);
                }
                Err(_) => view.conclude(Reading::Refused(hanging(config.nvml_timeout))),
            },
        }
        if let Some(reading) = &view.reading {
            metrics.show(&view.inventory, reading);
        }
        if view.adopted && view.reading.is_some() {
            wanted.send_if_modified(|last| {
                let changed = last.as_ref() != Some(&view.inventory);
                if changed {
                    state.changed();
                    *last = Some(view.inventory.clone());
                }
                changed
            });
        }
    }
}

fn hanging(patience: Duration) -> Refusal {
    Refusal {
        state: DriverState::Hanging,
        message: format!(
            "the driver did not answer within {} s; see the node's kernel log for lines of NVRM, a restart of the node may be \
             needed",
            patience.as_secs_f64()
        ),
    }
}

/// What is known of the node.
#[derive(Default)]
struct View {
    inventory: NodeInventory,
    faults: Faults,
    reading: Option<Reading>,
    adopted: bool,
}

impl View {
    /// Takes in what the Node held when the agent started.
    fn adopt(&mut self, stored: NodeInventory) {
        self.adopted = true;
        self.inventory = match self.reading {
            Some(_) => adopt(&stored, std::mem::take(&mut self.inventory)),
            None => stored,
        };
    }

    fn take(&mut self, answer: Answer, metrics: &Metrics) {
        let reported = attribute(&answer.events, &self.inventory, &answer.reading);
        for (gpu, error) in &reported {
            tracing::warn!(gpu, ?error, "a GPU reported an error");
            metrics.reported(*gpu, *error);
        }
        let of_gpus: Vec<_> = reported.into_iter().filter_map(|(gpu, error)| Some((gpu?, error))).collect();
        self.faults.follow(&self.inventory, &answer.reading, &of_gpus);
        self.conclude(answer.reading);
    }

    fn conclude(&mut self, reading: Reading) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let next = merge(&self.inventory, &reading, &self.faults, &now);
        if next.driver != self.inventory.driver || self.reading.is_none() {
            let message = next.message.as_deref().unwrap_or("it answers");
            tracing::info!(driver = ?next.driver, gpus = next.gpus.len(), message, "state of the driver");
        }
        self.inventory = next;
        self.reading = Some(reading);
    }
}

#[cfg(test)]
mod tests {
    use gqla_api::inventory::GpuHealth;
    use gqla_telemetry::prometheus::TextEncoder;

    use super::*;
    use crate::facts::{Event, Facts, GpuError, GpuReading, Seen};

    #[test]
    fn what_a_gpu_reported_before_a_refusal_is_counted_and_kept() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let mut view = View::default();
        let mut take = |reading: Reading, events: Vec<Event>| {
            view.take(Answer { reading, events, took: Duration::ZERO }, &metrics);
            view.inventory.gpus.first().map(|gpu| gpu.health)
        };
        let seen = || GpuReading::Seen(Box::<Seen>::default());
        let answered =
            || Reading::Answered(Facts { cuda_driver: 12_040, gpus: vec![seen()], ..Facts::default() });
        let refused = |state| Reading::Refused(Refusal { state, message: "why".to_owned() });
        let events = [Some(0), None].map(|gpu| Event { gpu, error: GpuError::Xid(48) });
        assert_eq!(take(answered(), vec![]), Some(GpuHealth::Healthy));
        take(refused(DriverState::Failing), events.to_vec());
        assert_eq!(take(answered(), vec![]), Some(GpuHealth::Xid(48)));
        let shown = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for gpu in ["0", "unknown"] {
            let line = format!("gqla_agent_gpu_xid_errors_total{{gpu=\"{gpu}\",xid=\"48\"}} 1");
            assert!(shown.contains(&line), "{line} is not in {shown}");
        }
    }
}
