//! Which tokens may be drawn: min-p, top-k and nucleus.

use std::cmp::Ordering;

use crate::SamplingParams;

/// The most likely token; the lowest id among equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        // A NaN wins and then stays, because nothing compares greater.
        if *logit > logits[best] || logit.is_nan() {
            best = id;
        }
    }
    best as u32
}

/// Tokens that may be drawn, best first when a cut needs an order. `weight` is a token's probability over that of the
/// most likely one.
pub(super) fn kept(logits: &[f32], params: &SamplingParams, weight: impl Fn(u32) -> f64) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if params.min_p > 0.0 {
        ids.retain(|id| weight(*id) >= f64::from(params.min_p));
    }
    if params.top_k > 0 || params.top_p < 1.0 {
        let count = if params.top_k == 0 { ids.len() } else { params.top_k as usize };
        ids = best_of(ids, logits, count);
    }
    nucleus(ids, params.top_p, weight)
}

/// The `count` most likely tokens, best first, the lower id first among equals.
pub(super) fn most_likely(logits: &[f32], count: usize) -> Vec<u32> {
    best_of((0..logits.len() as u32).collect(), logits, count)
}

fn best_of(mut ids: Vec<u32>, logits: &[f32], count: usize) -> Vec<u32> {
    let order =
        |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
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
