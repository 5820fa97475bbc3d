use proptest::prelude::*;

use super::*;

const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

fn params(temperature: f32, top_k: u32, top_p: f32) -> SamplingParams {
    SamplingParams { temperature, top_p, top_k, seed: 7, ..SamplingParams::default() }
}

fn sampler(params: &SamplingParams) -> Sampler {
    Sampler::new(params.clone(), None, &[])
}

fn draw(logits: &[f32], params: &SamplingParams) -> u32 {
    sampler(params).draw(logits).unwrap().id
}

fn draws(logits: &[f32], params: &SamplingParams, count: usize) -> Vec<u32> {
    let mut sampler = sampler(params);
    (0..count).map(|_| sampler.draw(logits).unwrap().id).collect()
}

fn shares(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for id in draws(logits, params, 20_000) {
        counts[id as usize] += 1.0 / 20_000.0;
    }
    counts
}

/// Allows the tokens of each step, and is fulfilled after the last.
struct Script(Vec<Vec<u32>>);

impl Constraint for Script {
    fn forbid(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        let others = |id: &u32| !self.0[0].contains(id);
        (0..100).filter(others).for_each(|id| allowed.forbid(id as usize));
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<bool, String> {
        let allowed = self.0.remove(0);
        if allowed.contains(&id) { Ok(self.0.is_empty()) } else { Err(format!("{id} is not allowed")) }
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    assert_eq!(draw(&LOGITS, &params(0.0, 0, 1.0)), 1);
    assert_eq!(draw(&LOGITS, &params(1.0, 1, 1.0)), 1);
}

/// Pearson's statistic of 50 000 draws stays below the 99.9 % quantile of its distribution (k - 1 degrees of freedom).
#[test]
fn draws_follow_the_truncated_tempered_softmax() {
    let logits: Vec<f32> = (0..14).map(|i| ((i * 37 % 14) as f32) * 0.31 - 2.0).collect();
    let bound =
        [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59, 31.26, 32.91, 34.53];
    for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (6, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1), (9, 0.9, 0.05)]
    {
        let params = SamplingParams { min_p, seed: 20_260_118, ..params(1.3, top_k, top_p) };
        let expected = distribution(&logits, &params);
        let mut counts = vec![0.0; logits.len()];
        for id in draws(&logits, &params, 50_000) {
            counts[id as usize] += 1.0;
        }
        let mut statistic = 0.0;
        for (count, p) in counts.iter().zip(&expected) {
            if *p == 0.0 {
                assert_eq!(*count, 0.0, "{params:?}");
            } else {
                statistic += (count - 50_000.0 * p).powi(2) / (50_000.0 * p);
            }
        }
        let freedom = expected.iter().filter(|p| **p > 0.0).count() - 1;
        assert!(statistic < bound[freedom], "{statistic} of {freedom}: {params:?}");
    }
}

/// Probabilities by the definitions, on sorted pairs.
fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut p: Vec<(usize, f64)> =
        logits.iter().map(|x| (f64::from(*x) / f64::from(params.temperature)).exp()).enumerate().collect();
    p.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let best = p[0].1;
    p.retain(|(_, w)| *w >= f64::from(params.min_p) * best);
    if params.top_k > 0 {
        p.truncate(params.top_k as usize);
    }
    let total: f64 = p.iter().map(|(_, w)| w).sum();
    let mut before = 0.0;
    p.retain(|(_, w)| {
        before += w;
        before - w < f64::from(params.top_p) * total || params.top_p >= 1.0
    });
    let total: f64 = p.iter().map(|(_, w)| w).sum();
    let mut out = vec![0.0; logits.len()];
    for (id, w) in p {
        out[id] = w / total;
    }
    out
}

#[test]
fn truncations_keep_the_best() {
    let top_k = shares(&LOGITS, &params(1.0, 3, 1.0));
    assert!(top_k[0] == 0.0 && top_k[4] == 0.0 && top_k[2] > 0.0);
    let top_p = shares(&LOGITS, &params(1.0, 0, 0.7));
    assert!(top_p[0] == 0.0 && top_p[2] == 0.0 && (top_p[1] - 0.5).abs() < 0.02);
    assert!(shares(&LOGITS, &params(1.0, 0, 0.0))[1] > 0.999);
    let min_p = shares(&LOGITS, &SamplingParams { min_p: 0.3, ..params(1.0, 0, 1.0) });
    assert!(min_p[0] == 0.0 && min_p[2] > 0.0, "e^-1 is above 0.3, e^-2 below");
}

#[test]
fn a_draw_is_a_function_of_seed_and_index() {
    let with = |seed: u64| draws(&LOGITS, &SamplingParams { seed, ..params(1.0, 0, 1.0) }, 50);
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
    let mut after_a_prompt = Sampler::new(SamplingParams { seed: 1, ..params(1.0, 0, 1.0) }, None, &[4; 9]);
    let after: Vec<u32> = (0..50).map(|_| after_a_prompt.draw(&LOGITS).unwrap().id).collect();
    assert_eq!(after, with(1), "the prompt's length does not count");
}

#[test]
fn penalties_count_what_was_drawn_and_repetition_the_prompt_too() {
    let greedy = params(0.0, 0, 1.0);
    let presence = SamplingParams { presence_penalty: 1.5, ..greedy.clone() };
    // 3, 3, 2, 1, then what is left: 1.5, 1.5, 0.5, ...
    assert_eq!(draws(&LOGITS, &presence, 6), [1, 3, 2, 1, 1, 1]);
    let frequency = SamplingParams { frequency_penalty: 1.5, ..greedy.clone() };
    assert_eq!(draws(&LOGITS, &frequency, 6), [1, 3, 2, 1, 3, 0]);
    let repetition = SamplingParams { repetition_penalty: 2.0, ..greedy };
    let first = |prompt: &[u32]| {
        let mut sampler = Sampler::new(repetition.clone(), None, prompt);
        sampler.draw(&LOGITS).unwrap().id
    };
    assert_eq!((first(&[]), first(&[1]), first(&[1, 3, 2])), (1, 3, 1));
    let edits = Edits::new(&repetition, &[0]).all();
    assert_eq!(
        edits.iter().map(|edit| (edit.id, edit.of(-2.0))).collect::<Vec<_>>(),
        [(0, -4.0)],
        "multiplied"
    );
}

#[test]
fn biases_add() {
    let biased = SamplingParams { logit_bias: vec![(4, 100.0), (1, -100.0)], ..params(1.0, 0, 1.0) };
    assert!(draws(&LOGITS, &biased, 200).iter().all(|id| *id == 4));
}

#[test]
fn stop_tokens_wait_for_the_fewest_tokens() {
    let params = SamplingParams { min_tokens: 3, stop_token_ids: vec![1, 3], ..params(0.0, 0, 1.0) };
    assert_eq!(draws(&LOGITS, &params, 4), [2, 2, 2, 1]);
    let only_stops = SamplingParams { stop_token_ids: (0..5).collect(), ..params };
    assert_eq!(draws(&LOGITS, &only_stops, 1), [1], "nothing else may be drawn");
}

#[test]
fn a_constraint_decides_and_ends_the_sequence() {
    let script = Script(vec![vec![4], vec![0, 2], vec![1]]);
    let mut sampler = Sampler::new(params(0.0, 0, 1.0), Some(Box::new(script)), &[]);
    let mut next = || sampler.draw(&LOGITS).unwrap();
    let drawn: Vec<_> = (0..3).map(|_| next()).map(|drawn| (drawn.id, drawn.last)).collect();
    assert_eq!(drawn, [(4, false), (2, false), (1, true)]);
    let mut stuck = Sampler::new(params(0.0, 0, 1.0), Some(Box::new(Script(vec![vec![]]))), &[]);
    assert_eq!(stuck.draw(&LOGITS), Err(DrawError::NothingAllowed));
}

#[test]
fn logprobs_are_of_the_raw_distribution() {
    let total: f64 = LOGITS.iter().map(|x| f64::from(*x).exp()).sum();
    let wanted = SamplingParams { logprobs: Some(3), logit_bias: vec![(2, 50.0)], ..params(0.3, 0, 0.5) };
    let drawn = sampler(&wanted).draw(&LOGITS).unwrap();
    let TokenLogprob { logprob, top } = drawn.logprob.unwrap();
    assert_eq!(drawn.id, 2);
    assert!((f64::from(logprob) - (2.0 - total.ln())).abs() < 1e-6);
    assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
    assert_eq!(top[2].1, logprob);
}

#[test]
fn broken_logits_are_refused() {
    let error = sampler(&params(0.0, 0, 1.0)).draw(&[0.0, f32::NAN, 1.0]).unwrap_err();
    assert_eq!(error, DrawError::NotFinite { index: 0 });
}

proptest! {
    #[test]
    fn only_kept_tokens_are_drawn(
        logits in prop::collection::vec(-8.0f32..8.0, 1..40),
        temperature in 0.05f32..2.0,
        top_k in 0u32..45,
        top_p in 0.01f32..=1.0,
        min_p in 0.0f32..=1.0,
        seed: u64,
    ) {
        let params = SamplingParams { min_p, seed, ..params(temperature, top_k, top_p) };
        let expected = distribution(&logits, &params);
        for id in draws(&logits, &params, 20) {
            // A weight that rounding puts on the other side of a bound may go either way.
            let near = SamplingParams { min_p: min_p * 0.999_99, top_p: (top_p * 1.000_01).min(1.0), ..params.clone() };
            prop_assert!(expected[id as usize] > 0.0 || distribution(&logits, &near)[id as usize] > 0.0);
        }
    }

    #[test]
    fn a_banned_token_is_never_drawn(
        logits in prop::collection::vec(-8.0f32..8.0, 2..40),
        banned: prop::sample::Index,
        seed: u64,
    ) {
        let banned = banned.index(logits.len()) as u32;
        let allowed: Vec<u32> = (0..logits.len() as u32).filter(|id| *id != banned).collect();
        let mut params = params(2.0, 0, 1.0);
        params.seed = seed;
        let script = Script(vec![allowed; 20]);
        let mut sampler = Sampler::new(params, Some(Box::new(script)), &[]);
        for _ in 0..20 {
            prop_assert_ne!(sampler.draw(&logits).unwrap().id, banned);
        }
    }
}
