//! What the operator decides: from a [`GQLADeployment`](gqla_api::GQLADeployment) and a fleet's hardware to the plan of each
//! pool. Pure.
//!
//! [`validate()`] checks the object, [`plan()`] plans its pools on a [`FleetSnapshot`], [`record()`] says of a plan what the status
//! says of it, and [`node_uses()`] says of every node whether the plan counts on it. The operator carries plans out; whoever
//! shows one without a cluster calls the same functions, so the two cannot differ.

mod calibration;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
mod fleet;
pub mod names;
mod nodes;
mod placement;
mod plan;
mod record;
pub mod text;
mod validate;

pub use calibration::{CalibrationFileError, LARGEST_CALIBRATION, parse_calibration};
pub use fleet::FleetSnapshot;
pub use nodes::{NodeUse, node_uses};
pub use plan::{PassedOver, Plan, PoolFailure, PoolPlan, goal, plan};
pub use record::{record, round};
pub use validate::{
    Identity, SERVER_BUILD, Shape, ValidatedDeployment, ValidationError, device_on, identity, source_hash,
    validate,
};
