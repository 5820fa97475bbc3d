//! What the pod tells Prometheus: vLLM's names, so that existing dashboards, KEDA and the Gateway API inference
//! extension work unchanged, and ours with the decode path on every throughput series.
//!
//! A token counts as generated exactly when it is billed in `usage.completion_tokens`, so the sum over pods is the sum
//! over clients. Left out because nothing here measures them: LoRA series (there is none), and the split of the time
//! before the first token into queue and prefill.

mod buckets;
mod engine;

use std::{collections::HashMap, sync::Arc, time::Duration};

use gqla_engine::{Engine, EngineInfo};
use gqla_protocol::FinishReason;
use gqla_telemetry::prometheus::{
    self, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
};

use crate::{admission::Refusal, decode_path::Reason, drain::DrainState, metrics::engine::EngineCollector};

/// Metrics that exist from the start of the process. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    labels: HashMap<String, String>,
    rejected: IntCounterVec,
    drain: IntGauge,
    sequences: SequenceMetrics,
}

/// Metrics every sequence writes to, without locks.
#[derive(Clone, Debug)]
pub struct SequenceMetrics {
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    success: IntCounterVec,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    time_per_output_token: Histogram,
    latency: Histogram,
    decode_time: Histogram,
    prompt_length: Histogram,
    generation_length: Histogram,
    max_tokens: Histogram,
    /// By path; known once the model is loaded.
    path_tokens: Option<IntCounter>,
}

/// Registers series under common labels.
struct Registrar<'a> {
    registry: &'a Registry,
    labels: &'a HashMap<String, String>,
}

impl Metrics {
    /// Registers everything that does not need the model. `served_name` is the label `model_name`.
    pub fn new(served_name: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let labels: HashMap<_, _> =
            [("model_name", served_name), ("engine", "0")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let registrar = Registrar { registry: &registry, labels: &labels };
        let rejected = registrar.counters(
            "gqla_queue_rejected_total",
            "Requests turned away before they reached the queue, or by it.",
            &["reason"],
        )?;
        for reason in Refusal::REASONS {
            rejected.with_label_values(&[reason]);
        }
        let drain = registrar.register(IntGauge::with_opts(registrar.opts(
            "gqla_drain_state",
            "0 serving, 1 lame duck (not ready, still taking requests), 2 draining.",
        ))?)?;
        let sequences = SequenceMetrics::new(&registrar)?;
        Ok(Self { rejected, drain, sequences, labels, registry })
    }

    /// What `/metrics` shows.
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// A request was turned away.
    pub fn rejected(&self, refusal: Refusal) {
        self.rejected.with_label_values(&[refusal.reason()]).inc();
    }

    /// The end came closer.
    pub fn drain_state(&self, state: DrainState) {
        self.drain.set(state as i64);
    }

    /// Adds the series of a loaded model and returns what its sequences write to.
    pub fn attach(
        &self,
        engine: &Arc<dyn Engine>,
        reason: Reason,
        load_time: Duration,
    ) -> prometheus::Result<SequenceMetrics> {
        let registrar = Registrar { registry: &self.registry, labels: &self.labels };
        let info = engine.info();
        let path = info.path.map_or("plain", |path| path.metric_label());
        let of_path =
            registrar.counters("gqla_generated_tokens_total", "Tokens generated and billed.", &["path"])?;
        let decode_path = registrar.gauges(
            "gqla_decode_path",
            "1 for the path in use and who chose it.",
            &["path", "reason"],
        )?;
        decode_path.with_label_values(&[path, reason.label()]).set(1);
        let bytes = registrar.gauges(
            "gqla_kv_bytes_per_token",
            "Cache bytes one token takes in all layers, on all tensor-parallel ranks together.",
            &["path"],
        )?;
        bytes.with_label_values(&[path]).set(info.kv_bytes_per_token as i64);
        registrar.of_ranks(info)?;
        let load = prometheus::Gauge::with_opts(
            registrar
                .opts("gqla_weights_load_seconds", "Time from opening the checkpoint to a ready engine."),
        )?;
        registrar.register(load)?.set(load_time.as_secs_f64());
        self.registry.register(Box::new(EngineCollector::new(engine, &self.labels)?))?;
        let path_tokens = Some(of_path.with_label_values(&[path]));
        Ok(SequenceMetrics { path_tokens, ..self.sequences.clone() })
    }
}

impl SequenceMetrics {
    fn new(registrar: &Registrar<'_>) -> prometheus::Result<Self> {
        let success = registrar.counters(
            "vllm:request_success_total",
            "Finished sequences by reason.",
            &["finished_reason"],
        )?;
        for reason in [FinishReason::Stop, FinishReason::Length, FinishReason::Abort] {
            success.with_label_values(&[reason.as_str()]);
        }
        let histogram = |name: &str, help: &str, buckets: &[f64]| registrar.histogram(name, help, buckets);
        Ok(Self {
            prompt_tokens: registrar.counter("vllm:prompt_tokens_total", "Prompt tokens billed.")?,
            generation_tokens: registrar
                .counter("vllm:generation_tokens_total", "Tokens generated and billed.")?,
            success,
            time_to_first_token: histogram(
                "vllm:time_to_first_token_seconds",
                "From submission to the first token.",
                &buckets::FIRST_TOKEN,
            )?,
            inter_token_latency: histogram(
                "vllm:inter_token_latency_seconds",
                "Between consecutive tokens of a sequence.",
                &buckets::PER_TOKEN,
            )?,
            time_per_output_token: histogram(
                "vllm:request_time_per_output_token_seconds",
                "Mean time per token after the first, per sequence.",
                &buckets::PER_TOKEN,
            )?,
            latency: histogram(
                "vllm:e2e_request_latency_seconds",
                "From submission to the last token.",
                &buckets::REQUEST,
            )?,
            decode_time: histogram(
                "vllm:request_decode_time_seconds",
                "From the first token to the last.",
                &buckets::REQUEST,
            )?,
            prompt_length: histogram(
                "vllm:request_prompt_tokens",
                "Prompt tokens per sequence.",
                &buckets::TOKENS,
            )?,
            generation_length: histogram(
                "vllm:request_generation_tokens",
                "Generated tokens per sequence.",
                &buckets::TOKENS,
            )?,
            max_tokens: histogram(
                "vllm:request_params_max_tokens",
                "max_tokens per sequence.",
                &buckets::TOKENS,
            )?,
            path_tokens: None,
        })
    }

    /// A sequence was taken by the engine.
    pub fn submitted(&self, prompt_tokens: usize, max_tokens: u32) {
        self.prompt_length.observe(prompt_tokens as f64);
        self.max_tokens.observe(f64::from(max_tokens));
    }

    /// A prompt was answered for the first time, so it is billed.
    pub fn billed_prompt(&self, tokens: usize) {
        self.prompt_tokens.inc_by(tokens as u64);
    }

    /// The first token came.
    pub fn first_token(&self, after: Duration) {
        self.count();
        self.time_to_first_token.observe(after.as_secs_f64());
    }

    /// Another token came.
    pub fn next_token(&self, after: Duration) {
        self.count();
        self.inter_token_latency.observe(after.as_secs_f64());
    }

    /// A sequence ended; `reason` is `stop`, `length`, `abort` or `error`.
    pub fn finished(&self, reason: &str, tokens: u64, latency: Duration, decode: Option<Duration>) {
        self.success.with_label_values(&[reason]).inc();
        self.latency.observe(latency.as_secs_f64());
        self.generation_length.observe(tokens as f64);
        if let Some(decode) = decode {
            self.decode_time.observe(decode.as_secs_f64());
            if tokens > 1 {
                self.time_per_output_token.observe(decode.as_secs_f64() / (tokens - 1) as f64);
            }
        }
    }

    fn count(&self) {
        self.generation_tokens.inc();
        if let Some(path_tokens) = &self.path_tokens {
            path_tokens.inc();
        }
    }
}

impl Registrar<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_labels(self.labels.clone())
    }

    fn register<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register(IntCounter::with_opts(self.opts(name, help))?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.register(IntCounterVec::new(self.opts(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<prometheus::IntGaugeVec> {
        self.register(prometheus::IntGaugeVec::new(self.opts(name, help), labels)?)
    }

    /// What each tensor-parallel rank holds.
    fn of_ranks(&self, info: &EngineInfo) -> prometheus::Result<()> {
        let weights = self.gauges(
            "gqla_rank_weight_bytes",
            "Bytes of the checkpoint that a tensor-parallel rank holds.",
            &["rank"],
        )?;
        let cache = self.gauges(
            "gqla_rank_kv_bytes_per_token",
            "Cache bytes one token takes in all layers on a tensor-parallel rank.",
            &["rank"],
        )?;
        for (rank, holds) in info.ranks.iter().enumerate() {
            let rank = rank.to_string();
            weights.with_label_values(&[&rank]).set(i64::try_from(holds.weight_bytes).unwrap_or(i64::MAX));
            cache.with_label_values(&[&rank]).set(holds.kv_bytes_per_token as i64);
        }
        Ok(())
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        let common_opts = self.opts(name, help);
        self.register(Histogram::with_opts(HistogramOpts { common_opts, buckets: buckets.to_vec() })?)
    }
}
