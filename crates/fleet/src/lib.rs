//! What hardware every node has: labels, facts of agents, ResourceSlices and GPUClasses merged into one picture. Pure.
//!
//! Three questions are answered here, and they have to agree. What is a node ([`describe`])? Which nodes can a plan count
//! on ([`survey`])? Which labels must a node carry for a pod of a class ([`Hardware::terms`])? Pods are scheduled by
//! labels alone, so labels decide what a node counts as, in the order of who knows best: the agent's word of NVML, an
//! administrator's statement where NVML does not contradict it, GPU feature discovery, a cloud's announcement. Facts that
//! are in no label (memory, clocks, health) never decide which of the catalogue's classes a node is. Only ResourceSlices
//! that contradict labels keep pods off a node by its name.
//!
//! Nothing here reads a clock or a cluster. A bad annotation is a [`Problem`], never an error.

mod affinity;
mod agents;
mod classes;
mod counts;
mod derive;
mod facts;
mod hardware;
mod index;
mod inspect;
mod kinds;
mod node;
mod problem;
mod route;
mod slices;
mod survey;
mod words;

pub use affinity::MAX_REFUTED;
pub use agents::{AgentState, Agents};
pub use classes::{Classes, classes};
pub use facts::{Fact, FactSource, HardwareFacts};
pub use hardware::{GpuCounts, Hardware, NodeHardware, Recognition, describe};
pub use index::Index;
pub use node::{FleetNode, Obstacle, Taint};
pub use problem::{Problem, ProblemGroup, ProblemKind, grouped};
pub use route::By;
pub use slices::{GPU_DRIVER, NodeSlice, SliceDevice, SliceFacts, slice_facts};
pub use survey::{ClassNodes, Survey, survey};
