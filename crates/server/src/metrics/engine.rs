//! Series read from the engine when Prometheus asks, so that no step pays for them.

use std::{collections::HashMap, fmt, sync::Arc};

use gqla_engine::Engine;
use gqla_telemetry::prometheus::{
    self, Gauge, IntCounter, IntGauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// Reads [`gqla_engine::EngineStats`] once per scrape.
pub(super) struct EngineCollector {
    engine: Arc<dyn Engine>,
    running: IntGauge,
    waiting: IntGauge,
    cache_usage: Gauge,
    preemptions: IntCounter,
    cache_config: IntGauge,
}

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineCollector").finish_non_exhaustive()
    }
}

impl EngineCollector {
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        labels: &HashMap<String, String>,
    ) -> prometheus::Result<Self> {
        let opts = |name: &str, help: &str| Opts::new(name, help).const_labels(labels.clone());
        let info = engine.info();
        let cache_config = IntGauge::with_opts(
            opts("vllm:cache_config_info", "Facts about the cache, as labels.")
                .const_label("block_size", info.block_size.to_string())
                .const_label("num_gpu_blocks", info.num_blocks.to_string()),
        )?;
        cache_config.set(1);
        Ok(Self {
            engine: Arc::clone(engine),
            running: IntGauge::with_opts(opts(
                "vllm:num_requests_running",
                "Sequences in the running batch.",
            ))?,
            waiting: IntGauge::with_opts(opts("vllm:num_requests_waiting", "Sequences waiting for room."))?,
            cache_usage: Gauge::with_opts(opts("vllm:kv_cache_usage_perc", "Cache blocks in use, 0 to 1."))?,
            preemptions: IntCounter::with_opts(opts(
                "vllm:num_preemptions_total",
                "Sequences evicted from the cache to be recomputed.",
            ))?,
            cache_config,
        })
    }

    fn members(&self) -> [&dyn Collector; 5] {
        [&self.running, &self.waiting, &self.cache_usage, &self.preemptions, &self.cache_config]
    }
}

impl Collector for EngineCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.members().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stats = self.engine.stats();
        self.running.set(stats.running as i64);
        self.waiting.set(stats.waiting as i64);
        let blocks = self.engine.info().num_blocks.max(1);
        self.cache_usage.set(stats.blocks_used as f64 / blocks as f64);
        self.preemptions.inc_by(stats.preemptions.saturating_sub(self.preemptions.get()));
        self.members().into_iter().flat_map(Collector::collect).collect()
    }
}
