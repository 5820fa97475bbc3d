//! Connections from the machine's own network into the cluster's. A socket belongs to the network namespace
//! of the thread that made it: listeners are made by the caller on loopback, and one thread that has entered
//! the cluster's namespace accepts from them, connects onwards and copies bytes. Nothing else of the process
//! changes namespace.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::error::{ClusterError, io};

struct Forward {
    listener: TcpListener,
    target: SocketAddr,
}

/// The thread. It ends, and its connections with it, when this is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder {
    requests: UnboundedSender<Forward>,
}

impl Forwarder {
    /// Starts the thread in the network namespace that `namespace` names.
    pub(crate) fn start(namespace: &Path) -> Result<Self, ClusterError> {
        let file = File::open(namespace).map_err(io("open the network namespace", namespace))?;
        let (requests, received) = unbounded_channel();
        let (entered, outcome) = std::sync::mpsc::channel();
        let run = move || {
            let runtime = setns(&file, CloneFlags::CLONE_NEWNET)
                .map_err(std::io::Error::from)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
            // The receiver is there until this is sent.
            match runtime {
                Ok(runtime) => {
                    let _ = entered.send(Ok(()));
                    runtime.block_on(serve(received));
                }
                Err(error) => {
                    let _ = entered.send(Err(error));
                }
            }
        };
        std::thread::Builder::new()
            .name("cluster-forwarder".to_owned())
            .spawn(run)
            .map_err(io("start a thread for", namespace))?;
        let ended = std::io::Error::other("the thread ended");
        outcome.recv().unwrap_or(Err(ended)).map_err(io("enter the network namespace", namespace))?;
        Ok(Self { requests })
    }

    /// Forwards connections made to `listen`, an address of the caller's network, to `target`, an address of
    /// the cluster's. Port 0 picks a free one; the address listened on is returned.
    pub(crate) fn forward(&self, listen: SocketAddr, target: SocketAddr) -> Result<SocketAddr, ClusterError> {
        let name = format!("{listen}");
        let sentence = || io("listen on", Path::new(&name));
        let listener = TcpListener::bind(listen).map_err(sentence())?;
        listener.set_nonblocking(true).map_err(sentence())?;
        let address = listener.local_addr().map_err(sentence())?;
        let ended = |_| ClusterError::ForwarderEnded { target: target.to_string() };
        self.requests.send(Forward { listener, target }).map_err(ended)?;
        Ok(address)
    }
}

async fn serve(mut requests: UnboundedReceiver<Forward>) {
    while let Some(Forward { listener, target }) = requests.recv().await {
        tokio::spawn(accept(listener, target));
    }
}

async fn accept(listener: TcpListener, target: SocketAddr) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(carry(client, target));
            }
            // Out of file descriptors or the peer has gone already: the next one may do.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// How long a failed connection is tried again: kube-proxy learns of a Service and its endpoints a moment after
/// their pods are Ready, and connections are refused until then.
const PATIENCE: Duration = Duration::from_secs(5);

/// A target that does not answer looks to the client like a connection closed at once.
async fn carry(mut client: TcpStream, target: SocketAddr) {
    if let Ok(mut server) = connect(target).await {
        // Tokens and log lines are small writes that should not wait for each other.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let started = Instant::now();
    loop {
        match TcpStream::connect(target).await {
            Err(_) if started.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_millis(20)).await,
            outcome => return outcome,
        }
    }
}
