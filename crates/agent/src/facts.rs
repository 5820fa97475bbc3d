//! What NVML said in one pass, before anything is concluded from it; and the arithmetic on it.

use gqla_api::inventory::{DriverState, GpuFacts};

/// The oldest CUDA version a driver may run, as NVML counts: 12040 is 12.4.
pub const OLDEST_CUDA: i32 = 12_000;

/// One pass over NVML.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// It answered.
    Answered(Facts),
    /// It did not, or not to us.
    Refused(Refusal),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What that makes of the driver; never `Ready`.
    pub state: DriverState,
    /// One sentence that says it and what to do. It must not change from pass to pass: each change is a write.
    pub message: String,
}

/// What a driver says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Version of the kernel driver.
    pub driver_version: String,
    /// Newest CUDA version of the driver, as NVML counts.
    pub cuda_driver: i32,
    /// Every GPU the driver lists, by index.
    pub gpus: Vec<GpuReading>,
}

/// What a driver says of one GPU.
#[derive(Clone, Debug, PartialEq)]
pub enum GpuReading {
    /// It answers.
    Seen(Box<Seen>),
    /// It is listed, but fell off the bus.
    Lost,
}

/// A GPU that answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// What lasts. Links, multiprocessors and health are still to be concluded from the rest.
    pub facts: GpuFacts,
    /// CUDA cores.
    pub cuda_cores: Option<u32>,
    /// CUDA compute capability.
    pub capability: Option<(i32, i32)>,
    /// PCI address of the other end of each NVLink that is up; empty where the driver names none.
    pub link_ends: Vec<String>,
    /// Rows of its memory wait for a reset to be remapped, or could not be.
    pub bad_memory: bool,
    /// What changes from second to second.
    pub now: Now,
}

/// What a GPU does at the moment; `None` where it has no such sensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Memory in bytes.
    pub memory_total: Option<u64>,
    /// Memory in use in bytes.
    pub memory_used: Option<u64>,
    /// Clock of the multiprocessors in MHz.
    pub sm_clock_mhz: Option<u32>,
    /// Memory clock in MHz.
    pub memory_clock_mhz: Option<u32>,
    /// Temperature in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Power drawn in milliwatts.
    pub power_milliwatts: Option<u32>,
    /// Power limit in force in milliwatts.
    pub power_limit_milliwatts: Option<u32>,
    /// Names of the reasons that hold its clocks down.
    pub throttled: Vec<&'static str>,
}

/// Something a GPU reported by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Index of the GPU; `None` when it was gone before it could be asked.
    pub gpu: Option<u32>,
    /// What it reported.
    pub error: GpuError,
}

/// An error a GPU reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuError {
    /// The driver's number for it.
    Xid(u32),
    /// A memory error that could not be corrected.
    DoubleBit,
}

/// Streaming multiprocessors of a GPU with this many CUDA cores; `None` for a capability nobody described.
///
/// Cores per multiprocessor are those of the CUDA C++ Programming Guide's table of arithmetic throughput (32-bit floating-point
/// operations per clock and multiprocessor).
pub fn multiprocessors(cuda_cores: u32, capability: (i32, i32)) -> Option<u32> {
    let cores = match capability {
        (7, _) | (6 | 8, 0) => 64,
        (6, _) | (8..=12, _) => 128,
        _ => return None,
    };
    Some(cuda_cores / cores)
}

/// Which GPUs each GPU reaches over NVLink, directly or through a switch.
///
/// An end that is no GPU of the node is taken for a switch, and all switches of a node for one fabric.
/// NVML has a call that tells switch from GPU, but nvml-wrapper 0.13 returns `Unknown` from it whatever the driver says.
pub fn nvlink_peers(gpus: &[(u32, &str, &[String])]) -> Vec<Vec<u32>> {
    let is = |address: &str, end: &String| end.eq_ignore_ascii_case(address);
    let switched =
        |ends: &[String]| ends.iter().any(|end| !gpus.iter().any(|(_, address, _)| is(address, end)));
    let reaches = |from: &(u32, &str, &[String]), to: &(u32, &str, &[String])| {
        from.0 != to.0 && (from.2.iter().any(|end| is(to.1, end)) || (switched(from.2) && switched(to.2)))
    };
    let peers = |from| gpus.iter().filter(|to| reaches(from, to)).map(|to| to.0).collect();
    gpus.iter().map(peers).collect()
}

/// A CUDA version as people write it: 12040 is `12.4`.
pub fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiprocessors_follow_from_cores_and_capability() {
        let cases = [
            ((9984, (9, 0)), Some(78)),
            ((16896, (9, 0)), Some(132)),
            ((6912, (8, 0)), Some(108)),
            ((18176, (8, 9)), Some(142)),
            ((18944, (10, 0)), Some(148)),
            ((5120, (7, 0)), Some(80)),
            ((3584, (6, 0)), Some(56)),
            ((3840, (6, 1)), Some(30)),
            ((1024, (99, 0)), None),
        ];
        for ((cores, capability), expected) in cases {
            assert_eq!(multiprocessors(cores, capability), expected, "{capability:?}");
        }
    }

    #[test]
    fn peers_are_reached_directly_or_through_switches() {
        let ends = |ends: &[&str]| ends.iter().map(|&end| end.to_owned()).collect::<Vec<_>>();
        let (switch, other) = (ends(&["00000000:05:00.0"]), ends(&["00000000:06:00.0"]));
        let (to_e, to_d, none) = (ends(&["00000000:1e:00.0"]), ends(&["00000000:1D:00.0"]), ends(&[]));
        let gpus = [
            (0, "00000000:1A:00.0", &switch[..]),
            (1, "00000000:1B:00.0", &other[..]),
            (2, "00000000:1C:00.0", &none[..]),
            (3, "00000000:1D:00.0", &to_e[..]),
            (4, "00000000:1E:00.0", &to_d[..]),
        ];
        assert_eq!(nvlink_peers(&gpus), [vec![1], vec![0], vec![], vec![4], vec![3]]);
    }

    #[test]
    fn cuda_versions_read_as_people_write_them() {
        assert_eq!(cuda_version(12_040), "12.4");
        assert_eq!(cuda_version(13_000), "13.0");
    }
}
