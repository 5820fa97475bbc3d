//! What hardware the cluster has, kept up to date by watches.
//!
//! A full Node is some 10 kB and changes with every image it pulls; here it is a handful of fields, so that thousands
//! of nodes stay small and a heartbeat or an image wakes nobody. Any label but a timestamp counts as a change, because
//! any may be in some pool's nodeSelector. What nodes are is judged when somebody asks, at most once per change: a storm of
//! events costs no more than the nodes it touches.

mod agents;
mod events;
mod watch;

pub use agents::AgentPods;
pub use events::apply;
pub use watch::{Fleet, Sources};
