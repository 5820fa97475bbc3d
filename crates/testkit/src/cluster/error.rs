//! Everything that can go wrong with a cluster, each as a sentence that says what to do or where to look.

use std::path::{Path, PathBuf};

use gqla_fakenvml::state::StateError;
use thiserror::Error;

use crate::image::ImageError;
use crate::tools::ToolsError;

/// Why a cluster could not be started or used.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// A program is missing or the machine can't hold a cluster.
    #[error(transparent)]
    Tools(#[from] ToolsError),
    /// The pause image could not be written.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The GPUs of a node could not be read or changed.
    #[error(transparent)]
    Gpus(#[from] StateError),
    /// The builder was asked for something that can't be.
    #[error("cluster: {what} {value:?} {problem}")]
    Invalid {
        /// What kind of thing: node name, label, taint.
        what: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it and what is wanted.
        problem: &'static str,
    },
    /// A file or folder could not be made.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {name}: {source}")]
    Certificate {
        /// Whose.
        name: String,
        /// What the library said.
        source: rcgen::Error,
    },
    /// The namespaces could not be made.
    #[error("the cluster's supervisor ended before its namespaces were ready; {log} ends with:\n{tail}")]
    Supervisor {
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A program failed.
    #[error("`{command}` failed ({outcome}):\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Exit status, or why it did not start.
        outcome: String,
        /// What it printed.
        output: String,
    },
    /// A component died.
    #[error("{component} ended ({outcome}); {log} ends with:\n{tail}")]
    Ended {
        /// Its name.
        component: String,
        /// Its exit status.
        outcome: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// Something did not become ready.
    #[error("{what} not ready after {seconds} s: {last}. The components' logs are in {logs}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        seconds: u64,
        /// What was seen last.
        last: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// The API server refused or could not be asked.
    #[error("cannot {action}: {source}")]
    Api {
        /// What was tried.
        action: String,
        /// What the client said.
        source: Box<kube::Error>,
    },
    /// The kubeconfig just written can't be used.
    #[error("cannot use the kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What the client said.
        source: kube::config::KubeconfigError,
    },
    /// The thread that carries connections into the cluster's network has ended.
    #[error("cannot forward to {target}: the cluster's forwarder has ended, and so has the cluster")]
    ForwarderEnded {
        /// The address asked for.
        target: String,
    },
}

/// Turns an I/O error into a sentence.
pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ClusterError {
    let path = path.to_path_buf();
    move |source| ClusterError::Io { action, path, source }
}

/// Turns an error of the API server into a sentence.
pub(crate) fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> ClusterError {
    let action = action.into();
    move |source| ClusterError::Api { action, source: Box::new(source) }
}

/// The last lines of a log, or a word that there is none.
pub(crate) fn tail(log: &Path) -> String {
    const LINES: usize = 12;
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    if lines.is_empty() {
        "(nothing)".to_owned()
    } else {
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}
