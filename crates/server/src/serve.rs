//! Puts the parts together and runs them from the first probe to the last byte.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use gqla_telemetry::{AdminServer, CancellationToken, HttpLimits, shutdown_signal};
use tokio::net::TcpListener;

use crate::{
    args::Config,
    auth::ApiKey,
    drain::drain,
    health::{AppHealth, Liveness},
    load::load,
    metrics::Metrics,
    routes::router,
    state::{App, Phase, unix_seconds},
};

const HTTP: HttpLimits = HttpLimits {
    header_timeout: Duration::from_secs(30),
    write_timeout: Duration::from_secs(60),
    max_connections: 1024,
};

/// How often it is looked whether the engine failed.
const LOOKS: Duration = Duration::from_millis(250);

/// Time for connections to close once everything is answered.
const CLOSING: Duration = Duration::from_secs(1);

/// Serves until a signal, then drains. An error means the model can't be served, or no more.
pub fn serve(config: Config) -> anyhow::Result<()> {
    let key = config.api_key_file.as_deref().map(ApiKey::read).transpose()?;
    let metrics = Metrics::new(&config.served_name)?;
    let registry = metrics.registry();
    let app = Arc::new(App::new(config.served_name.clone(), unix_seconds(), config.limits, metrics));
    let health = AppHealth { app: Arc::clone(&app), liveness: Liveness(config.liveness_timeout) };
    let admin = AdminServer::start(config.admin_listen, Arc::new(health), registry)?;
    tracing::info!(address = %admin.address(), "probes and metrics");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(run(app, key, config));
    // A model still loading must not hold the process.
    runtime.shutdown_background();
    result
}

async fn run(app: Arc<App>, key: Option<ApiKey>, config: Config) -> anyhow::Result<()> {
    let signal = shutdown_signal().context("cannot listen for SIGTERM")?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another --listen", config.listen))?;
    tracing::info!(address = %listener.local_addr()?, model = config.served_name, "OpenAI API");
    let stop = CancellationToken::new();
    let served =
        tokio::spawn(gqla_telemetry::serve(listener, router(Arc::clone(&app), key), HTTP, stop.clone()));
    let (lame_duck, deadline) = (config.lame_duck, config.drain_timeout);
    let loading = spawn_load(Arc::clone(&app), config)?;
    let failed = tokio::select! {
        failed = failure(loading) => return Err(failed),
        why = death(&app) => Some(why),
        () = signal.cancelled() => None,
    };
    if let Some(why) = failed {
        // Who was being answered has been told, and should hear it.
        stop.cancel();
        let _ = tokio::time::timeout(CLOSING, served).await;
        return Err(anyhow!("the engine failed, and only a new process helps: {why}"));
    }
    drain(app, lame_duck, deadline).await;
    stop.cancel();
    let _ = tokio::time::timeout(CLOSING, served).await;
    tracing::info!("drained");
    Ok(())
}

type Loading = tokio::sync::oneshot::Receiver<anyhow::Result<()>>;

fn spawn_load(app: Arc<App>, config: Config) -> anyhow::Result<Loading> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let work = move || {
        let _ = sender.send(load(&app, &config));
    };
    std::thread::Builder::new().name("load".to_owned()).spawn(work).context("cannot start a thread")?;
    Ok(receiver)
}

/// Ends only when the engine failed, with the reason: after an error of a GPU its context answers nothing more, so that waiting
/// for a liveness probe would only keep clients from another pod.
async fn death(app: &App) -> String {
    let mut looks = tokio::time::interval(LOOKS);
    loop {
        looks.tick().await;
        if let Phase::Ready(model) = app.phase()
            && let Some(why) = model.engine.failure()
        {
            return why;
        }
    }
}

/// Ends only if loading fails.
async fn failure(loading: Loading) -> anyhow::Error {
    match loading.await {
        Ok(Ok(())) => std::future::pending().await,
        Ok(Err(error)) => error,
        Err(_) => anyhow!("the thread that loads the model died; see the log above"),
    }
}
