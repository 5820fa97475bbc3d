//! Watches GQLADeployments, GPU classes and nodes; plans per GPU pool, rolls out, measures and reports.
//!
//! Two indexes ([`fleet`], [`scrape`]) hold a pruned picture of nodes and pods, kept up to date by watches. A pass of
//! [`reconcile`] is a pipeline: fetch → validate → plan → build → apply → status; the middle three are pure. Only the
//! holder of the Lease acts.
//!
//! # Permissions
//! The ServiceAccount needs exactly this, and nothing on Secrets:
//!
//! | group | resources | verbs |
//! |---|---|---|
//! | `gqla.dev` | `gqladeployments`, `gpuclasses` | get, list, watch |
//! | `gqla.dev` | `gqladeployments/status` | patch |
//! | `` | `nodes` | list, watch |
//! | `` | `pods` | list, watch (in the operator's own namespace too, for its agents) |
//! | `resource.k8s.io` | `resourceslices` | list, watch (only with `--resource-slices`) |
//! | `` | `services` | get, list, watch, create, patch, delete |
//! | `apps` | `deployments` | get, list, watch, create, patch, delete |
//! | `batch` | `jobs` | get, list, watch, create, delete |
//! | `events.k8s.io` | `events` | create, patch |
//! | `coordination.k8s.io` | `leases` (in the operator's own namespace) | get, create, update |
//! | `gqla.dev` | `gqladeployments/finalizers` | update (only where `OwnerReferencesPermissionEnforcement` is on) |

pub mod args;
pub mod events;
pub mod fleet;
pub mod metrics;
pub mod reconcile;
pub mod run;
pub mod scrape;
