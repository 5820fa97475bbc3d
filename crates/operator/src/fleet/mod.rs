//! What hardware the cluster has: a pruned picture of its nodes, and the GPU classes they belong to.
//!
//! A full Node is some 10 kB and changes with every image it pulls; here it is a handful of fields, so that thousands
//! of nodes stay small and a heartbeat or an image wakes nobody. Any label but a timestamp counts as a change, because
//! any may be in some pool's nodeSelector.

mod classes;
mod index;
mod node;
mod watch;

pub use classes::{ClassNodes, Survey, catalogue, survey};
pub use index::Index;
pub use node::{FleetNode, Taint};
pub use watch::{Fleet, FleetSnapshot};
