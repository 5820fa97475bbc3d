//! Drawing the next token from logits.

use std::cmp::Ordering;

use crate::{SamplingParams, TokenLogprob};

/// Logits that no token can be drawn from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the logits at position {position} are not finite: the weights or the arithmetic are broken")]
pub(crate) struct NotFinite {
    position: usize,
}

/// Draws the token that follows `position` tokens. Draws depend on the logits, the parameters and `position` alone.
pub(crate) fn draw(logits: &[f32], params: &SamplingParams, position: usize) -> Result<u32, NotFinite> {
    let best = argmax(logits);
    if !logits.get(best as usize).is_some_and(|logit| logit.is_finite()) {
        return Err(NotFinite { position });
    }
    if params.temperature <= 0.0 || params.top_k == 1 {
        return Ok(best);
    }
    let temperature = f64::from(params.temperature);
    let max = f64::from(logits[best as usize]);
    let weight = |id: u32| ((f64::from(logits[id as usize]) - max) / temperature).exp();
    let kept = nucleus(candidates(logits, params), params.top_p, weight);
    let total: f64 = kept.iter().map(|id| weight(*id)).sum();
    let mut left = uniform(params.seed, position as u64) * total;
    for id in &kept {
        left -= weight(*id);
        if left < 0.0 {
            return Ok(*id);
        }
    }
    Ok(kept.last().copied().unwrap_or(best))
}

/// Log-probabilities of the raw distribution: of `drawn` and of the `top` most likely tokens.
pub(crate) fn logprobs(logits: &[f32], drawn: u32, top: u32) -> TokenLogprob {
    let max = f64::from(logits[argmax(logits) as usize]);
    let log_sum = max + logits.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln();
    let logprob = |id: u32| (f64::from(logits[id as usize]) - log_sum) as f32;
    let top = most_likely(logits, top as usize).into_iter().map(|id| (id, logprob(id))).collect();
    TokenLogprob { logprob: logprob(drawn), top }
}

/// The most likely token; the lowest id among equals.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        // A NaN wins and then stays, because nothing compares greater.
        if *logit > logits[best] || logit.is_nan() {
            best = id;
        }
    }
    best as u32
}

/// Tokens that may be drawn, best first when a cut needs an order.
fn candidates(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    match params.top_k {
        0 if params.top_p >= 1.0 => (0..logits.len() as u32).collect(),
        0 => most_likely(logits, logits.len()),
        k => most_likely(logits, k as usize),
    }
}

/// The `count` most likely tokens, best first, the lower id first among equals.
fn most_likely(logits: &[f32], count: usize) -> Vec<u32> {
    let order =
        |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count == 0 {
        return Vec::new();
    }
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// The shortest prefix whose share of the weight reaches `top_p`; at least one token.
fn nucleus(mut ids: Vec<u32>, top_p: f32, weight: impl Fn(u32) -> f64) -> Vec<u32> {
    if top_p >= 1.0 {
        return ids;
    }
    let wanted = f64::from(top_p) * ids.iter().map(|id| weight(*id)).sum::<f64>();
    let mut reached = 0.0;
    let kept = ids.iter().take_while(|id| {
        let before = reached;
        reached += weight(**id);
        before < wanted
    });
    let kept = kept.count().max(1);
    ids.truncate(kept);
    ids
}

/// A number in [0, 1) that depends on (seed, position) alone: splitmix64 of a counter.
fn uniform(seed: u64, position: u64) -> f64 {
    let mut z = mix(seed).wrapping_add((position + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = mix(z);
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// The splitmix64 finaliser.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    fn params(temperature: f32, top_k: u32, top_p: f32) -> SamplingParams {
        SamplingParams {
            max_tokens: 1,
            temperature,
            top_p,
            top_k,
            seed: 7,
            stop_token_ids: Vec::new(),
            logprobs: None,
        }
    }

    fn frequencies(params: &SamplingParams) -> [f64; 5] {
        let mut counts = [0.0; 5];
        for position in 0..20_000 {
            counts[draw(&LOGITS, params, position).unwrap() as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        assert_eq!(draw(&LOGITS, &params(0.0, 0, 1.0), 3), Ok(1));
        assert_eq!(draw(&LOGITS, &params(1.0, 1, 1.0), 3), Ok(1));
    }

    #[test]
    fn draws_follow_the_tempered_softmax() {
        let temperature = 1.5;
        let weights: Vec<f64> = LOGITS.iter().map(|x| (f64::from(*x) / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let drawn = frequencies(&params(temperature as f32, 0, 1.0));
        for (drawn, weight) in drawn.iter().zip(weights) {
            assert!((drawn - weight / total).abs() < 0.015, "{drawn} {}", weight / total);
        }
    }

    #[test]
    fn truncations_keep_the_best() {
        let top_k = frequencies(&params(1.0, 3, 1.0));
        assert!(top_k[0] == 0.0 && top_k[4] == 0.0 && top_k[2] > 0.0);
        let top_p = frequencies(&params(1.0, 0, 0.7));
        assert!(top_p[0] == 0.0 && top_p[2] == 0.0 && (top_p[1] - 0.5).abs() < 0.02);
        assert!(frequencies(&params(1.0, 0, 0.0))[1] > 0.999);
    }

    #[test]
    fn a_draw_is_a_function_of_seed_and_position() {
        let draws = |seed: u64| -> Vec<u32> {
            let params = SamplingParams { seed, ..params(1.0, 0, 1.0) };
            (0..50).map(|position| draw(&LOGITS, &params, position).unwrap()).collect()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
    }

    #[test]
    fn logprobs_are_of_the_raw_distribution() {
        let total: f64 = LOGITS.iter().map(|x| f64::from(*x).exp()).sum();
        let TokenLogprob { logprob, top } = logprobs(&LOGITS, 2, 3);
        assert!((f64::from(logprob) - (2.0 - total.ln())).abs() < 1e-6);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!(top[2].1, logprob);
    }

    #[test]
    fn broken_logits_are_refused() {
        let error = draw(&[0.0, f32::NAN, 1.0], &params(0.0, 0, 1.0), 9).unwrap_err();
        assert_eq!(error, NotFinite { position: 9 });
    }
}
