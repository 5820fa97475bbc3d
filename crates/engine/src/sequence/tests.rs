//! What drafts do to a text: nothing.

use super::*;
use crate::SamplingParams;

const DRAWS: usize = 40_000;

/// Logits after no, one and two tokens.
const ROWS: [[f32; 5]; 3] =
    [[0.4, 1.1, -0.3, 0.9, -2.0], [1.2, -0.5, 0.3, 0.8, 0.1], [0.0, 0.2, 1.4, -1.0, 0.7]];

fn params(seed: usize) -> SamplingParams {
    let seed = seed as u64;
    SamplingParams {
        max_tokens: 3,
        temperature: 0.8,
        top_k: 4,
        min_p: 0.05,
        presence_penalty: 0.4,
        seed,
        ..SamplingParams::default()
    }
}

/// The first step's tokens, with the drafts `drafts`.
fn step(drafts: &[u32], params: SamplingParams) -> (Vec<u32>, Progress, Sequence) {
    let mut sequence = Sequence::new(
        Request::new(vec![0], params, Box::new(|_| ControlFlow::Continue(()))),
        Rank::new(0, 0),
        0,
    );
    sequence.drafts = drafts.to_vec();
    let progress = sequence.extend_by(100, |sampler, _, row| sampler.draw(&ROWS[row]));
    (sequence.tokens[1..].to_vec(), progress, sequence)
}

/// Probabilities of the first token, or of the second after `before`, by the definitions.
fn distribution(row: usize, before: Option<u32>) -> Vec<f64> {
    let adjusted = |(id, logit): (usize, &f32)| {
        f64::from(*logit) - if before == Some(id as u32) { f64::from(0.4f32) } else { 0.0 }
    };
    let logits: Vec<f64> = ROWS[row].iter().enumerate().map(adjusted).collect();
    let least = logits.iter().copied().fold(f64::INFINITY, f64::min);
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weight = |logit: &f64| match ((logit - most) / 0.8).exp() {
        weight if *logit > least && weight >= 0.05 => weight,
        _ => 0.0,
    };
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// Pearson's statistic stays below the 99.9 % quantile of its distribution for the three degrees of freedom that four
/// tokens have.
fn assert_drawn_from(expected: &[f64], drawn: &[u32]) {
    let mut statistic = 0.0;
    for (id, p) in expected.iter().enumerate() {
        let count = drawn.iter().filter(|drawn| **drawn == id as u32).count() as f64;
        let mean = p * drawn.len() as f64;
        if *p == 0.0 {
            assert_eq!(count, 0.0, "{id}");
        } else {
            statistic += (count - mean).powi(2) / mean;
        }
    }
    assert!(statistic < 16.27, "{statistic}: {expected:?}");
}

#[test]
fn tokens_follow_the_models_distribution_whatever_was_drafted() {
    for draft in [0, 1, 3] {
        let texts: Vec<_> = (0..DRAWS).map(|seed| step(&[draft, 0], params(seed)).0).collect();
        let first: Vec<u32> = texts.iter().map(|text| text[0]).collect();
        let expected = distribution(0, None);
        assert_drawn_from(&expected, &first);
        let second: Vec<u32> = texts.iter().filter_map(|text| text.get(1).copied()).collect();
        assert_drawn_from(&distribution(1, Some(draft)), &second);
        // A draft is accepted as often as the model would have said it.
        let (accepted, p) = (second.len() as f64 / DRAWS as f64, expected[draft as usize]);
        assert!((accepted - p).abs() < 4.0 * (p * (1.0 - p) / DRAWS as f64).sqrt(), "{accepted} of {p}");
    }
    // One that may not be drawn never is.
    assert!((0..1000).all(|seed| step(&[4], params(seed)).1.accepted == 0));
}

#[test]
fn accepted_drafts_are_the_tokens_that_would_have_been_drawn() {
    for seed in 0..200 {
        let mut sampler = Sampler::new(params(seed), None, &[0]);
        let alone: Vec<u32> = ROWS.iter().map(|row| sampler.draw(row).unwrap().id).collect();
        let (text, progress, sequence) = step(&alone[..2], params(seed));
        assert_eq!((text, progress), (alone.clone(), Progress { delivered: 3, accepted: 2 }));
        assert_eq!(sequence.finish, Some(Finish::Length));
        let wrong = [alone[0], (alone[1] + 1) % 5];
        let (text, progress, _) = step(&wrong, params(seed));
        assert_eq!((text.as_slice(), progress), (&alone[..2], Progress { delivered: 2, accepted: 1 }));
    }
}

#[test]
fn nothing_follows_the_end() {
    let greedy = SamplingParams { temperature: 0.0, presence_penalty: 0.0, ..params(0) };
    let stopping = SamplingParams { stop_token_ids: vec![0], ..greedy.clone() };
    let (text, progress, sequence) = step(&[1, 0, 2], stopping);
    assert_eq!((text.as_slice(), progress), (&[1][..], Progress { delivered: 1, accepted: 1 }));
    assert_eq!(sequence.finish, Some(Finish::Stop));
    let short = SamplingParams { max_tokens: 2, ..greedy };
    let (text, progress, sequence) = step(&[1, 0, 2], short);
    assert_eq!((text.as_slice(), progress), (&[1, 0][..], Progress { delivered: 2, accepted: 2 }));
    assert_eq!(sequence.finish, Some(Finish::Length));
}
