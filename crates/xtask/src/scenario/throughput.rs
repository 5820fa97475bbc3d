//! Follows the operator's per-path throughput and adds it up over time, to hold it against what clients were billed.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

const METRIC: &str = "gqla_path_throughput_tokens_per_second";
/// Well below the operator's scrape interval, so that no value is missed.
const SAMPLE_EVERY: Duration = Duration::from_millis(200);

/// Tokens per label set, summed over the time since the start.
pub type Integral = BTreeMap<String, f64>;

/// A thread that samples until it is stopped.
pub struct Recorder {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Integral>>,
}

impl Recorder {
    /// Samples `http://{admin}/metrics` of the operator from now on.
    pub fn start(admin: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, thread: std::thread::spawn(move || record(admin, &stopped)) }
    }

    /// Ends the sampling and returns ∫ tokens/s dt per label set.
    pub fn finish(self) -> Result<Integral> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the sampling thread panicked"))?
    }
}

fn record(admin: SocketAddr, stop: &AtomicBool) -> Result<Integral> {
    let mut integral = Integral::new();
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let rates = rates(&scrape(admin)?);
        let seconds = last.elapsed().as_secs_f64();
        last = Instant::now();
        for (labels, rate) in rates {
            *integral.entry(labels).or_default() += rate * seconds;
        }
        std::thread::sleep(SAMPLE_EVERY);
    }
    Ok(integral)
}

/// The text of an admin port's metrics.
pub fn scrape(admin: SocketAddr) -> Result<String> {
    let url = format!("http://{admin}/metrics");
    let mut response = ureq::get(&url).call().with_context(|| format!("cannot read {url}"))?;
    Ok(response.body_mut().read_to_string()?)
}

/// The lines of the throughput metric: label text to value.
pub fn rates(exposition: &str) -> BTreeMap<String, f64> {
    exposition
        .lines()
        .filter_map(|line| line.strip_prefix(METRIC)?.strip_prefix('{')?.rsplit_once("} "))
        .filter_map(|(labels, value)| Some((labels.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_throughput_lines_are_read() {
        let text = "# TYPE gqla_path_throughput_tokens_per_second gauge\n\
                    gqla_path_throughput_tokens_per_second{path=\"gqa\",pool=\"h20\"} 12.5\n\
                    gqla_path_throughput_tokens_per_second_other{path=\"gqa\"} 1\n\
                    gqla_reconcile_total 3\n";
        let expected = BTreeMap::from([("path=\"gqa\",pool=\"h20\"".to_owned(), 12.5)]);
        assert_eq!(rates(text), expected);
    }
}
