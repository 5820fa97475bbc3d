//! Timings of both paths taken in turn.

use gqla_engine::cpu::measure::AttentionCase;

use crate::bench::place::Timer;

/// Shorter samples are passes in a row: a scheduler's tick would drown one alone.
const LEAST_SECONDS: f64 = 2e-3;
const MOST_PASSES: f64 = 1e4;
/// Chance that an interval misses the median, on either side.
const MISS: f64 = 0.025;

/// Seconds of absorb and of GQA, pair by pair.
#[derive(Default)]
pub(super) struct Pairs(Vec<[f64; 2]>);

/// A median and the interval in which it lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Pairs {
    /// Times pairs of `case`'s core until there are `count`; the path that goes first alternates.
    pub(super) fn measure(
        &mut self,
        timers: &mut [Box<dyn Timer + '_>; 2],
        case: &AttentionCase,
        count: u32,
    ) -> anyhow::Result<()> {
        let mut passes = [1, 1];
        for (timer, passes) in timers.iter_mut().zip(&mut passes) {
            timer.prepare(case)?;
            // The first pass may load what was never used.
            timer.core_seconds(1)?;
            let seconds = timer.core_seconds(1)?;
            *passes = (LEAST_SECONDS / seconds).ceil().clamp(1.0, MOST_PASSES) as u32;
        }
        for index in self.0.len()..count as usize {
            let mut seconds = [0.0; 2];
            let order = if index.is_multiple_of(2) { [0, 1] } else { [1, 0] };
            for path in order {
                seconds[path] = timers[path].core_seconds(passes[path])?;
            }
            self.0.push(seconds);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn of(pairs: Vec<[f64; 2]>) -> Self {
        Self(pairs)
    }

    /// Median seconds of absorb and of GQA.
    pub(super) fn medians(&self) -> [f64; 2] {
        [0, 1].map(|path| self.interval(|pair| pair[path]).median)
    }

    /// The seconds of a path.
    pub(super) fn seconds(&self, path: usize) -> Interval {
        self.interval(|pair| pair[path])
    }

    /// GQA over absorb within a pair: below 1 GQA is faster.
    pub(super) fn ratio(&self) -> Interval {
        self.interval(|[absorb, gqa]| gqa / absorb)
    }

    fn interval(&self, of: impl Fn(&[f64; 2]) -> f64) -> Interval {
        let mut values: Vec<f64> = self.0.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let (count, at) = (values.len(), |place: usize| values.get(place).copied().unwrap_or(f64::NAN));
        let outside = outside(count);
        Interval {
            median: f64::midpoint(at(count.saturating_sub(1) / 2), at(count / 2)),
            low: at(outside),
            high: at(count.saturating_sub(1 + outside)),
        }
    }
}

/// How many of `count` sorted values lie below an interval that misses the median with at most [`MISS`] on either side: how
/// many lie below the median is binomial, whatever the values' distribution. Five values are too few for it.
fn outside(count: usize) -> usize {
    let mut term = 0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let (mut below, mut place) = (term, 0);
    while below <= MISS && place < count / 2 {
        place += 1;
        term *= (count - place + 1) as f64 / place as f64;
        below += term;
    }
    place.saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From tables of the sign test at 95 %.
    #[test]
    fn intervals_are_those_of_the_sign_test() {
        for (count, expected) in [(5, 0), (6, 0), (10, 1), (15, 3), (20, 5), (25, 7), (100, 39)] {
            assert_eq!(outside(count), expected, "{count}");
        }
    }

    #[test]
    fn medians_and_intervals_ignore_order_and_outliers() {
        let values = [3.0, 900.0, 1.0, 2.0, 5.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 0.5];
        let pairs = Pairs::of(values.map(|value| [value, 2.0 * value]).into());
        assert_eq!(pairs.seconds(0), Interval { median: 7.0, low: 3.0, high: 11.0 });
        assert_eq!(pairs.medians(), [7.0, 14.0]);
        assert_eq!(pairs.ratio(), Interval { median: 2.0, low: 2.0, high: 2.0 });
        assert_eq!(Pairs::of(vec![[1.0, 2.0], [3.0, 2.0]]).medians(), [2.0, 2.0]);
    }
}
