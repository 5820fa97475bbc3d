//! Labels and annotations under `gqla.dev/`, and the field manager that owns what the operator writes.
//!
//! Selectors use only [`DEPLOYMENT`] and [`POOL`]: selectors of Deployments cannot change, and everything else
//! here may change with the plan.

/// Prefix of every label and annotation.
pub const PREFIX: &str = "gqla.dev/";

/// Name of the GQLADeployment a resource belongs to (hashed when longer than 63 characters).
pub const DEPLOYMENT: &str = "gqla.dev/deployment";
/// Name of the pool within its GQLADeployment.
pub const POOL: &str = "gqla.dev/pool";
/// UID of the owning GQLADeployment, so that leftovers can be listed by label.
pub const OWNER_UID: &str = "gqla.dev/owner-uid";
/// Decode path of a pod, as metrics spell it: `mqa_absorb` or `gqa`.
pub const PATH: &str = "gqla.dev/path";
/// Tensor-parallel degree of a pod.
pub const TENSOR_PARALLEL: &str = "gqla.dev/tensor-parallel";
/// Drafts per step of a pod; 0 when off.
pub const MULTI_TOKEN_PREDICTION: &str = "gqla.dev/multi-token-prediction";
/// Hash of everything that decides the layout of the cache; pods that differ here must never exchange cache blocks.
pub const KV_LAYOUT: &str = "gqla.dev/kv-layout";
/// GPU class: on pods what was planned for, on nodes a cluster administrator's own statement of what the node is.
pub const GPU_CLASS: &str = "gqla.dev/gpu-class";
/// Annotation of a Node that holds its [`NodeInventory`](crate::inventory::NodeInventory), written by the node's agent.
pub const GPU_INVENTORY: &str = "gqla.dev/gpu-inventory";
/// Label of a Node by which NVML's word is scheduled on: see
/// [`NodeInventory::device_label`](crate::inventory::NodeInventory::device_label).
pub const GPU_DEVICE: &str = "gqla.dev/gpu.device";
/// Label of a Node with the product name NVML gives, spelled as GPU feature discovery spells it.
pub const GPU_PRODUCT: &str = "gqla.dev/gpu.product";
/// Label of a Node with the streaming multiprocessors of each of its GPUs, by which cards that share a name are told apart: see
/// [`NodeInventory::multiprocessors_label`](crate::inventory::NodeInventory::multiprocessors_label).
pub const GPU_MULTIPROCESSORS: &str = "gqla.dev/gpu.multiprocessors";
/// Field manager of what agents write on their Nodes.
pub const AGENT_MANAGER: &str = "gqla-agent";
/// What an object is for: `server`, `inspect` or `agent`.
pub const COMPONENT: &str = "gqla.dev/component";
/// Hash of the model source an inspect Job read.
pub const SOURCE_HASH: &str = "gqla.dev/source-hash";

/// The well-known label that names the tool a resource is managed by.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The operator's value of [`MANAGED_BY`], and the field manager of its server-side apply.
pub const MANAGER: &str = "gqla-operator";
/// Field manager of status writes, apart from [`MANAGER`] so that neither drops the other's fields.
pub const STATUS_MANAGER: &str = "gqla-operator-status";

/// Value of [`COMPONENT`] on serving pods.
pub const COMPONENT_SERVER: &str = "server";
/// Value of [`COMPONENT`] on inspect Jobs.
pub const COMPONENT_INSPECT: &str = "inspect";

/// Value of [`COMPONENT`] on agents.
pub const COMPONENT_AGENT: &str = "agent";

/// The device plugin's extended resource.
pub const NVIDIA_GPU: &str = "nvidia.com/gpu";
/// GPU feature discovery's label that says how pods share a GPU: `none`, `mps` or `time-slicing`.
pub const NVIDIA_SHARING: &str = "nvidia.com/gpu.sharing-strategy";
/// GPU feature discovery's label with the product name.
pub const NVIDIA_GPU_PRODUCT: &str = "nvidia.com/gpu.product";
