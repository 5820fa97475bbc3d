//! Why a pass could not be finished. The variant's name is the `kind` label of the error metric.

use std::time::Duration;

/// Why a pass could not be finished; it is tried again with backoff.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server did not answer a list.
    #[error("{what} cannot be listed")]
    List {
        /// What was asked for.
        what: &'static str,
        /// What the client said.
        #[source]
        source: kube::Error,
    },
    /// An object could not be written.
    #[error("{kind} {name} cannot be applied")]
    Apply {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the client said.
        #[source]
        source: kube::Error,
    },
    /// An object that is no longer wanted could not be deleted.
    #[error("{kind} {name}, which is no longer wanted, cannot be deleted")]
    Delete {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the client said.
        #[source]
        source: kube::Error,
    },
    /// The status could not be written.
    #[error("the status cannot be written")]
    Status(#[source] kube::Error),
    /// The object is no GQLADeployment.
    #[error("the object is malformed: {0}")]
    Malformed(String),
    /// The pass took too long.
    #[error("the pass took longer than {} s and was given up", .0.as_secs_f64())]
    Timeout(Duration),
}

impl ReconcileError {
    /// Value of the `kind` label.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::List { .. } => "list",
            Self::Apply { .. } => "apply",
            Self::Delete { .. } => "delete",
            Self::Status(_) => "status",
            Self::Malformed(_) => "malformed",
            Self::Timeout(_) => "timeout",
        }
    }

    /// Whether another writer was faster, which the next pass settles.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::List { source, .. }
            | Self::Apply { source, .. }
            | Self::Delete { source, .. }
            | Self::Status(source) => matches!(source, kube::Error::Api(status) if status.is_conflict()),
            Self::Malformed(_) | Self::Timeout(_) => false,
        }
    }

    /// The whole chain of causes in one line.
    pub fn chain(&self) -> String {
        let mut sentence = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            sentence = format!("{sentence}: {error}");
            cause = error.source();
        }
        sentence
    }
}
