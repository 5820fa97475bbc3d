//! `GPUClass`: what the built-in catalogue of GPUs does not know, or knows differently.

#![allow(clippy::duplicated_attributes, reason = "columns of one CRD may well have equal types")]

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{rules, schema};

/// A kind of GPU. A name the built-in catalogue has overrides that entry; another name adds a class, which then
/// needs memoryGiB, memoryBandwidthGBps and bf16TFLOPS.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "gqla.dev",
    version = "v1alpha1",
    kind = "GPUClass",
    plural = "gpuclasses",
    singular = "gpuclass",
    derive = "PartialEq",
    validation = rules::class_name(),
    doc = "A kind of GPU: how its nodes are recognised, what it can do and what it costs.",
    printcolumn(name = "Memory", type_ = "number", json_path = ".spec.memoryGiB", description = "GiB"),
    printcolumn(
        name = "Bandwidth",
        type_ = "number",
        json_path = ".spec.memoryBandwidthGBps",
        description = "GB/s"
    ),
    printcolumn(name = "BF16", type_ = "number", json_path = ".spec.bf16TFLOPS", description = "TFLOP/s"),
    printcolumn(
        name = "Cost",
        type_ = "number",
        json_path = ".spec.costPerGpuHour",
        description = "Per GPU and hour"
    )
)]
#[serde(rename_all = "camelCase", default)]
pub struct GPUClassSpec {
    /// Values of the node label nvidia.com/gpu.product that mean this class, matched exactly.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63), regex(pattern = schema::LABEL_VALUE)), extend("x-kubernetes-list-type" = "set"))]
    pub product_labels: Vec<String>,
    /// PCI device ids under vendor 10de that mean this class, four hex digits in lower case: 2329 is an H20. They win
    /// over every name, where the node's agent tells them.
    #[serde(rename = "pciDeviceIDs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 4, max = 4), regex(pattern = schema::PCI_DEVICE_ID)), extend("x-kubernetes-list-type" = "set"))]
    pub pci_device_ids: Vec<String>,
    /// Streaming multiprocessors of one GPU. A node whose GPUs have another number is not of this class, and of two
    /// classes with one product label this decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub multiprocessors: Option<u32>,
    /// CUDA compute capability, such as 9.0: which kernels the GPU can run, and below 8.0 none of gqla-server's. A class of a name
    /// that the built-in catalogue has needs none; another without one is planned at rates that any card should reach, and as if
    /// every kernel had room.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4), regex(pattern = schema::COMPUTE_CAPABILITY))]
    pub compute_capability: Option<String>,
    /// Labels by which a cloud announces nodes of this class before anything runs on them, such as
    /// cloud.google.com/gke-accelerator. Each alone means this class; all are weaker than what runs on a node tells.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub node_labels: Vec<NodeLabel>,
    /// Memory of one GPU in GiB.
    #[serde(rename = "memoryGiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 16_384.0))]
    pub memory_gib: Option<f64>,
    /// Peak memory bandwidth in GB/s.
    #[serde(rename = "memoryBandwidthGBps", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 1_000_000.0))]
    pub memory_bandwidth_gbps: Option<f64>,
    /// Peak dense bf16 rate in TFLOP/s.
    #[serde(rename = "bf16TFLOPS", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01, max = 1_000_000.0))]
    pub bf16_tflops: Option<f64>,
    /// Cost of one GPU for one hour, in any currency as long as all classes use the same. placement.strategy Cost
    /// compares it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1_000_000.0))]
    pub cost_per_gpu_hour: Option<f64>,
}

/// A label of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeLabel {
    /// Key of the label.
    #[schemars(length(min = 1, max = 317), regex(pattern = schema::LABEL_KEY))]
    pub key: String,
    /// Its value, matched exactly.
    #[schemars(length(min = 1, max = 63), regex(pattern = schema::LABEL_VALUE))]
    pub value: String,
}
