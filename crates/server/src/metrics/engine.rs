//! Series read from the engine when Prometheus asks, so that no step pays for them.

use std::{collections::HashMap, fmt, sync::Arc};

use gqla_engine::{Engine, SpeculationStats};
use gqla_telemetry::prometheus::{
    self, Gauge, IntCounter, IntCounterVec, IntGauge, Opts,
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
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    cache_bytes: IntGauge,
    cache_used_bytes: IntGauge,
    cache_config: IntGauge,
    drafts: Option<DraftCounters>,
}

/// What an engine that drafts has besides.
struct DraftCounters {
    drafts: IntCounter,
    draft_tokens: IntCounter,
    accepted_tokens: IntCounter,
    accepted_per_position: IntCounterVec,
    positions: usize,
}

impl DraftCounters {
    fn new(positions: usize, opts: impl Fn(&str, &str) -> Opts) -> prometheus::Result<Self> {
        let counters = Self {
            drafts: IntCounter::with_opts(opts(
                "vllm:spec_decode_num_drafts_total",
                "Steps of single sequences that verified drafted tokens.",
            ))?,
            draft_tokens: IntCounter::with_opts(opts(
                "vllm:spec_decode_num_draft_tokens_total",
                "Drafted tokens.",
            ))?,
            accepted_tokens: IntCounter::with_opts(opts(
                "vllm:spec_decode_num_accepted_tokens_total",
                "Drafted tokens that were what the model drew.",
            ))?,
            accepted_per_position: IntCounterVec::new(
                opts(
                    "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                    "The same by their place among a step's drafts.",
                ),
                &["position"],
            )?,
            positions,
        };
        counters.update(&SpeculationStats::default());
        Ok(counters)
    }

    fn members(&self) -> [&dyn Collector; 4] {
        [&self.drafts, &self.draft_tokens, &self.accepted_tokens, &self.accepted_per_position]
    }

    fn update(&self, stats: &SpeculationStats) {
        raise(&self.drafts, stats.drafts);
        raise(&self.draft_tokens, stats.draft_tokens);
        raise(&self.accepted_tokens, stats.accepted_tokens);
        for (position, accepted) in stats.accepted_per_position.iter().enumerate().take(self.positions) {
            raise(&self.accepted_per_position.with_label_values(&[position.to_string()]), *accepted);
        }
    }
}

/// Sets a counter to a count that never falls.
fn raise(counter: &IntCounter, now: u64) {
    counter.inc_by(now.saturating_sub(counter.get()));
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
            prefix_queries: IntCounter::with_opts(opts(
                "vllm:prefix_cache_queries_total",
                "Tokens looked for in the cache when their sequence started.",
            ))?,
            prefix_hits: IntCounter::with_opts(opts(
                "vllm:prefix_cache_hits_total",
                "Tokens found in the cache and not computed again.",
            ))?,
            cache_bytes: IntGauge::with_opts(opts("gqla_kv_cache_bytes", "Bytes of all cache blocks."))?,
            cache_used_bytes: IntGauge::with_opts(opts(
                "gqla_kv_cache_used_bytes",
                "Bytes of the cache blocks that sequences have.",
            ))?,
            cache_config,
            drafts: match info.multi_token_prediction as usize {
                0 => None,
                positions => Some(DraftCounters::new(positions, opts)?),
            },
        })
    }

    fn members(&self) -> impl Iterator<Item = &dyn Collector> {
        let always: [&dyn Collector; 9] = [
            &self.running,
            &self.waiting,
            &self.cache_usage,
            &self.preemptions,
            &self.prefix_queries,
            &self.prefix_hits,
            &self.cache_bytes,
            &self.cache_used_bytes,
            &self.cache_config,
        ];
        always.into_iter().chain(self.drafts.iter().flat_map(DraftCounters::members))
    }
}

impl Collector for EngineCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.members().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let stats = self.engine.stats();
        self.running.set(stats.running as i64);
        self.waiting.set(stats.waiting as i64);
        let info = self.engine.info();
        self.cache_usage.set(stats.blocks_used as f64 / info.num_blocks.max(1) as f64);
        let bytes = |blocks: usize| (blocks * info.block_size * info.kv_bytes_per_token) as i64;
        self.cache_bytes.set(bytes(info.num_blocks));
        self.cache_used_bytes.set(bytes(stats.blocks_used));
        for (counter, now) in [
            (&self.preemptions, stats.preemptions),
            (&self.prefix_queries, stats.prefix_queries),
            (&self.prefix_hits, stats.prefix_hits),
        ] {
            raise(counter, now);
        }
        if let Some(drafts) = &self.drafts {
            drafts.update(&stats.speculation);
        }
        self.members().flat_map(Collector::collect).collect()
    }
}
