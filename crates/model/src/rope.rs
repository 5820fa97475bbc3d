//! Rotary frequencies and how checkpoints stretch them over longer contexts.

use std::f64::consts::TAU;

/// How a model's rotary frequencies were changed for contexts longer than it was first trained on. Formulas are those of
/// Hugging Face's `modeling_rope_utils` and, for the softmax, of DeepSeek-V3.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// LLaMA 3.1: channels that turn less than `low_freq_factor` times in the original context turn `factor` times slower,
    /// those that turn more than `high_freq_factor` times are left alone, those between are blended by their turns.
    Llama3 {
        /// How much slower the slow channels turn.
        factor: f64,
        /// Turns in the original context below which a channel is slow.
        low_freq_factor: f64,
        /// Turns in the original context above which a channel is fast.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original_max_position_embeddings: u32,
    },
    /// YaRN: as LLaMA 3.1 with a ramp over channels instead of turns, and attention made sharper.
    Yarn(Yarn),
}

/// The numbers of [`RopeScaling::Yarn`].
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How much slower the slow channels turn.
    pub factor: f64,
    /// Tokens of the original context.
    pub original_max_position_embeddings: u32,
    /// Turns in the original context above which a channel is fast; 32 where a checkpoint does not say.
    pub beta_fast: f64,
    /// Turns in the original context below which a channel is slow; 1 where a checkpoint does not say.
    pub beta_slow: f64,
    /// Whether the ramp's ends are whole channels, as they are where a checkpoint does not say.
    pub truncate: bool,
    /// What turned queries and keys are multiplied by, where it does not follow from the rest.
    pub attention_factor: Option<f64>,
    /// DeepSeek's weight of the factor of turned queries and keys.
    pub mscale: Option<f64>,
    /// DeepSeek's weight of the factor of the whole score.
    pub mscale_all_dim: Option<f64>,
}

/// Turns per token over 2π of each pair of a rotary head of `dim` channels: `theta^(-2t/dim)`, scaled.
pub fn rotary_frequencies(dim: usize, theta: f64, scaling: Option<&RopeScaling>) -> Vec<f64> {
    let plain = (0..dim / 2).map(|pair| theta.powf(-((2 * pair) as f64) / dim as f64));
    match scaling {
        None => plain.collect(),
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        }) => plain
            .map(|frequency| {
                let turns = frequency * f64::from(*original) / TAU;
                let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (fast + (1.0 - fast) / factor)
            })
            .collect(),
        Some(RopeScaling::Yarn(yarn)) => {
            let (first, last) = yarn.ramp(dim, theta);
            let fast = |pair: usize| 1.0 - ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
            let scale = |pair| fast(pair) + (1.0 - fast(pair)) / yarn.factor;
            plain.enumerate().map(|(pair, frequency)| frequency * scale(pair)).collect()
        }
    }
}

impl RopeScaling {
    /// What turned queries and keys are multiplied by.
    pub fn rotary_factor(&self) -> f64 {
        let Self::Yarn(yarn) = self else { return 1.0 };
        yarn.attention_factor.unwrap_or_else(|| match (yarn.mscale, yarn.mscale_all_dim) {
            (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                yarn.sharpness(mscale) / yarn.sharpness(all)
            }
            _ => yarn.sharpness(1.0),
        })
    }

    /// What latent attention's scores are multiplied by besides.
    pub fn score_factor(&self) -> f64 {
        match self {
            Self::Yarn(Yarn { mscale_all_dim: Some(all), .. }) if *all == 0.0 => 1.0,
            Self::Yarn(yarn @ Yarn { mscale_all_dim: Some(all), .. }) => yarn.sharpness(*all).powi(2),
            _ => 1.0,
        }
    }
}

impl Yarn {
    /// `0.1 k ln(factor) + 1`
    fn sharpness(&self, weight: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * self.factor.ln() + 1.0 }
    }

    /// The pairs between which channels change from fast to slow.
    fn ramp(&self, dim: usize, theta: f64) -> (f64, f64) {
        let (dim, original) = (dim as f64, f64::from(self.original_max_position_embeddings));
        let pair_of = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (first, last) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        let (first, last) = if self.truncate { (first.floor(), last.ceil()) } else { (first, last) };
        let (first, last) = (first.max(0.0), last.min(dim - 1.0));
        // The published code's way around a division by zero.
        (first, if first == last { last + 0.001 } else { last })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(ours: &[f64], expected: &[f64]) {
        assert_eq!(ours.len(), expected.len());
        for (ours, expected) in ours.iter().zip(expected) {
            assert!((ours / expected - 1.0).abs() < 1e-12, "{ours} is not {expected}");
        }
    }

    /// LLaMA-3.1-8B: the published loop over wavelengths, in its own words.
    #[test]
    fn llama3_is_the_published_loop() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let published = (0..64).map(|i| {
            let inv_freq = 1.0 / 500_000f64.powf(f64::from(2 * i) / 128.0);
            let wavelen = TAU / inv_freq;
            if wavelen > 8192.0 / 1.0 {
                return inv_freq / 8.0;
            }
            if wavelen < 8192.0 / 4.0 {
                return inv_freq;
            }
            let smooth = (8192.0 / wavelen - 1.0) / (4.0 - 1.0);
            (1.0 - smooth) * inv_freq / 8.0 + smooth * inv_freq
        });
        let ours = rotary_frequencies(128, 500_000.0, Some(&scaling));
        assert_close(&ours, &published.collect::<Vec<_>>());
        let plain = rotary_frequencies(128, 500_000.0, None);
        let slower = ours.iter().zip(&plain).filter(|(ours, plain)| ours < plain).count();
        assert_eq!((ours[0], slower), (1.0, 35), "29 of 64 pairs turn more than 4 times in 8192 tokens");
        assert_eq!((scaling.rotary_factor(), scaling.score_factor()), (1.0, 1.0));
    }

    fn deepseek_v3() -> Yarn {
        Yarn {
            factor: 40.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: None,
            mscale: Some(1.0),
            mscale_all_dim: Some(1.0),
        }
    }

    /// DeepSeek-V3: ramp from `64 ln(4096 / 64π) / 2 ln 10000 = 10.5` to `64 ln(4096 / 2π) / 2 ln 10000 = 22.5`, whole
    /// channels outwards, so pairs 0..=10 are left alone and pairs from 23 on turn 40 times slower.
    #[test]
    fn yarn_is_the_published_ramp() {
        let yarn = deepseek_v3();
        assert_eq!(yarn.ramp(64, 10_000.0), (10.0, 23.0));
        let ours = rotary_frequencies(64, 10_000.0, Some(&RopeScaling::Yarn(yarn)));
        let published: Vec<f64> = (0..32)
            .map(|i| {
                let pos_freq = 10_000f64.powf(f64::from(2 * i) / 64.0);
                let (extrapolation, interpolation) = (1.0 / pos_freq, 1.0 / (40.0 * pos_freq));
                let ramp = ((f64::from(i) - 10.0) / (23.0 - 10.0)).clamp(0.0, 1.0);
                interpolation * ramp + extrapolation * (1.0 - ramp)
            })
            .collect();
        assert_close(&ours, &published);
        assert_close(&ours[..11], &rotary_frequencies(64, 10_000.0, None)[..11]);
    }

    #[test]
    fn yarn_sharpens_attention_as_the_checkpoint_says() {
        let factors = |yarn: Yarn| {
            let scaling = RopeScaling::Yarn(yarn);
            [scaling.rotary_factor(), scaling.score_factor()]
        };
        let sharp = 0.1 * 40f64.ln() + 1.0;
        assert_close(&factors(deepseek_v3()), &[1.0, sharp * sharp]);
        let plain = Yarn { mscale: None, mscale_all_dim: None, ..deepseek_v3() };
        assert_close(&factors(plain.clone()), &[sharp, 1.0]);
        assert_close(&factors(Yarn { attention_factor: Some(1.5), ..plain.clone() }), &[1.5, 1.0]);
        let half = Yarn { mscale: Some(0.707), mscale_all_dim: Some(1.4), ..deepseek_v3() };
        let m = |weight: f64| 0.1 * weight * 40f64.ln() + 1.0;
        assert_close(&factors(half), &[m(0.707) / m(1.4), m(1.4).powi(2)]);
        assert_close(&factors(Yarn { factor: 1.0, ..deepseek_v3() }), &[1.0, 1.0]);
    }

    #[test]
    fn a_ramp_may_lie_between_channels() {
        let fractional = Yarn { truncate: false, ..deepseek_v3() };
        let (first, last) = fractional.ramp(64, 10_000.0);
        let pair = |turns: f64| 64.0 * (4096.0 / (turns * TAU)).ln() / (2.0 * 10_000f64.ln());
        assert_close(&[first, last], &[pair(32.0), pair(1.0)]);
        let short = Yarn { original_max_position_embeddings: 1, ..deepseek_v3() };
        let (first, last) = short.ramp(64, 10_000.0);
        assert!(
            rotary_frequencies(64, 10_000.0, Some(&RopeScaling::Yarn(short))).iter().all(|f| f.is_finite())
        );
        assert!(first >= 0.0 && last <= 63.001);
    }
}
