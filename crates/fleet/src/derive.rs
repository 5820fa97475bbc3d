//! A class for a GPU that the catalogue does not have, from what NVML tells of it.
//!
//! Bandwidth is bus width times memory clock times two: HBM and GDDR move data on both edges of the clock NVML gives
//! (data sheets: H100 5120 bit × 2619 MHz = 3.35 TB/s, A100 5120 bit × 1593 MHz = 2.04 TB/s, L40S 384 bit × 9001 MHz =
//! 864 GB/s). For GDDR6X and GDDR7, NVML already gives half the rate per pin, so the same rule holds; tools that show
//! another clock must not be used with it.
//!
//! FLOPs are multiprocessors times clock times the dense bf16 FLOPs of one multiprocessor and clock, by compute capability.
//! Nothing NVML tells reveals tensor cores that were cut to meet an export rule: the formula gives an H20 four times, and
//! an L20 twice, what they do. So only half of it is planned with, and a class derived this way is never trusted: a
//! GPUClass should replace it.

use std::borrow::Cow;

use gqla_api::inventory::GpuFacts;
use gqla_planner::{Confidence, GpuClass, GpuSpec};

use crate::{node::FleetNode, words::device_word};

/// The class, or which facts are missing.
pub(crate) type Derivation = Result<GpuClass, String>;

/// Share of the computed FLOPs that is planned with, so that absorb is chosen only when it wins even then.
const CAUTION: f64 = 0.5;

/// Dense bf16 FLOPs of one multiprocessor per clock: two per multiply-add, from the architectures' white papers.
fn flops_per_clock(compute_capability: &str) -> Option<f64> {
    Some(match compute_capability {
        "8.0" => 2048.0,
        "8.9" | "12.0" => 1024.0,
        "9.0" => 4096.0,
        "10.0" => 8192.0,
        _ => return None,
    })
}

/// Bytes per second.
fn bandwidth(gpu: &GpuFacts) -> Option<f64> {
    let bytes_per_edge = f64::from(gpu.memory_bus_bits?) / 8.0;
    Some(bytes_per_edge * f64::from(gpu.memory_clock_mhz?) * 1e6 * 2.0)
}

/// FLOP/s, without caution.
fn flops(gpu: &GpuFacts) -> Option<f64> {
    let per_clock = flops_per_clock(gpu.compute_capability.as_deref()?)?;
    Some(f64::from(gpu.multiprocessors?) * per_clock * f64::from(gpu.clock_mhz?) * 1e6)
}

/// The name of the class that stands for `device`.
pub(crate) fn derived_name(device: u16) -> String {
    format!("unknown-{}", device_word(device))
}

/// The least that any GPU of these nodes, which all have `device`, has of everything.
pub(crate) fn derive<'n>(device: u16, nodes: impl IntoIterator<Item = &'n FleetNode>) -> Derivation {
    let gpus: Vec<&GpuFacts> = nodes
        .into_iter()
        .filter_map(FleetNode::believed_inventory)
        .flat_map(|inventory| &inventory.gpus)
        .collect();
    let least = |figure: fn(&GpuFacts) -> Option<f64>| {
        gpus.iter().filter_map(|gpu| figure(gpu)).filter(|value| *value > 0.0).min_by(f64::total_cmp)
    };
    let memory = gpus.iter().map(|gpu| gpu.memory_mib).filter(|mebibytes| *mebibytes > 0).min();
    let (Some(bytes_per_second), Some(flops), Some(mebibytes)) = (least(bandwidth), least(flops), memory)
    else {
        return Err(missing(&gpus));
    };
    Ok(GpuClass {
        spec: GpuSpec {
            name: Cow::Owned(derived_name(device)),
            flops_per_second: flops * CAUTION,
            bytes_per_second,
            memory_bytes: mebibytes << 20,
            compute_capability: gpus
                .iter()
                .filter_map(|gpu| gpu.compute_capability.as_deref()?.parse().ok())
                .min(),
            // Kernels tuned for a known card of the family are no promise for this one.
            derived: true,
        },
        multiprocessors: gpus.iter().filter_map(|gpu| gpu.multiprocessors).min(),
        pci_device_ids: Cow::Borrowed(&[]),
        product_labels: Cow::Borrowed(&[]),
        node_labels: Cow::Borrowed(&[]),
        source: Cow::Borrowed("NVML: bus width, clocks and multiprocessors; half the FLOPs these give"),
        confidence: Confidence::Low,
    })
}

/// Whether a GPU's facts hold something.
type Has = fn(&GpuFacts) -> bool;

fn missing(gpus: &[&GpuFacts]) -> String {
    let lacks = |has: Has| !gpus.iter().any(|gpu| has(gpu));
    let facts: [(&str, Has); 6] = [
        ("memory", |gpu| gpu.memory_mib > 0),
        ("memory bus width", |gpu| gpu.memory_bus_bits.is_some_and(|bits| bits > 0)),
        ("memory clock", |gpu| gpu.memory_clock_mhz.is_some_and(|clock| clock > 0)),
        ("multiprocessors", |gpu| gpu.multiprocessors.is_some_and(|count| count > 0)),
        ("clock", |gpu| gpu.clock_mhz.is_some_and(|clock| clock > 0)),
        ("a compute capability of known rate", |gpu| {
            gpu.compute_capability.as_deref().and_then(flops_per_clock).is_some()
        }),
    ];
    let lacking: Vec<_> = facts.iter().filter(|(_, has)| lacks(*has)).map(|(name, _)| *name).collect();
    if lacking.is_empty() { "one GPU with all figures".to_owned() } else { lacking.join(", ") }
}

#[cfg(test)]
mod tests {
    use gqla_planner::Catalogue;

    use super::*;

    /// Boost clocks, bus widths and memory clocks of the cards' data sheets.
    fn sheet(capability: &str, sms: u32, mhz: u32, bits: u32, memory_mhz: u32) -> GpuFacts {
        GpuFacts {
            compute_capability: Some(capability.to_owned()),
            multiprocessors: Some(sms),
            clock_mhz: Some(mhz),
            memory_bus_bits: Some(bits),
            memory_clock_mhz: Some(memory_mhz),
            memory_mib: 1024,
            ..GpuFacts::default()
        }
    }

    #[test]
    fn figures_are_those_of_the_catalogue_to_a_tenth() {
        let cards = [
            ("H100", sheet("9.0", 132, 1830, 5120, 2619)),
            ("H200", sheet("9.0", 132, 1830, 6144, 3201)),
            ("A100", sheet("8.0", 108, 1410, 5120, 1593)),
            ("L40S", sheet("8.9", 142, 2520, 384, 9001)),
            ("B200", sheet("10.0", 148, 1965, 8192, 3996)),
        ];
        for (name, facts) in cards {
            let catalogue = Catalogue::builtin();
            let known = &catalogue.get(name).unwrap().spec;
            let ratios = [
                flops(&facts).unwrap() / known.flops_per_second,
                bandwidth(&facts).unwrap() / known.bytes_per_second,
            ];
            assert!(ratios.iter().all(|ratio| (ratio - 1.0).abs() < 0.1), "{name}: {ratios:?}");
        }
    }

    #[test]
    fn cut_tensor_cores_are_what_the_formula_cannot_see() {
        let h20 = sheet("9.0", 78, 1980, 6144, 2619);
        let known = &Catalogue::builtin().get("H20").unwrap().spec.clone();
        assert!((bandwidth(&h20).unwrap() / known.bytes_per_second - 1.0).abs() < 0.1);
        assert!(flops(&h20).unwrap() / known.flops_per_second > 4.0);
    }
}
