//! What an agent publishes of its node's GPUs: the facts of NVML, in an annotation and three labels of its own Node.
//!
//! Only what lasts is here. Clocks of the moment, temperatures and throttling are metrics of the agent, so that a node
//! at rest is never written to. Whoever reads an annotation reads untrusted bytes: [`NodeInventory::parse`] bounds them.

use serde::{Deserialize, Serialize};
use serde_json::error::Category;

/// Most GPUs of one node that are published; no machine has more.
pub const MAX_GPUS: usize = 64;
/// Most bytes of an annotation that is read or written.
pub const MAX_INVENTORY_BYTES: usize = 32 * 1024;
/// Longest text of one field.
const MAX_TEXT_BYTES: usize = 512;

/// The GPUs of one node as NVML last told them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeInventory {
    /// Whether NVML answers, and if not, why.
    pub driver: DriverState,
    /// When [`Self::driver`] became what it is, RFC 3339. Unless the state is `Ready`, the GPUs are those seen before.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub since: String,
    /// What NVML said when it does not answer, in one sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Version of the kernel driver, such as `550.54.15`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// Newest CUDA version the driver runs, such as `12.4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda_version: Option<String>,
    /// Every GPU, by index.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuFacts>,
}

/// Whether NVML answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DriverState {
    /// It does.
    Ready,
    /// There is no libnvidia-ml, or no driver behind it.
    #[default]
    Missing,
    /// The agent may not open the devices.
    NoPermission,
    /// The driver runs no CUDA 12.
    TooOld,
    /// A call did not come back in time.
    Hanging,
    /// Another error, which the message names.
    Failing,
}

/// One GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GpuFacts {
    /// Index of the driver.
    pub index: u32,
    /// Name of the product as NVML has it, such as `NVIDIA H20`.
    pub product: String,
    /// UUID, `GPU-…`.
    pub uuid: String,
    /// Address on the PCI bus, such as `00000000:18:00.0`.
    pub pci_bus_id: String,
    /// PCI device id under vendor 10de: 0x2329 is an H20.
    pub pci_device_id: u16,
    /// Streaming multiprocessors, counted from CUDA cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiprocessors: Option<u32>,
    /// CUDA compute capability, such as `9.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// Memory in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Width of the memory bus in bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bus_bits: Option<u32>,
    /// Highest memory clock in MHz. Data moves on both edges.
    #[serde(rename = "memoryClockMHz", skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Highest clock of the multiprocessors in MHz.
    #[serde(rename = "clockMHz", skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u32>,
    /// NVLinks that are up.
    #[serde(skip_serializing_if = "is_zero")]
    pub nvlinks: u32,
    /// Indices of the GPUs reached over NVLink, directly or through a switch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nvlink_peers: Vec<u32>,
    /// Power cap in watts, when it is below the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_cap_watts: Option<u32>,
    /// Power cap the card comes with, in watts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_power_watts: Option<u32>,
    /// Slices the GPU is cut into; absent unless MIG is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mig: Option<Vec<MigSlices>>,
    /// Whether it can be used.
    #[serde(skip_serializing_if = "GpuHealth::is_healthy")]
    pub health: GpuHealth,
}

/// MIG slices of one profile on one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MigSlices {
    /// Profile, such as `1g.10gb`.
    pub profile: String,
    /// Slices of this profile.
    pub count: u32,
    /// Memory of one in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Multiprocessors of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiprocessors: Option<u32>,
}

/// Whether a GPU can be used, and if not, why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GpuHealth {
    /// It can.
    #[default]
    Healthy,
    /// It fell off the bus.
    Lost,
    /// The driver reported an XID that ends the work on it; the number is the XID.
    Xid(u32),
    /// Memory errors that could not be corrected are pending, or rows could not be remapped.
    Ecc,
}

impl GpuHealth {
    /// Whether it can be used.
    pub fn is_healthy(&self) -> bool {
        *self == Self::Healthy
    }
}

impl GpuFacts {
    /// Whether it was lost before anybody could ask what it is.
    pub fn is_unidentified(&self) -> bool {
        self.health == GpuHealth::Lost
            && self.product.is_empty()
            && self.uuid.is_empty()
            && self.pci_device_id == 0
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Why an annotation is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// It is longer than any agent writes.
    #[error(
        "annotation gqla.dev/gpu-inventory has {0} bytes, at most {MAX_INVENTORY_BYTES} are read: an agent writes less, \
         something else wrote this"
    )]
    TooLong(usize),
    /// It lists more GPUs than a machine has.
    #[error("annotation gqla.dev/gpu-inventory lists {0} GPUs, at most {MAX_GPUS} are read")]
    TooMany(usize),
    /// A text in it is longer than any driver's.
    #[error("annotation gqla.dev/gpu-inventory holds a text of {0} bytes, at most {MAX_TEXT_BYTES} are read")]
    LongText(usize),
    /// A text in it would not print as it is.
    #[error(
        "annotation gqla.dev/gpu-inventory holds a text with control character U+{0:04X}: an agent writes none, something \
         else wrote this"
    )]
    ControlCharacter(u32),
    /// It is not the JSON of an inventory. What it is instead is not told: whoever wrote it would speak through the error.
    #[error("annotation gqla.dev/gpu-inventory cannot be read: {problem} at line {line}, column {column}")]
    Malformed {
        /// What kind of problem there is.
        problem: &'static str,
        /// Where, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
    },
}

impl From<serde_json::Error> for InventoryError {
    fn from(error: serde_json::Error) -> Self {
        let problem = match error.classify() {
            Category::Syntax => "it is not JSON",
            Category::Eof => "it ends too early",
            Category::Data => "it is JSON, and not of an inventory",
            Category::Io => "it cannot be accessed",
        };
        Self::Malformed { problem, line: error.line(), column: error.column() }
    }
}

impl NodeInventory {
    /// Reads an annotation.
    ///
    /// # Errors
    /// When it is not what an agent writes.
    pub fn parse(annotation: &str) -> Result<Self, InventoryError> {
        if annotation.len() > MAX_INVENTORY_BYTES {
            return Err(InventoryError::TooLong(annotation.len()));
        }
        let inventory: Self = serde_json::from_str(annotation)?;
        if inventory.gpus.len() > MAX_GPUS {
            return Err(InventoryError::TooMany(inventory.gpus.len()));
        }
        if let Some(long) = inventory.texts().map(str::len).find(|bytes| *bytes > MAX_TEXT_BYTES) {
            return Err(InventoryError::LongText(long));
        }
        if let Some(control) = inventory.texts().flat_map(str::chars).find(|c| c.is_control()) {
            return Err(InventoryError::ControlCharacter(control.into()));
        }
        Ok(inventory)
    }

    /// The annotation's value: one line of JSON, at most [`MAX_INVENTORY_BYTES`].
    ///
    /// # Errors
    /// When it would be longer, or lists more than [`MAX_GPUS`].
    pub fn render(&self) -> Result<String, InventoryError> {
        if self.gpus.len() > MAX_GPUS {
            return Err(InventoryError::TooMany(self.gpus.len()));
        }
        let text = serde_json::to_string(self)?;
        if text.len() > MAX_INVENTORY_BYTES {
            return Err(InventoryError::TooLong(text.len()));
        }
        Ok(text)
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let own = [
            Some(&self.since),
            self.message.as_ref(),
            self.driver_version.as_ref(),
            self.cuda_version.as_ref(),
        ];
        let gpus = self.gpus.iter().flat_map(|gpu| {
            let fixed = [&gpu.product, &gpu.uuid, &gpu.pci_bus_id].into_iter();
            let slices = gpu.mig.iter().flatten().map(|slices| &slices.profile);
            fixed.chain(gpu.compute_capability.as_ref()).chain(slices)
        });
        own.into_iter().flatten().chain(gpus).map(String::as_str)
    }

    /// The value of label `gqla.dev/gpu.device`, on which pods are scheduled: the PCI device id in hex when all GPUs are
    /// whole and alike, else [`DEVICE_MIXED`], [`DEVICE_MIG`] or [`DEVICE_NONE`]. GPUs lost before they were identified say
    /// nothing of the kind; where there are only such, the id is `0000`, which is nobody's.
    pub fn device_label(&self) -> String {
        let mut identified = self.identified();
        let Some(first) = identified.next().or(self.gpus.first()) else { return DEVICE_NONE.to_owned() };
        if self.gpus.iter().any(|gpu| gpu.mig.is_some()) {
            return DEVICE_MIG.to_owned();
        }
        let alike =
            |gpu: &GpuFacts| (gpu.pci_device_id, &gpu.product) == (first.pci_device_id, &first.product);
        if identified.all(alike) { format!("{:04x}", first.pci_device_id) } else { DEVICE_MIXED.to_owned() }
    }

    /// The value of label `gqla.dev/gpu.product`: the product's name as GPU feature discovery would spell it. `None` when
    /// the node has no GPU that was identified, or several kinds.
    pub fn product_label(&self) -> Option<String> {
        let mut identified = self.identified();
        let first = identified.next()?;
        let alike = identified.all(|gpu| gpu.product == first.product);
        alike.then(|| label_spelling(&first.product)).filter(|label| !label.is_empty())
    }

    /// The value of label `gqla.dev/gpu.multiprocessors`: the streaming multiprocessors of one GPU, in decimal. `None` unless
    /// all GPUs that were identified are whole and alike, and as many are counted on each.
    pub fn multiprocessors_label(&self) -> Option<String> {
        let device = self.device_label();
        let mut counts = self.identified().map(|gpu| gpu.multiprocessors);
        let first = counts.next()??;
        let alike = counts.all(|count| count == Some(first));
        (alike && ![DEVICE_MIG, DEVICE_MIXED].contains(&device.as_str())).then(|| first.to_string())
    }

    fn identified(&self) -> impl Iterator<Item = &GpuFacts> {
        self.gpus.iter().filter(|gpu| !gpu.is_unidentified())
    }
}

/// Value of `gqla.dev/gpu.device` on a node with several kinds of GPU.
pub const DEVICE_MIXED: &str = "mixed";
/// Value of `gqla.dev/gpu.device` on a node with a GPU cut into MIG slices.
pub const DEVICE_MIG: &str = "mig";
/// Value of `gqla.dev/gpu.device` on a node where no GPU was ever seen.
pub const DEVICE_NONE: &str = "none";

/// Spaces become dashes and what no label may hold is dropped, as GPU feature discovery does.
fn label_spelling(product: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_. ".contains(c);
    let text: String = product.chars().filter(|c| allowed(*c)).take(63).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, product: &str, device: u16) -> GpuFacts {
        GpuFacts { index, product: product.to_owned(), pci_device_id: device, ..GpuFacts::default() }
    }

    fn node(gpus: Vec<GpuFacts>) -> NodeInventory {
        NodeInventory { driver: DriverState::Ready, gpus, ..NodeInventory::default() }
    }

    #[test]
    fn labels_name_a_kind_only_when_there_is_one() {
        let h20 = gpu(0, "NVIDIA H20", 0x2329);
        let h200 = gpu(1, "NVIDIA H200", 0x2335);
        let unknown = |index| GpuFacts { health: GpuHealth::Lost, ..gpu(index, "", 0) };
        let sliced = GpuFacts { mig: Some(Vec::new()), ..h20.clone() };
        let cases = [
            (vec![], "none", None),
            (vec![h20.clone(), gpu(1, "NVIDIA H20", 0x2329)], "2329", Some("NVIDIA-H20")),
            (vec![h20.clone(), h200.clone()], "mixed", None),
            (vec![unknown(0), h200, unknown(2)], "2335", Some("NVIDIA-H200")),
            (vec![unknown(0), unknown(1)], "0000", None),
            (vec![sliced], "mig", Some("NVIDIA-H20")),
            (vec![gpu(0, "NVIDIA X (9), \"new\" ", 0x00ff)], "00ff", Some("NVIDIA-X-9-new")),
        ];
        for (gpus, device, product) in cases {
            let node = node(gpus);
            assert_eq!((node.device_label().as_str(), node.product_label().as_deref()), (device, product));
        }
    }

    #[test]
    fn multiprocessors_are_labelled_only_where_every_whole_gpu_has_as_many() {
        let counted = |count| GpuFacts { multiprocessors: count, ..gpu(0, "NVIDIA H20", 0x2329) };
        let (full, cut, uncounted) = (counted(Some(78)), counted(Some(60)), counted(None));
        let lost = GpuFacts { health: GpuHealth::Lost, ..gpu(1, "", 0) };
        let sliced = GpuFacts { mig: Some(Vec::new()), ..full.clone() };
        let namesake = GpuFacts { product: "NVIDIA H200".to_owned(), ..full.clone() };
        let cases = [
            (vec![], None),
            (vec![full.clone(), full.clone()], Some("78")),
            (vec![full.clone(), lost.clone()], Some("78")),
            (vec![lost], None),
            (vec![full.clone(), cut], None),
            (vec![full.clone(), uncounted.clone()], None),
            (vec![uncounted, full.clone()], None),
            (vec![full.clone(), sliced], None),
            (vec![full, namesake], None),
        ];
        for (gpus, expected) in cases {
            assert_eq!(node(gpus.clone()).multiprocessors_label().as_deref(), expected, "{gpus:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_anything_else_is_refused() {
        let mut inventory = node(vec![gpu(0, "NVIDIA H20", 0x2329)]);
        inventory.gpus[0].health = GpuHealth::Xid(79);
        let text = inventory.render().unwrap();
        assert_eq!(NodeInventory::parse(&text).unwrap(), inventory);
        let full = node((0..64).map(|index| gpu(index, "NVIDIA H100 80GB HBM3", 0x2330)).collect());
        assert!(NodeInventory::parse(&full.render().unwrap()).is_ok());
        let wrong = [
            ("x".repeat(MAX_INVENTORY_BYTES + 1), "bytes, at most"),
            (format!("{{\"gpus\":[{}]}}", vec!["{}"; 65].join(",")), "65 GPUs"),
            (format!("{{\"gpus\":[{{\"product\":\"{}\"}}]}}", "x".repeat(600)), "a text of 600 bytes"),
            ("{".to_owned(), "cannot be read: it ends too early at line 1, column 1"),
            ("call me".to_owned(), "it is not JSON at line 1, column 1"),
            (r#"{"driver":"call me"}"#.to_owned(), "and not of an inventory at line 1, column 19"),
            (r#"{"message":"call me\u001b[2J"}"#.to_owned(), "control character U+001B"),
            (r#"{"gpus":[{"mig":[{"profile":"call me\n"}]}]}"#.to_owned(), "control character U+000A"),
        ];
        for (text, words) in wrong {
            let error = NodeInventory::parse(&text).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("call me"), "{error}");
        }
    }
}
