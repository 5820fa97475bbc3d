//! One pass over one GQLADeployment.
//!
//! 1. **fetch**: list the objects made earlier (client).
//! 2. **validate**: raw object → [`ValidatedDeployment`](gqla_decide::ValidatedDeployment) (pure).
//! 3. **plan**: path, tensor parallelism, drafts and replicas per pool (pure). A model of unknown shape is inspected
//!    by a Job first, whose answer is kept in the status.
//! 4. **build**: the objects that carry out the plan (pure).
//! 5. **apply**: server-side apply, then delete what is no longer wanted (client).
//! 6. **status**: computed from what the API server returned (pure), written only when it changed (client).
//!
//! A pass can be cut anywhere and repeated: names are functions of the spec, and the only memory is the status.

pub mod apply;
pub mod backoff;
pub mod build;
pub mod conditions;
mod context;
mod error;
pub mod fetch;
pub mod handover;
pub mod inspection;
pub mod measured;
mod pass;
pub mod status;

pub use context::Context;
pub use error::ReconcileError;
pub use pass::{error_policy, reconcile};
