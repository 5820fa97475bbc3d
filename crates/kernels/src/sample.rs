//! How a token is chosen from a row of logits: one definition, for the processor here and for the device in `sample.cu`.
//!
//! In this order: edits of single tokens, forbidden tokens, temperature, min-p, top-k, top-p, the draw. Log-probabilities
//! are of the logits before all of it.
//!
//! A token's weight, its probability over that of the most likely one, is a whole number of 2^-40, made by additions and
//! products that every machine rounds alike. Sums of weights are then exact in any order, so cuts and draws are the same
//! whoever adds and with however many threads; a token more than 2^40 times less likely than the best is never drawn.

mod mask;
#[cfg(test)]
mod tests;

pub use mask::TokenMask;

/// The weight of the most likely token.
pub(crate) const ONE: u64 = 1 << 40;

/// What bias and penalties do to one token's logit: `logit + bias`, then divided by `repetition` when positive and
/// multiplied otherwise, then `less` taken away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// The token.
    pub id: u32,
    /// Added first.
    pub bias: f32,
    /// Above 0; 1 changes nothing.
    pub repetition: f32,
    /// Taken away last.
    pub less: f32,
}

impl Edit {
    /// One that changes nothing yet.
    pub fn new(id: u32) -> Self {
        Self { id, bias: 0.0, repetition: 1.0, less: 0.0 }
    }

    /// What becomes of the token's logit.
    pub fn of(&self, logit: f32) -> f32 {
        let biased = logit + self.bias;
        let scaled = if biased > 0.0 { biased / self.repetition } else { biased * self.repetition };
        scaled - self.less
    }
}

/// Which tokens may be drawn, and how evenly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cuts {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keep tokens at least this many times as likely as the most likely one. 0 keeps all.
    pub min_p: f32,
    /// Of these keep the k most likely. 0 keeps all.
    pub top_k: u32,
    /// Of these keep the shortest beginning, best first, whose probability reaches this. 1 keeps all.
    pub top_p: f32,
}

/// How one row's token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// Which row of logits.
    pub row: usize,
    /// By ascending id, each once.
    pub edits: Vec<Edit>,
    /// Tokens that may be chosen; `None` allows all.
    pub allowed: Option<TokenMask>,
    /// Which of them are kept.
    pub cuts: Cuts,
    /// Decides among them: 2^64 times a number that is evenly spread over [0, 1).
    pub random: u64,
    /// Tell the chosen token's log-probability and those of this many most likely ones.
    pub logprobs: Option<u32>,
}

impl Draw {
    /// Takes the most likely token of a row as it is, the lowest id among equals.
    pub fn greedy(row: usize) -> Self {
        let cuts = Cuts { temperature: 0.0, min_p: 0.0, top_k: 0, top_p: 1.0 };
        Self { row, edits: Vec::new(), allowed: None, cuts, random: 0, logprobs: None }
    }
}

/// Log-probability of a chosen token and of the most likely ones, by the logits as they were.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Of the chosen token.
    pub logprob: f32,
    /// Most likely tokens, best first, the lower id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Which.
    pub id: u32,
    /// When it was asked for.
    pub logprob: Option<TokenLogprob>,
}

/// Why a row has no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoToken {
    /// A model that computes NaN or infinity.
    #[error("the logits are not finite: the weights or the arithmetic are broken")]
    NotFinite,
    /// Every token is forbidden.
    #[error("no token may follow: every one is forbidden")]
    NothingAllowed,
}

/// What [`Cuts`] are in whole numbers, as both implementations take them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rules {
    /// Turns a logit's distance from the largest into a power of two.
    pub scale: f32,
    /// Weight that a token must have.
    pub least: u64,
    /// Tokens that are kept; 0 keeps all, 1 is greedy.
    pub most: u32,
    /// Part of the kept weight that is enough, in 2^-64; all ones keep all.
    pub share: u64,
}

impl Rules {
    pub fn of(cuts: &Cuts) -> Self {
        let two_to_64 = 2f64.powi(64);
        Self {
            scale: (std::f64::consts::LOG2_E / f64::from(cuts.temperature)) as f32,
            least: ((f64::from(cuts.min_p) * ONE as f64).ceil() as u64).min(ONE),
            most: if cuts.temperature > 0.0 { cuts.top_k } else { 1 },
            share: if cuts.top_p < 1.0 { (f64::from(cuts.top_p) * two_to_64) as u64 } else { u64::MAX },
        }
        .bounded()
    }

    /// A temperature so near 0 or so high that its inverse is no number would make weights of the best token none.
    fn bounded(self) -> Self {
        Self { scale: self.scale.clamp(f32::MIN_POSITIVE, f32::MAX), ..self }
    }
}

/// Logits in their order as whole numbers: both zeros are one number, and what is no number comes first.
fn key(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    match bits >> 31 {
        _ if logit.is_nan() => 0xff80_0001,
        0 => bits | 1 << 31,
        _ => !bits,
    }
}

/// Greater for what is more likely, and for the lower id among equals.
fn rank(id: usize, logit: f32) -> u64 {
    u64::from(key(logit)) << 32 | u64::from(!(id as u32))
}

fn id_of(rank: u64) -> u32 {
    !(rank as u32)
}

fn ranks(logits: &[f32]) -> impl Iterator<Item = u64> + '_ {
    logits.iter().enumerate().map(|(id, logit)| rank(id, *logit))
}

/// The most likely token, the lowest id among equals; 0 of no logits.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        // A NaN wins and then stays, because nothing compares greater.
        if *logit > logits[best] || logit.is_nan() {
            best = id;
        }
    }
    best as u32
}

/// 2^`power` of a power of at most 0, in 2^-40. Only sums and products that round to nearest: the device has the same bits.
pub(crate) fn weight(power: f32) -> u64 {
    /// Adding it leaves no bits for what is behind the point.
    const WHOLE: f32 = 12_582_912.0;
    /// ln(2)^k / k!
    const SERIES: [f32; 7] = [
        1.525_273_4e-5,
        1.540_353e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        std::f32::consts::LN_2,
    ];
    // Not a number is no weight either.
    if !matches!(power.partial_cmp(&-41.0), Some(std::cmp::Ordering::Greater)) {
        return 0;
    }
    let whole = (power + WHOLE) - WHOLE;
    let part = power - whole;
    let fraction = SERIES.iter().fold(0.0, |sum, term| sum * part + term) * part + 1.0;
    u64::from((fraction * 16_777_216.0) as u32) << 16 >> (-whole) as u32
}

/// Which part of `of` a share, in 2^-64, is.
fn part_of(share: u64, of: u64) -> u64 {
    ((u128::from(share) * u128::from(of)) >> 64) as u64
}

/// The log-probability of a logit, where `max` is the largest and `total` the sum of all weights.
pub(crate) fn logprob(logit: f32, max: f32, total: u64) -> f32 {
    (f64::from(logit) - f64::from(max) - (total as f64 / ONE as f64).ln()) as f32
}

/// Chooses a token for each of `draws` from `[rows, vocab]` logits. A row's choice depends on that row alone.
pub fn choose_rows(logits: &[f32], vocab: usize, draws: &[Draw]) -> Vec<Result<Choice, NoToken>> {
    let mut buffer = Vec::new();
    let row = |draw: &Draw| logits.get(draw.row * vocab..(draw.row + 1) * vocab).unwrap_or(&[]);
    draws.iter().map(|draw| choose(row(draw), draw, &mut buffer)).collect()
}

/// Chooses a token from one row; `buffer` is scratch. A row of no logits has no finite one.
///
/// # Errors
/// When a logit is not finite, or nothing may be chosen.
pub fn choose(logits: &[f32], draw: &Draw, buffer: &mut Vec<f32>) -> Result<Choice, NoToken> {
    let largest = best(logits).filter(|(_, max)| max.is_finite()).ok_or(NoToken::NotFinite)?;
    let (changed, likeliest) = if draw.edits.is_empty() && draw.allowed.is_none() {
        (logits, Some(largest))
    } else {
        buffer.clear();
        buffer.extend_from_slice(logits);
        change(buffer, draw);
        (buffer.as_slice(), best(buffer))
    };
    let id = match likeliest {
        Some((_, f32::NEG_INFINITY)) => return Err(NoToken::NothingAllowed),
        Some(best) if best.1.is_finite() => draw_from(changed, best, &Rules::of(&draw.cuts), draw.random),
        _ => return Err(NoToken::NotFinite),
    };
    Ok(Choice { id, logprob: draw.logprobs.map(|top| logprobs(logits, largest.1, id, top)) })
}

/// The most likely token and its logit, which is not a number where some logit is not.
fn best(logits: &[f32]) -> Option<(u32, f32)> {
    let id = argmax(logits);
    logits.get(id as usize).map(|logit| (id, *logit))
}

fn change(logits: &mut [f32], draw: &Draw) {
    for edit in &draw.edits {
        if let Some(logit) = logits.get_mut(edit.id as usize) {
            *logit = edit.of(*logit);
        }
    }
    if let Some(allowed) = &draw.allowed {
        let forbidden = logits.iter_mut().enumerate().filter(|(id, _)| !allowed.allows(*id));
        forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
    }
}

/// Draws by ascending id from logits of which `best` has the largest.
fn draw_from(logits: &[f32], (best, max): (u32, f32), rules: &Rules, random: u64) -> u32 {
    if rules.most == 1 {
        return best;
    }
    let weight_of = |id: u32| weight((logits[id as usize] - max) * rules.scale);
    let mut kept: Vec<u64> = ranks(logits).filter(|rank| weight_of(id_of(*rank)) >= rules.least).collect();
    let most = rules.most as usize;
    if most > 0 && most < kept.len() {
        kept.select_nth_unstable_by(most - 1, |a, b| b.cmp(a));
        kept.truncate(most);
    }
    let sum = |kept: &[u64]| kept.iter().map(|rank| weight_of(id_of(*rank))).sum::<u64>();
    if rules.share < u64::MAX {
        kept.sort_unstable_by(|a, b| b.cmp(a));
        let enough = part_of(rules.share, sum(&kept)).max(1);
        let mut reached = 0;
        let before = |rank: &&u64| {
            let short = reached < enough;
            reached += weight_of(id_of(**rank));
            short
        };
        let count = kept.iter().take_while(before).count();
        kept.truncate(count);
    }
    kept.sort_unstable_by_key(|rank| id_of(*rank));
    let mut left = part_of(random, sum(&kept));
    for rank in &kept {
        let id = id_of(*rank);
        match left.checked_sub(weight_of(id)) {
            Some(rest) => left = rest,
            None => return id,
        }
    }
    best
}

fn logprobs(logits: &[f32], max: f32, chosen: u32, top: u32) -> TokenLogprob {
    let total = logits.iter().map(|logit| weight((logit - max) * std::f32::consts::LOG2_E)).sum();
    let of = |id: u32| logprob(logits[id as usize], max, total);
    let mut best: Vec<u64> = ranks(logits).collect();
    let top = (top as usize).min(best.len());
    if top > 0 && top < best.len() {
        best.select_nth_unstable_by(top - 1, |a, b| b.cmp(a));
    }
    best.truncate(top);
    best.sort_unstable_by(|a, b| b.cmp(a));
    let top = best.into_iter().map(id_of).map(|id| (id, of(id))).collect();
    TokenLogprob { logprob: of(chosen), top }
}
