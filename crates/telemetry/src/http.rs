//! An HTTP/1 accept loop with bounds. `axum::serve` has none: a client that opens a socket and sends half a header
//! would hold a connection for ever, and as many sockets are accepted as the kernel hands out.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

/// A short rest after a failed accept: file descriptors may be exhausted, and trying at once would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What one listener grants its clients.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// Time to send a complete request header, counted from the connection's last answer.
    pub header_timeout: Duration,
    /// Time without a byte leaving while there is something to send, after which a client counts as gone.
    pub write_timeout: Duration,
    /// Sockets served at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
}

/// Serves `router` until `stop` is cancelled, then lets the answers under way finish. Bound that wait from outside.
pub async fn serve(listener: TcpListener, router: Router, limits: HttpLimits, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, slot)) = accepted else { continue };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .serve_connection(
                TokioIo::new(bounded(stream, limits.write_timeout)),
                TowerToHyperService::new(router.clone()),
            );
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// A client that stops reading would otherwise hold its connection, and what it asked for, until TCP gives up.
fn bounded(stream: TcpStream, write_timeout: Duration) -> Pin<Box<TimeoutStream<TcpStream>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(write_timeout));
    Box::pin(stream)
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Tokens are far smaller than a segment; Nagle would hold each one back for an acknowledgement.
            let _ = stream.set_nodelay(true);
            Some((stream, slot))
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_RETRY).await;
            None
        }
    }
}
