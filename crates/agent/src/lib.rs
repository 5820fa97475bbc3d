//! The agent of a node: NVML's word on its GPUs becomes an annotation and three labels of the Node, and metrics.
//!
//! A driver is something that hangs, so one thread does nothing but ask it, and everything else goes on without
//! an answer: [`nvml`] asks, [`merge`] decides what the node is now, [`publish`] writes it when it differs from what the
//! Node holds, [`metrics`] shows it. A driver that is missing, too old or silent is a state that is published, never a
//! reason to end.
//!
//! # Permissions
//! `get` and `patch` on `nodes`; the chart's admission policy narrows that to the agent's own Node and our keys.

pub mod args;
pub mod facts;
pub mod merge;
pub mod metrics;
pub mod nvml;
pub mod publish;
pub mod run;
pub mod state;
