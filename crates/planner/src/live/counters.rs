//! From two readings of an engine's counters to what it did in between.

use super::LiveError;

/// Fewest tokens a mean is taken over.
const FEWEST_TOKENS: f64 = 100.0;
/// Tokens per interval above which they came in bunches, rather than some being lost between two readings.
const BUNCHED: f64 = 1.1;
/// Drafts a step may verify: as many as a plan takes.
const MOST_DRAFTS: f64 = 15.0;

/// A histogram's sum and count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Observed {
    /// Of all values.
    pub sum: f64,
    /// How many.
    pub count: f64,
}

/// What an engine that drafts has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DraftCounters {
    /// Steps of a sequence that verified drafts, `vllm:spec_decode_num_drafts_total`.
    pub passes: f64,
    /// Drafted tokens, `vllm:spec_decode_num_draft_tokens_total`.
    pub drafted: f64,
    /// Of these accepted, `vllm:spec_decode_num_accepted_tokens_total`.
    pub accepted: f64,
}

/// What an engine has counted since it started. Both gqla-server and vLLM export all but the drafts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LiveCounters {
    /// `vllm:generation_tokens_total`.
    pub generated_tokens: f64,
    /// `vllm:prompt_tokens_total`.
    pub prompt_tokens: f64,
    /// Sequences that had their first token: the count of `vllm:time_to_first_token_seconds`.
    pub first_tokens: f64,
    /// Seconds from one output of a sequence to its next, `vllm:inter_token_latency_seconds`.
    pub intervals: Observed,
    /// Prompt tokens per request, `vllm:request_prompt_tokens`.
    pub prompts: Observed,
    /// Answered tokens per request, `vllm:request_generation_tokens`.
    pub answers: Observed,
    /// Where the engine drafts and says so.
    pub drafts: Option<DraftCounters>,
}

impl LiveCounters {
    /// Every counter under the name it is exported with, for sentences.
    fn named(&self) -> [(&'static str, f64); 12] {
        let drafts = self.drafts.unwrap_or_default();
        [
            ("vllm:generation_tokens_total", self.generated_tokens),
            ("vllm:prompt_tokens_total", self.prompt_tokens),
            ("vllm:time_to_first_token_seconds_count", self.first_tokens),
            ("vllm:inter_token_latency_seconds_sum", self.intervals.sum),
            ("vllm:inter_token_latency_seconds_count", self.intervals.count),
            ("vllm:request_prompt_tokens_sum", self.prompts.sum),
            ("vllm:request_prompt_tokens_count", self.prompts.count),
            ("vllm:request_generation_tokens_sum", self.answers.sum),
            ("vllm:request_generation_tokens_count", self.answers.count),
            ("vllm:spec_decode_num_drafts_total", drafts.passes),
            ("vllm:spec_decode_num_draft_tokens_total", drafts.drafted),
            ("vllm:spec_decode_num_accepted_tokens_total", drafts.accepted),
        ]
    }

    /// What was counted since `before`.
    fn since(&self, before: &Self) -> Result<Self, LiveError> {
        for ((counter, after), (_, before)) in self.named().into_iter().zip(before.named()) {
            if !(after.is_finite() && before >= 0.0 && after >= before) {
                return Err(LiveError::Backwards { counter, before, after });
            }
        }
        let of = |after: Observed, before: Observed| Observed {
            sum: after.sum - before.sum,
            count: after.count - before.count,
        };
        let earlier = before.drafts.unwrap_or_default();
        Ok(Self {
            generated_tokens: self.generated_tokens - before.generated_tokens,
            prompt_tokens: self.prompt_tokens - before.prompt_tokens,
            first_tokens: self.first_tokens - before.first_tokens,
            intervals: of(self.intervals, before.intervals),
            prompts: of(self.prompts, before.prompts),
            answers: of(self.answers, before.answers),
            drafts: self.drafts.map(|drafts| DraftCounters {
                passes: drafts.passes - earlier.passes,
                drafted: drafts.drafted - earlier.drafted,
                accepted: drafts.accepted - earlier.accepted,
            }),
        })
    }
}

/// What a pod did between two readings, on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveLoad {
    /// Generated tokens that sequences waited for a step for: all but their first.
    pub decoded_tokens: f64,
    /// Generated tokens per second, first ones included.
    pub tokens_per_second: f64,
    /// Milliseconds a sequence waited for a token.
    pub time_per_output_token_ms: f64,
    /// Milliseconds of a decoding step: as long as the tokens took that it yields per sequence.
    pub step_ms: f64,
    /// Tokens a step yields per sequence; more than 1 with drafts.
    pub tokens_per_step: f64,
    /// Drafted tokens a step verifies per sequence.
    pub drafts: u32,
    /// Sequences that were being decoded.
    pub batch: f64,
    /// Prompts that were read.
    pub prompts: f64,
    /// Tokens of a prompt, the mean over requests.
    pub prompt_tokens: f64,
    /// Tokens of an answer, the mean over requests.
    pub answer_tokens: f64,
}

impl LiveLoad {
    /// What happened from `before` to `after`, `seconds` apart.
    ///
    /// The batch is Little's law: the time all sequences waited for their tokens, over the time that passed. It is the
    /// batch of a step only while the pod is never idle.
    pub fn between(before: &LiveCounters, after: &LiveCounters, seconds: f64) -> Result<Self, LiveError> {
        if !(seconds.is_finite() && seconds > 0.0) {
            return Err(LiveError::Seconds { seconds });
        }
        let grown = after.since(before)?;
        let decoded_tokens = grown.generated_tokens - grown.first_tokens;
        if !(decoded_tokens >= FEWEST_TOKENS && grown.intervals.count >= 1.0) {
            return Err(LiveError::TooFew { tokens: decoded_tokens.max(0.0), least: FEWEST_TOKENS });
        }
        let (drafts, tokens_per_step) = grown.drafts(decoded_tokens)?;
        let waited = grown.intervals.sum;
        let batch = waited / seconds;
        if batch < 0.5 {
            return Err(LiveError::Idle { waited, seconds });
        }
        let (Some(prompt_tokens), Some(answer_tokens)) = (mean(grown.prompts), mean(grown.answers)) else {
            return Err(LiveError::NoneFinished { seconds });
        };
        let time_per_output_token_ms = waited / decoded_tokens * 1e3;
        Ok(Self {
            decoded_tokens,
            tokens_per_second: grown.generated_tokens / seconds,
            time_per_output_token_ms,
            step_ms: time_per_output_token_ms * tokens_per_step,
            tokens_per_step,
            drafts,
            batch,
            prompts: grown.prompt_tokens / prompt_tokens,
            prompt_tokens,
            answer_tokens,
        })
    }

    /// Cached tokens of a sequence on a request's average.
    pub fn context(&self) -> f64 {
        self.prompt_tokens + self.answer_tokens / 2.0
    }

    /// Steps that were taken, if each had the mean batch.
    pub(super) fn steps(&self) -> f64 {
        self.decoded_tokens / self.tokens_per_step / self.batch
    }
}

impl LiveCounters {
    /// Drafted tokens per step, and tokens a step yields per sequence. A step yields one token and the drafts it
    /// accepts, so there were as many steps as `decoded` tokens that were not drafted: engines that follow the load
    /// draft in some steps only.
    fn drafts(&self, decoded: f64) -> Result<(u32, f64), LiveError> {
        match self.drafts.filter(|drafts| drafts.passes >= 1.0) {
            Some(DraftCounters { passes, drafted, accepted }) => {
                if !(accepted <= drafted && (drafted / passes).round() <= MOST_DRAFTS) {
                    return Err(LiveError::Drafts { passes, drafted, accepted, most: MOST_DRAFTS });
                }
                // Tokens behind a stop are accepted and not delivered, so there may seem to be fewer than drafted.
                let steps = (decoded - accepted).max(passes);
                Ok(((drafted / steps).round() as u32, (decoded / steps).max(1.0)))
            }
            None => {
                let per_interval = decoded / self.intervals.count;
                if per_interval > BUNCHED {
                    return Err(LiveError::Bunched { per_interval });
                }
                Ok((0, 1.0))
            }
        }
    }
}

/// The mean, where there is one above 0.
fn mean(observed: Observed) -> Option<f64> {
    let mean = observed.sum / observed.count;
    (observed.count >= 1.0 && mean > 0.0).then_some(mean)
}
