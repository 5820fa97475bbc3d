//! What the cost model needs to know of one accelerator.

use std::{borrow::Cow, fmt, str::FromStr};

/// The numbers a roofline is drawn from. Callers may build their own, for hardware the catalogue lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuSpec {
    /// Class name as users write it, such as `H20`.
    pub name: Cow<'static, str>,
    /// Dense bf16 peak, FLOP/s.
    pub flops_per_second: f64,
    /// Peak memory bandwidth, bytes/s.
    pub bytes_per_second: f64,
    /// Memory of one device as the driver reports it, bytes.
    pub memory_bytes: u64,
    /// Which instructions it has, and so which kernels. `None` leaves that to the class's name: built-in ones are known
    /// by it, and any other is given rates that every card should reach.
    pub compute_capability: Option<ComputeCapability>,
    /// Whether the figures follow from what a driver tells of an unheard-of card: its kernels are planned at the rates that every
    /// card should reach, whatever the compute capability, which then says only whether there are any.
    pub derived: bool,
}

/// CUDA's version of a GPU's instructions, such as 9.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// The family.
    pub major: u8,
    /// The member of it.
    pub minor: u8,
}

impl fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ComputeCapability {
    type Err = NoComputeCapability;

    fn from_str(text: &str) -> Result<Self, NoComputeCapability> {
        let digits = |part: &str| if part.starts_with('+') { None } else { part.parse().ok() };
        let parts = text.split_once('.').and_then(|(major, minor)| Some((digits(major)?, digits(minor)?)));
        match parts {
            Some((major, minor)) => Ok(Self { major, minor }),
            None => Err(NoComputeCapability(text.to_owned())),
        }
    }
}

/// A text that is not two numbers with a dot between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no compute capability, expected two numbers with a dot between them such as 9.0")]
pub struct NoComputeCapability(String);

impl GpuSpec {
    /// FLOPs the device can do while it reads one byte: work below it is bound by memory, above it by compute.
    pub fn ridge(&self) -> f64 {
        self.flops_per_second / self.bytes_per_second
    }

    /// Refuses numbers no device has.
    pub fn validate(&self) -> Result<(), GpuSpecError> {
        let rates = [("FLOP/s", self.flops_per_second), ("bandwidth", self.bytes_per_second)];
        for (quantity, value) in rates {
            if !(value.is_finite() && value > 0.0) {
                return Err(GpuSpecError { name: self.name.to_string(), quantity, value });
            }
        }
        if self.memory_bytes == 0 {
            return Err(GpuSpecError { name: self.name.to_string(), quantity: "memory", value: 0.0 });
        }
        Ok(())
    }
}

/// A specification with a rate or size that is not a positive number.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("GPU class `{name}`: {quantity} is {value}, expected a finite number above 0")]
pub struct GpuSpecError {
    name: String,
    quantity: &'static str,
    value: f64,
}

/// How far a catalogue entry's numbers can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confidence {
    /// The vendor's data sheet, or several independent publications that agree.
    High,
    /// Inferred or published only second-hand; override it with a measured value where one exists.
    Low,
}

/// Key and value of a node label.
pub type NodeLabel = (Cow<'static, str>, Cow<'static, str>);

/// One kind of accelerator: its specification and the names it goes by.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuClass {
    /// The numbers to plan with.
    pub spec: GpuSpec,
    /// Streaming multiprocessors, where published.
    pub multiprocessors: Option<u32>,
    /// PCI device ids under vendor 10de.
    pub pci_device_ids: Cow<'static, [u16]>,
    /// Values of `nvidia.com/gpu.product` that mean this class, each matched whole.
    pub product_labels: Cow<'static, [Cow<'static, str>]>,
    /// Labels by which a cloud announces nodes of this class, key and value; each alone means this class.
    pub node_labels: Cow<'static, [NodeLabel]>,
    /// Where the numbers come from.
    pub source: Cow<'static, str>,
    /// How far they can be trusted.
    pub confidence: Confidence,
}

impl GpuClass {
    /// The class name users write.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Whether `product` is one of the exact names, or one as old drivers write it, without `NVIDIA-`.
    pub fn claims_product(&self, product: &str) -> bool {
        let is_product = |label: &Cow<'static, str>| {
            label == product || label.strip_prefix("NVIDIA-").is_some_and(|short| short == product)
        };
        self.product_labels.iter().any(is_product)
    }
}
