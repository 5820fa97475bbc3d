//! Which machine is measured, as far as a figure depends on it.

use std::fs;

use gqla_engine::cpu::{InstructionSet, Pool};
use gqla_planner::Provenance;

/// Version of the engine and its kernels, which are released with this tool.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The processor as the system describes it.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    processor: String,
    pub(super) threads: usize,
    /// Bytes; `None` where the system does not say.
    pub(super) last_level_cache: Option<u64>,
}

impl Machine {
    pub(super) fn read(pool: &Pool) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        // Levels are numbered from the core outwards; three is the most there is.
        let cache =
            |index| fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"));
        Self {
            processor: processor(&cpuinfo).unwrap_or(std::env::consts::ARCH).to_owned(),
            threads: pool.threads(),
            last_level_cache: (0..5).filter_map(|index| cache_bytes(&cache(index).ok()?)).max(),
        }
    }

    /// Processor and threads.
    pub(super) fn name(&self) -> String {
        let plural = if self.threads == 1 { "" } else { "s" };
        format!("{}, {} thread{plural}", self.processor, self.threads)
    }

    pub(super) fn provenance(
        &self,
        tool: String,
        set: InstructionSet,
        what: &str,
        samples: u32,
    ) -> Provenance {
        Provenance {
            tool,
            device: self.name(),
            build: format!("{VERSION} {}{what}", set.name()),
            measured_at: now(),
            samples,
        }
    }
}

/// A caution where `bytes` that were read over and over might have stayed in the last-level cache.
pub(super) fn caution(bytes: u64, last_level_cache: Option<u64>) -> Option<String> {
    let cache = last_level_cache.filter(|cache| bytes < cache.saturating_mul(2))?;
    Some(format!(
        "caution: {} MiB are less than twice the last-level cache of {} MiB, which may have answered for memory; raise \
         --memory-mib",
        bytes >> 20,
        cache >> 20
    ))
}

/// The time, to the second, as RFC 3339.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Second).unwrap_or(now).to_string()
}

fn processor(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim()).filter(|name| !name.is_empty())
}

/// As sysfs writes sizes: `32768K`.
fn cache_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.len().checked_sub(1)?);
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_s_spelling_is_read() {
        assert_eq!(
            processor("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags: x\n"),
            Some("AMD EPYC 7B13")
        );
        assert_eq!(processor("Hardware : none\n"), None);
        for (text, bytes) in [("48K\n", Some(48 << 10)), ("32M", Some(32 << 20)), ("", None), ("12", None)] {
            assert_eq!(cache_bytes(text), bytes, "{text}");
        }
    }

    #[test]
    fn a_buffer_the_cache_could_hold_is_warned_of() {
        assert!(caution(63 << 20, Some(32 << 20)).unwrap().contains("cache of 32 MiB"));
        assert_eq!(caution(64 << 20, Some(32 << 20)), None);
        assert_eq!(caution(1, None), None);
    }
}
