//! Probes and metrics on a port and a thread of their own.
//!
//! Decoding keeps every core and every worker of the main runtime busy. A probe that queues behind it times out, the
//! kubelet restarts a healthy pod, and the load moves to the next one. So: one thread, one single-threaded runtime,
//! and handlers that only read state.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

use crate::{Health, HttpLimits, Probe, serve};

const LIMITS: HttpLimits = HttpLimits {
    header_timeout: Duration::from_secs(10),
    write_timeout: Duration::from_secs(10),
    max_connections: 64,
};

/// Time the last answers get once the server is told to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why the admin server did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is taken or not ours.
    #[error("the admin server cannot listen on {address}; choose another address or free that port")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No thread or no event loop to be had.
    #[error("the admin server's thread cannot be started")]
    Thread(#[source] io::Error),
}

/// A running admin server: `/livez`, `/readyz`, `/startupz` and `/metrics`. Dropping it stops it.
pub struct AdminServer {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Listens on `address` (port 0 picks one) and answers from then on, whatever other threads do.
    pub fn start(
        address: SocketAddr,
        health: Arc<dyn Health>,
        registry: Registry,
    ) -> Result<Self, AdminError> {
        let listen = |source| AdminError::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Thread)?;
        let listener = {
            let _guard = runtime.enter();
            tokio::net::TcpListener::from_std(listener).map_err(listen)?
        };
        let stop = CancellationToken::new();
        let served = serve(listener, router(health, registry), LIMITS, stop.clone());
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || runtime.block_on(until_stopped(served, stopped)))
            .map_err(AdminError::Thread)?;
        Ok(Self { address: local, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn until_stopped(served: impl Future<Output = ()>, stop: CancellationToken) {
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        () = served => {}
        () = deadline => {}
    }
}

fn router(health: Arc<dyn Health>, registry: Registry) -> Router {
    let probes = Router::new()
        .route("/livez", get(|State(health): State<Arc<dyn Health>>| async move { answer(health.live()) }))
        .route("/readyz", get(|State(health): State<Arc<dyn Health>>| async move { answer(health.ready()) }))
        .route(
            "/startupz",
            get(|State(health): State<Arc<dyn Health>>| async move { answer(health.started()) }),
        )
        .with_state(health);
    probes.merge(Router::new().route("/metrics", get(metrics)).with_state(registry))
}

fn answer(probe: Probe) -> (StatusCode, String) {
    match probe {
        Probe::Ok => (StatusCode::OK, "ok\n".to_owned()),
        Probe::NotOk(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(registry): State<Registry>) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be encoded: {error}\n"))
            .into_response(),
    }
}
