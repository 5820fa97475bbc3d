//! What the operator decides: from a [`GQLADeployment`](gqla_api::GQLADeployment) and a fleet's hardware to the plan of each
//! pool. Pure.
//!
//! [`validate()`] checks the object, [`plan()`] plans its pools on a [`FleetSnapshot`], and [`record()`] says of a plan what the
//! status says of it. The operator carries plans out; whoever shows one without a cluster calls the same functions, so the
//! two cannot differ.

#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
mod fleet;
pub mod names;
mod placement;
mod plan;
mod record;
pub mod text;
mod validate;

pub use fleet::FleetSnapshot;
pub use plan::{Plan, PoolFailure, PoolPlan, plan};
pub use record::{record, round};
pub use validate::{
    Identity, Shape, ValidatedDeployment, ValidationError, device_on, identity, source_hash, validate,
};
