//! Why a pass could not be finished. The variant's name is the `kind` label of the error metric.

use std::time::Duration;

use gqla_api::ConditionReason;

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
    /// An object of a needed name could not be looked up.
    #[error("{kind} {name} cannot be read")]
    Read {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the client said.
        #[source]
        source: kube::Error,
    },
    /// An object of a needed name is not ours.
    #[error(
        "{kind} {name} exists and does not belong to this GQLADeployment; delete it, or give the GQLADeployment \
         another name"
    )]
    NameTaken {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
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
            Self::Read { .. } => "read",
            Self::NameTaken { .. } => "name_taken",
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
            | Self::Read { source, .. }
            | Self::Delete { source, .. }
            | Self::Status(source) => matches!(source, kube::Error::Api(status) if status.is_conflict()),
            Self::NameTaken { .. } | Self::Malformed(_) | Self::Timeout(_) => false,
        }
    }

    /// What the GQLADeployment's author has to know, where only a change by a person can help.
    pub fn refusal(&self) -> Option<(ConditionReason, String)> {
        match self {
            Self::NameTaken { .. } => Some((ConditionReason::NameTaken, self.to_string())),
            Self::Apply { kind, name, source: kube::Error::Api(status) }
                if matches!(status.code, 400 | 403 | 422) =>
            {
                let sentence = format!("the API server refuses {kind} {name}: {}", status.message);
                Some((ConditionReason::Refused, sentence))
            }
            _ => None,
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
