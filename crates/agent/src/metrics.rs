//! What is shown of the GPUs: everything that changes from second to second, and health.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use gqla_api::inventory::{GpuFacts, NodeInventory};
use gqla_telemetry::prometheus::{
    self, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry,
};
use parking_lot::Mutex;

use crate::{
    facts::{Facts, GpuError, GpuReading, Now, Reading},
    nvml::THROTTLE_NAMES,
};

/// Seconds; a pass over eight GPUs takes milliseconds, a driver in trouble seconds.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0];
/// XIDs have three digits; a driver that counts on would make a series of each.
const LARGEST_XID: u32 = 999;

/// A gauge: its name, its help and its labels.
type Family = (&'static str, &'static str, &'static [&'static str]);

const INFO: Family = (
    "gqla_agent_gpu_info",
    "1 for every GPU the node has or had.",
    &["gpu", "uuid", "product", "pci_device", "pci_bus"],
);
const HEALTHY: Family = ("gqla_agent_gpu_healthy", "1 when the GPU can be used.", &["gpu"]);
const MEMORY_TOTAL: Family = ("gqla_agent_gpu_memory_total_bytes", "Memory of the GPU.", &["gpu"]);
const MEMORY_USED: Family = ("gqla_agent_gpu_memory_used_bytes", "Memory in use.", &["gpu"]);
const SM_CLOCK: Family = ("gqla_agent_gpu_sm_clock_hertz", "Clock of the multiprocessors.", &["gpu"]);
const MEMORY_CLOCK: Family = ("gqla_agent_gpu_memory_clock_hertz", "Memory clock.", &["gpu"]);
const TEMPERATURE: Family = ("gqla_agent_gpu_temperature_celsius", "Temperature of the GPU.", &["gpu"]);
const POWER: Family = ("gqla_agent_gpu_power_watts", "Power drawn.", &["gpu"]);
const POWER_LIMIT: Family = ("gqla_agent_gpu_power_limit_watts", "Power limit in force.", &["gpu"]);
const THROTTLE: Family =
    ("gqla_agent_gpu_throttle_reason", "1 while the reason holds the GPU's clocks down.", &["gpu", "reason"]);
const NVLINKS: Family = ("gqla_agent_nvlink_up", "NVLinks that are up.", &["gpu"]);
const DRIVER: Family = ("gqla_agent_driver_state", "1 for the state the driver is in.", &["state"]);
const FAMILIES: [Family; 12] = [
    INFO,
    HEALTHY,
    MEMORY_TOTAL,
    MEMORY_USED,
    SM_CLOCK,
    MEMORY_CLOCK,
    TEMPERATURE,
    POWER,
    POWER_LIMIT,
    THROTTLE,
    NVLINKS,
    DRIVER,
];

/// Metric name and label values.
type Series = (&'static str, Vec<String>);
/// Values of series.
type Samples = BTreeMap<Series, f64>;

/// The agent's metrics.
#[derive(Clone)]
pub struct Metrics {
    gauges: BTreeMap<&'static str, GaugeVec>,
    xids: IntCounterVec,
    read_seconds: Histogram,
    node_writes: IntCounter,
    /// What was shown last, to withdraw what is gone.
    shown: Arc<Mutex<BTreeSet<Series>>>,
}

impl Metrics {
    /// Registers everything with `registry`.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let mut gauges = BTreeMap::new();
        for (name, help, labels) in FAMILIES {
            let gauge = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauge.clone()))?;
            gauges.insert(name, gauge);
        }
        let metrics = Self {
            gauges,
            xids: IntCounterVec::new(
                Opts::new(
                    "gqla_agent_gpu_xid_errors_total",
                    "XIDs the driver reported, those of programs included.",
                ),
                &["gpu", "xid"],
            )?,
            read_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "gqla_agent_nvml_read_seconds",
                    "Time the driver took to answer one pass.",
                )
                .buckets(BUCKETS.to_vec()),
            )?,
            node_writes: IntCounter::new("gqla_agent_node_writes_total", "Writes of the Node.")?,
            shown: Arc::default(),
        };
        registry.register(Box::new(metrics.xids.clone()))?;
        registry.register(Box::new(metrics.read_seconds.clone()))?;
        registry.register(Box::new(metrics.node_writes.clone()))?;
        Ok(metrics)
    }

    /// Shows what the node is and what its GPUs do, and withdraws everything else.
    pub fn show(&self, inventory: &NodeInventory, reading: &Reading) {
        let samples = samples(inventory, reading);
        let mut shown = self.shown.lock();
        for (name, labels) in shown.iter().filter(|key| !samples.contains_key(key)) {
            // Only fails for labels that were never set.
            let _ = self.gauges.get(name).map(|gauge| gauge.remove_label_values(labels));
        }
        for ((name, labels), value) in &samples {
            if let Some(gauge) = self.gauges.get(name) {
                gauge.with_label_values(labels).set(*value);
            }
        }
        *shown = samples.into_keys().collect();
    }

    /// Counts an error a GPU reported; `None` is a GPU that was gone before it could be asked who it is.
    pub fn reported(&self, gpu: Option<u32>, error: GpuError) {
        if let GpuError::Xid(xid) = error {
            let xid = xid.min(LARGEST_XID).to_string();
            let gpu = gpu.map_or("unknown".to_owned(), |gpu| gpu.to_string());
            self.xids.with_label_values(&[gpu, xid]).inc();
        }
    }

    /// Notes how long the driver took to answer.
    pub fn read_took(&self, duration: Duration) {
        self.read_seconds.observe(duration.as_secs_f64());
    }

    /// Counts a write of the Node.
    pub fn node_written(&self) {
        self.node_writes.inc();
    }
}

fn samples(inventory: &NodeInventory, reading: &Reading) -> Samples {
    let mut samples = Samples::new();
    samples.insert((DRIVER.0, vec![format!("{:?}", inventory.driver)]), 1.0);
    for gpu in &inventory.gpus {
        samples.insert((INFO.0, info(gpu)), 1.0);
        samples
            .insert((HEALTHY.0, vec![gpu.index.to_string()]), f64::from(u8::from(gpu.health.is_healthy())));
    }
    if let Reading::Answered(Facts { gpus, .. }) = reading {
        for (index, gpu) in gpus.iter().enumerate() {
            if let GpuReading::Seen(seen) = gpu {
                #[allow(clippy::cast_precision_loss, reason = "a card has a handful of links")]
                samples.insert((NVLINKS.0, vec![index.to_string()]), seen.link_ends.len() as f64);
                samples.extend(of_the_moment(&index.to_string(), &seen.now));
            }
        }
    }
    samples
}

fn info(gpu: &GpuFacts) -> Vec<String> {
    vec![
        gpu.index.to_string(),
        gpu.uuid.clone(),
        gpu.product.clone(),
        format!("{:04x}", gpu.pci_device_id),
        gpu.pci_bus_id.clone(),
    ]
}

#[allow(clippy::cast_precision_loss, reason = "bytes of one GPU are far below 2^53")]
fn of_the_moment(gpu: &str, now: &Now) -> Samples {
    let megahertz = |mhz: Option<u32>| mhz.map(|mhz| f64::from(mhz) * 1e6);
    let watts = |milliwatts: Option<u32>| milliwatts.map(|milliwatts| f64::from(milliwatts) / 1e3);
    let values = [
        (MEMORY_TOTAL.0, now.memory_total.map(|bytes| bytes as f64)),
        (MEMORY_USED.0, now.memory_used.map(|bytes| bytes as f64)),
        (SM_CLOCK.0, megahertz(now.sm_clock_mhz)),
        (MEMORY_CLOCK.0, megahertz(now.memory_clock_mhz)),
        (TEMPERATURE.0, now.temperature_celsius.map(f64::from)),
        (POWER.0, watts(now.power_milliwatts)),
        (POWER_LIMIT.0, watts(now.power_limit_milliwatts)),
    ];
    let known = values.into_iter().filter_map(|(name, value)| Some(((name, vec![gpu.to_owned()]), value?)));
    let reasons = THROTTLE_NAMES.into_iter().map(|reason| {
        let holds = now.throttled.contains(&reason);
        ((THROTTLE.0, vec![gpu.to_owned(), reason.to_owned()]), f64::from(u8::from(holds)))
    });
    known.chain(reasons).collect()
}

#[cfg(test)]
mod tests {
    use gqla_api::inventory::{DriverState, GpuHealth};
    use gqla_telemetry::prometheus::TextEncoder;

    use super::*;
    use crate::facts::{Refusal, Seen};

    fn text(registry: &Registry) -> String {
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn series_of_what_is_gone_disappear() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let gpu = |index, health| GpuFacts {
            index,
            product: "NVIDIA H20".to_owned(),
            health,
            ..GpuFacts::default()
        };
        let now = Now { power_milliwatts: Some(350_500), throttled: vec!["power_cap"], ..Now::default() };
        let seen = GpuReading::Seen(Box::new(Seen { now, ..Seen::default() }));
        let facts = Facts { gpus: vec![seen, GpuReading::Lost], ..Facts::default() };
        let mut inventory = NodeInventory {
            driver: DriverState::Ready,
            gpus: vec![gpu(0, GpuHealth::Healthy), gpu(1, GpuHealth::Lost)],
            ..NodeInventory::default()
        };
        metrics.show(&inventory, &Reading::Answered(facts));
        metrics.reported(Some(1), GpuError::Xid(79));
        let shown = text(&registry);
        for line in [
            "gqla_agent_gpu_power_watts{gpu=\"0\"} 350.5",
            "gqla_agent_gpu_throttle_reason{gpu=\"0\",reason=\"power_cap\"} 1",
            "gqla_agent_gpu_throttle_reason{gpu=\"0\",reason=\"power_brake\"} 0",
            "gqla_agent_gpu_healthy{gpu=\"0\"} 1",
            "gqla_agent_gpu_healthy{gpu=\"1\"} 0",
            "gqla_agent_driver_state{state=\"Ready\"} 1",
            "gqla_agent_gpu_xid_errors_total{gpu=\"1\",xid=\"79\"} 1",
        ] {
            assert!(shown.contains(line), "{line} is not in {shown}");
        }
        assert!(!shown.contains("gqla_agent_gpu_power_watts{gpu=\"1\"}"), "{shown}");

        inventory.driver = DriverState::Hanging;
        inventory.gpus.pop();
        let refusal = Refusal { state: DriverState::Hanging, message: String::new() };
        metrics.show(&inventory, &Reading::Refused(refusal));
        let shown = text(&registry);
        assert!(shown.contains("gqla_agent_gpu_healthy{gpu=\"0\"} 1"), "{shown}");
        for gone in ["gpu_power_watts{", "gpu_healthy{gpu=\"1\"}", "state=\"Ready\""] {
            assert!(!shown.contains(gone), "{gone} is still in {shown}");
        }
    }
}
