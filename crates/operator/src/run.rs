//! Wires everything together, and ends it in order.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures::StreamExt as _;
use gqla_api::{
    GQLADeployment,
    labels::{MANAGED_BY, MANAGER},
};
use gqla_decide::{LARGEST_CALIBRATION, parse_calibration};
use gqla_planner::Calibration;
use gqla_telemetry::{AdminServer, CancellationToken, Health, Probe, prometheus::Registry, shutdown_signal};
use k8s_controller::LeaderElection;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, batch::v1::Job, core::v1::Service},
};
use kube::{
    Api, Client, Resource,
    core::DeserializeGuard,
    runtime::{Controller, controller, watcher},
};
use tokio::sync::watch;

use crate::{
    args::Settings,
    fleet::{Fleet, Sources},
    metrics::Metrics,
    reconcile::{Context, error_policy, reconcile},
    scrape::Throughput,
};

/// A fleet that scales up changes a hundred times a minute; plans follow at most this often.
const FLEET_DEBOUNCE: Duration = Duration::from_secs(1);
/// Longest passes under way may take after SIGTERM.
const LAST_PASSES: Duration = Duration::from_secs(10);

/// Runs the operator until SIGTERM, SIGINT or the loss of the Lease.
///
/// # Errors
/// When the calibration cannot be read, the cluster cannot be reached at start or the admin port is taken.
pub async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let calibration = settings.calibration.as_deref().map(calibration).transpose()?.unwrap_or_default();
    let stop = shutdown_signal().context("signals cannot be handled")?;
    let client =
        Client::try_default().await.context("no cluster: neither a kubeconfig nor a service account")?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).context("metrics cannot be registered")?;
    let state = Arc::new(State::default());
    let _admin = AdminServer::start(settings.admin_listen, state.clone(), registry)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity = settings.identity, "operator started");

    let fleet = Fleet::default().calibrated(calibration);
    let sources =
        Sources { agents: settings.lease_namespace.clone(), resource_slices: settings.resource_slices };
    let following = tokio::spawn({
        let (fleet, client, metrics) = (fleet.clone(), client.clone(), metrics.clone());
        async move { tokio::join!(fleet.follow(client, &sources), count(&fleet, &metrics)) }
    });
    let outcome = lead(&settings, &client, &fleet, &metrics, &state, &stop).await;
    following.abort();
    Ok(outcome)
}

fn calibration(file: &Path) -> anyhow::Result<Calibration> {
    let mut text = String::new();
    File::open(file)
        .and_then(|opened| opened.take(LARGEST_CALIBRATION + 1).read_to_string(&mut text))
        .with_context(|| format!("--calibration: cannot read {}", file.display()))?;
    let calibration = parse_calibration(&text)
        .with_context(|| format!("--calibration: {} cannot be used", file.display()))?;
    let (kernels, devices) = (calibration.kernels.len(), calibration.devices.len());
    tracing::info!(kernels, devices, "plans use the calibration");
    Ok(calibration)
}

/// Waits for the fleet and the Lease, then acts until told to stop.
async fn lead(
    settings: &Settings,
    client: &Client,
    fleet: &Fleet,
    metrics: &Metrics,
    state: &State,
    stop: &CancellationToken,
) -> ExitCode {
    tokio::select! {
        () = stop.cancelled() => return ExitCode::SUCCESS,
        () = fleet.wait_ready() => state.ready.store(true, Ordering::Relaxed),
    }
    let election = LeaderElection::new(
        client.clone(),
        &settings.lease_namespace,
        &settings.lease_name,
        &settings.identity,
    );
    let work = async {
        state.leading.store(true, Ordering::Relaxed);
        act(settings, client, fleet, metrics, stop).await;
    };
    // A standby leaves at once; a leader ends its passes and hands the Lease over.
    let standby_stopped = async {
        stop.cancelled().await;
        if state.leading.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let led = tokio::select! {
        led = election.with_lease(work) => led,
        () = standby_stopped => return ExitCode::SUCCESS,
    };
    metrics.set_leader(false);
    if led.is_none() {
        tracing::error!("the Lease was lost; another process may act now, so this one ends");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

async fn act(
    settings: &Settings,
    client: &Client,
    fleet: &Fleet,
    metrics: &Metrics,
    stop: &CancellationToken,
) {
    metrics.set_leader(true);
    let throughput = Throughput::default();
    let mut context =
        Context::new(client.clone(), fleet.clone(), throughput.clone(), metrics.clone(), &settings.identity);
    context.server_image.clone_from(&settings.server_image);
    context.timeout = settings.reconcile_timeout;
    let scraping = throughput.follow(
        client.clone(),
        settings.namespace.clone(),
        settings.scrape_interval,
        metrics.clone(),
    );
    tokio::select! {
        () = scraping => {}
        () = control(settings, client, fleet, Arc::new(context), stop) => {}
    }
}

async fn control(
    settings: &Settings,
    client: &Client,
    fleet: &Fleet,
    context: Arc<Context>,
    stop: &CancellationToken,
) {
    let ours = || watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
    let namespace = settings.namespace.as_deref();
    let deployments: Api<DeserializeGuard<GQLADeployment>> = api(client, namespace);
    let config =
        controller::Config::default().concurrency(settings.concurrency).debounce(Duration::from_millis(200));
    let stopping = stop.clone();
    let passes = Controller::new(deployments, watcher::Config::default())
        .with_config(config)
        .owns(api::<Deployment>(client, namespace), ours())
        .owns(api::<Service>(client, namespace), ours())
        .owns(api::<Job>(client, namespace), ours())
        .reconcile_all_on(fleet_changes(fleet.subscribe()))
        .graceful_shutdown_on(async move { stopping.cancelled().await })
        .run(reconcile, error_policy, context)
        .for_each(|result| async move {
            if let Err(controller::Error::QueueError(error)) = result {
                tracing::warn!(%error, "a watch failed and is retried");
            }
        });
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_PASSES).await;
    };
    tokio::select! {
        () = passes => {}
        () = late => tracing::warn!("passes under way were cut off; the next leader repeats them"),
    }
}

/// Keeps the metrics of the fleet up to date.
async fn count(fleet: &Fleet, metrics: &Metrics) {
    let mut changes = Box::pin(fleet_changes(fleet.subscribe()));
    while changes.next().await.is_some() {
        metrics.set_fleet(&fleet.snapshot().hardware);
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn fleet_changes(changes: watch::Receiver<u64>) -> impl futures::Stream<Item = ()> + Send + 'static {
    futures::stream::unfold(changes, |mut changes| async move {
        changes.changed().await.ok()?;
        tokio::time::sleep(FLEET_DEBOUNCE).await;
        changes.borrow_and_update();
        Some(((), changes))
    })
}

/// What probes are told. A standby is ready: it could take over at once.
#[derive(Default)]
struct State {
    ready: AtomicBool,
    leading: AtomicBool,
}

impl Health for State {
    fn live(&self) -> Probe {
        Probe::Ok
    }

    fn ready(&self) -> Probe {
        if self.ready.load(Ordering::Relaxed) {
            Probe::Ok
        } else {
            Probe::NotOk("Nodes and GPUClasses have not been listed yet; are the CRDs installed?".to_owned())
        }
    }

    fn started(&self) -> Probe {
        Probe::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_calibration_is_told_by_file_and_reason() {
        let missing = format!("{:#}", calibration(Path::new("/nowhere/calibration.json")).unwrap_err());
        assert!(missing.starts_with("--calibration: cannot read /nowhere/calibration.json: "), "{missing}");
        let other = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let sentence = format!("{:#}", calibration(Path::new(other)).unwrap_err());
        assert!(sentence.contains("Cargo.toml cannot be used: expected a JSON object"), "{sentence}");
    }
}
