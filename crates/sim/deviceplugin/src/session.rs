//! One registration after the other. A kubelet that starts removes every socket in its folder and knows no
//! plugin; a plugin has to notice, serve on a new socket and register again.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gqla_telemetry::CancellationToken;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Endpoint, Server};

use crate::api::device_plugin_server::DevicePluginServer;
use crate::api::registration_client::RegistrationClient;
use crate::api::{DevicePluginOptions, RegisterRequest};
use crate::devices::Devices;
use crate::driver::Driver;
use crate::plugin::Plugin;

/// The version of the API that is spoken here.
pub const API_VERSION: &str = "v1beta1";
/// The kubelet's socket in its folder.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// How often the sockets are looked at.
const PERIOD: Duration = Duration::from_secs(1);
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a registration did not come about, or ended.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The plugin's own socket can't be made.
    #[error("cannot listen on {socket}: {source}; the plugin needs the right to write there")]
    Listen {
        /// Its path.
        socket: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The plugin's server failed.
    #[error("the server on {socket} ended: {source}")]
    Serve {
        /// Its path.
        socket: PathBuf,
        /// What the library said.
        source: tonic::transport::Error,
    },
    /// The kubelet's socket is there and nobody answers.
    #[error("no kubelet answers on {socket}: {source}")]
    Connect {
        /// Its path.
        socket: PathBuf,
        /// What the library said.
        source: tonic::transport::Error,
    },
    /// The kubelet said no.
    #[error("the kubelet refused to register {resource}: {message}")]
    Refused {
        /// The resource.
        resource: String,
        /// The kubelet's words.
        message: String,
    },
}

/// Where and as what to register.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The kubelet's folder of plugin sockets.
    pub folder: PathBuf,
    /// The resource, such as `nvidia.com/gpu`.
    pub resource: String,
    /// What allocated GPUs bring into a pod.
    pub driver: Driver,
}

impl Registration {
    /// The name of the plugin's socket in the folder.
    pub fn endpoint(&self) -> String {
        format!("{}.sock", self.resource.replace('/', "_"))
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(self.endpoint())
    }

    fn kubelet(&self) -> PathBuf {
        self.folder.join(KUBELET_SOCKET)
    }
}

/// Serves and registers, and does so again whenever the kubelet starts anew or something failed, until `stop`
/// is cancelled. Nothing is registered before the first GPU was seen: a node that advertises none and a node
/// without a driver look the same.
pub async fn run(registration: &Registration, devices: watch::Receiver<Devices>, stop: &CancellationToken) {
    let mut first = devices.clone();
    tokio::select! {
        () = stop.cancelled() => return,
        _ = first.wait_for(|devices| !devices.is_empty()) => {}
    }
    while !stop.is_cancelled() {
        if let Some(kubelet) = Identity::of(&registration.kubelet()) {
            let outcome = session(registration, devices.clone(), kubelet, &stop.child_token()).await;
            if let Err(error) = outcome {
                tracing::warn!(%error, "trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Serves, registers with the kubelet that `kubelet` is the socket of, and returns when it is another one.
async fn session(
    registration: &Registration,
    devices: watch::Receiver<Devices>,
    kubelet: Identity,
    end: &CancellationToken,
) -> Result<(), SessionError> {
    let socket = registration.socket();
    // What a plugin before this one left; a socket that is in the way shows in `bind`.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)
        .map_err(|source| SessionError::Listen { socket: socket.clone(), source })?;
    let plugin = Plugin::new(registration.driver.clone(), devices, end.clone());
    let serving = Server::builder()
        .add_service(DevicePluginServer::new(plugin))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end.cancelled());
    let registered = async {
        let outcome = register(registration).await;
        if outcome.is_ok() {
            tracing::info!(resource = registration.resource, socket = %socket.display(), "registered");
            tokio::select! {
                () = end.cancelled() => {}
                () = until_restart(registration, &kubelet) => tracing::info!("the kubelet has started anew"),
            }
        }
        end.cancel();
        outcome
    };
    let (served, registered) = tokio::join!(serving, registered);
    // The kubelet removes it too.
    let _ = std::fs::remove_file(&socket);
    registered.and(served.map_err(|source| SessionError::Serve { socket, source }))
}

async fn register(registration: &Registration) -> Result<(), SessionError> {
    let socket = registration.kubelet();
    let connect = |source| SessionError::Connect { socket: socket.clone(), source };
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(connect)?;
    let channel = endpoint
        .connect_timeout(REGISTER_TIMEOUT)
        .timeout(REGISTER_TIMEOUT)
        .connect()
        .await
        .map_err(connect)?;
    let request = RegisterRequest {
        version: API_VERSION.to_owned(),
        endpoint: registration.endpoint(),
        resource_name: registration.resource.clone(),
        options: Some(DevicePluginOptions::default()),
    };
    let refused = |status: tonic::Status| SessionError::Refused {
        resource: registration.resource.clone(),
        message: status.message().to_owned(),
    };
    RegistrationClient::new(channel).register(request).await.map(drop).map_err(refused)
}

/// Looks at the sockets, once a second, until the plugin's is gone or the kubelet's is not the same.
async fn until_restart(registration: &Registration, kubelet: &Identity) {
    while registration.socket().exists() && Identity::of(&registration.kubelet()).as_ref() == Some(kubelet) {
        tokio::time::sleep(PERIOD).await;
    }
}

/// Which file a path names. A file system may give the number of a removed file to the next one at once, so
/// its time belongs to it.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    inode: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self { inode: file.ino(), changed: (file.ctime(), file.ctime_nsec()) })
    }
}

#[cfg(test)]
mod tests;
