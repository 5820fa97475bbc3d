//! Many samples reduced to one figure.

/// The median of samples and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Half of the samples are below.
    pub median: f64,
    /// A quarter of the samples is below.
    pub lower: f64,
    /// A quarter of the samples is above.
    pub upper: f64,
    /// How many samples there were.
    pub samples: u32,
}

impl Figure {
    /// The figure of `samples`; of no samples it is NaN.
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let quarter = |quarters: usize| {
            let place = samples.len().saturating_sub(1) * quarters;
            samples.get(place.div_ceil(4)).copied().unwrap_or(f64::NAN)
        };
        Self {
            median: quarter(2),
            lower: quarter(1),
            upper: quarter(3),
            samples: u32::try_from(samples.len()).unwrap_or(u32::MAX),
        }
    }

    /// What was measured at different times, as the median of each of its numbers: a machine that others share changes more
    /// from one minute to the next than from sample to sample.
    pub fn of_rounds(rounds: &[Self]) -> Self {
        let median = |of: fn(&Self) -> f64| Self::of(rounds.iter().map(of).collect()).median;
        Self {
            median: median(|round| round.median),
            lower: median(|round| round.lower),
            upper: median(|round| round.upper),
            samples: rounds.iter().fold(0, |sum: u32, round| sum.saturating_add(round.samples)),
        }
    }

    /// What lies between the quartiles, as a share of the median.
    pub fn spread(&self) -> f64 {
        (self.upper - self.lower) / self.median
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_ignore_order_and_outliers() {
        for (samples, [lower, median, upper]) in [
            (vec![3.0], [3.0, 3.0, 3.0]),
            (vec![5.0, 1.0, 4.0, 2.0, 900.0], [2.0, 4.0, 5.0]),
            (vec![4.0, 1.0, 3.0, 2.0], [2.0, 3.0, 4.0]),
        ] {
            let count = samples.len() as u32;
            assert_eq!(Figure::of(samples), Figure { median, lower, upper, samples: count });
        }
    }

    #[test]
    fn a_minute_that_differs_does_not_move_the_figure_of_all() {
        let round = |median| Figure { median, lower: median - 1.0, upper: median + 2.0, samples: 5 };
        let all = Figure::of_rounds(&[round(10.0), round(40.0), round(11.0)]);
        assert_eq!(all, Figure { samples: 15, ..round(11.0) });
        assert_eq!(Figure::of_rounds(&[round(3.0)]), round(3.0));
    }

    #[test]
    fn nothing_measured_is_no_number() {
        let none = Figure::of(Vec::new());
        assert!(none.median.is_nan() && none.samples == 0);
    }

    #[test]
    fn the_spread_is_a_share_of_the_median() {
        let figure = Figure { median: 10.0, lower: 9.0, upper: 11.0, samples: 8 };
        assert_eq!(figure.spread(), 0.2);
    }
}
