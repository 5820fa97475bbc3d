//! What processes of this machine cost, as /proc has it.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks of /proc per second, the same on every Linux.
const TICKS: f64 = 100.0;

/// What one process costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Resident memory.
    pub resident_kib: u64,
    /// CPU time since its start.
    pub cpu_seconds: f64,
}

impl Usage {
    /// Of process `pid`.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{pid}/{file}"))
                .with_context(|| format!("process {pid} has ended"))
        };
        Self::parse(&read("status")?, &read("stat")?)
            .with_context(|| format!("/proc/{pid} tells neither memory nor time"))
    }

    /// Of every process called `name`.
    pub fn of_all(name: &str) -> Result<Vec<Self>> {
        let pids = fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        // Processes may end between one look and the next.
        let called =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        Ok(pids.filter(called).filter_map(|pid| Self::of(pid).ok()).collect())
    }

    fn parse(status: &str, stat: &str) -> Option<Self> {
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        // Fields 14 and 15; the name before them is in parentheses and may hold anything.
        let times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        Some(Self {
            resident_kib: resident.trim().trim_end_matches(" kB").parse().ok()?,
            cpu_seconds: times.map(str::parse::<f64>).sum::<Result<f64, _>>().ok()? / TICKS,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_are_found_behind_any_name() {
        let status = "Name:\ta b\nVmRSS:\t   10424 kB\n";
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(Usage::parse(status, stat), Some(Usage { resident_kib: 10_424, cpu_seconds: 2.0 }));
        assert_eq!(Usage::parse("", stat), None);
        assert!(Usage::of(std::process::id()).unwrap().resident_kib > 0);
    }
}
