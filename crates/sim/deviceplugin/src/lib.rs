//! A kubelet device plugin for test clusters: it advertises the GPUs that a stand-in for libnvidia-ml shows,
//! and gives pods the stand-in where NVIDIA's container toolkit would give them the driver's libraries. On a
//! machine with GPUs run NVIDIA's own plugin; this one hands out no device files.
//!
//! The kubelet's side of it, gRPC over the sockets in its folder, and NVML's are the real interfaces.

pub mod allocate;
pub mod api;
pub mod devices;
pub mod driver;
pub mod nvml;
pub mod plugin;
pub mod session;
