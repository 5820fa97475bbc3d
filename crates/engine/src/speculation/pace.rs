//! How many drafts a sequence is worth: as many as make a step yield most tokens per second.
//!
//! With a chance `a` that a draft is accepted if those before it were, `k` drafts yield `1 + a + … + a^k` tokens. A step
//! takes as long as `fixed` rows would for what it does in any case (reading the weights, mostly) and then as its rows
//! do, `rows (1 + k)` where all of its sequences draft. Alone, a sequence drafts a lot; in a large batch the rows are
//! what a step's time is made of, and nothing is drafted.

/// What `fixed` is taken to be until steps tell: an assumption, low enough that a first guess costs little.
const FIXED_ROWS: f64 = 4.0;

/// The most `fixed` is believed to be: beyond, it is noise.
const MOST_FIXED_ROWS: f64 = 256.0;

/// The chance of acceptance that a sequence starts with, an assumption that weighs as two drafts.
const PRIOR_ACCEPTANCE: f64 = 0.5;
const PRIOR_WEIGHT: f64 = 2.0;

/// What a draft counts a step later: texts change, so some twenty steps are looked back on, and a sequence that drafts no
/// more tries again.
const REMEMBERED_DRAFT: f64 = 0.95;

/// The same of a step's time.
const REMEMBERED_STEP: f64 = 0.98;

/// Steps and spread of their rows below which a line through them says nothing.
const FEWEST_STEPS: f64 = 8.0;
const LEAST_VARIANCE: f64 = 0.1;

/// Drafts that make a step yield most per second, at most `most`; the fewest of equals. `rows` are those of all
/// sequences without drafts, `fixed` is what the rest of a step takes, in rows.
pub(crate) fn worthwhile(most: usize, rows: usize, acceptance: f64, fixed: f64) -> usize {
    let (mut best, mut best_rate) = (0, 0.0);
    let (mut yielded, mut chance) = (0.0, 1.0);
    for drafts in 0..=most {
        yielded += chance;
        chance *= acceptance;
        let rate = yielded / (fixed + (rows * (1 + drafts)) as f64);
        // The last bits of a sum must not decide.
        if rate > best_rate * (1.0 + 1e-9) {
            (best, best_rate) = (drafts, rate);
        }
    }
    best
}

/// How drafts of one sequence fared lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Acceptance {
    /// Drafts whose predecessors were all accepted.
    tried: f64,
    accepted: f64,
}

impl Acceptance {
    /// Notes a step, with or without drafts.
    pub fn add(&mut self, drafted: usize, accepted: usize) {
        self.tried = self.tried * REMEMBERED_DRAFT + drafted.min(accepted + 1) as f64;
        self.accepted = self.accepted * REMEMBERED_DRAFT + accepted as f64;
    }

    /// The chance that a draft is accepted, if those before it are.
    pub fn chance(&self) -> f64 {
        (self.accepted + PRIOR_ACCEPTANCE * PRIOR_WEIGHT) / (self.tried + PRIOR_WEIGHT)
    }
}

/// What steps took lately: sums for a line through rows and seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepTimes {
    steps: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
}

impl StepTimes {
    /// Notes a step that computed `rows`, none of them of a prompt.
    pub fn add(&mut self, rows: usize, seconds: f64) {
        let rows = rows as f64;
        for (sum, value) in [
            (&mut self.steps, 1.0),
            (&mut self.rows, rows),
            (&mut self.seconds, seconds),
            (&mut self.rows_squared, rows * rows),
            (&mut self.rows_seconds, rows * seconds),
        ] {
            *sum = *sum * REMEMBERED_STEP + value;
        }
    }

    /// What a step takes in any case, in rows. The assumption where steps were too few or too alike.
    pub fn fixed_rows(&self) -> f64 {
        let mean = |sum: f64| sum / self.steps;
        let variance = mean(self.rows_squared) - mean(self.rows).powi(2);
        if self.steps < FEWEST_STEPS || variance < LEAST_VARIANCE {
            return FIXED_ROWS;
        }
        let per_row = (mean(self.rows_seconds) - mean(self.rows) * mean(self.seconds)) / variance;
        if per_row <= 0.0 {
            return MOST_FIXED_ROWS;
        }
        let fixed = mean(self.seconds) - per_row * mean(self.rows);
        (fixed / per_row).clamp(0.0, MOST_FIXED_ROWS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn drafts_follow_batch_and_acceptance() {
        // Drafts allowed, rows, acceptance, fixed rows, then drafts worth their time.
        let table = [
            (8, 1, 0.0, 4.0, 0),
            // 1 / 5 tokens per row's time without, 1.2 / 6 with: no more.
            (8, 1, 0.2, 4.0, 0),
            (8, 1, 0.5, 4.0, 1),
            (8, 1, 0.6, 4.0, 2),
            (8, 1, 0.9, 4.0, 7),
            (3, 1, 0.9, 4.0, 3),
            (0, 1, 1.0, 4.0, 0),
            (8, 1, 1.0, 4.0, 8),
            (8, 4, 0.6, 4.0, 1),
            (8, 16, 0.6, 4.0, 0),
            (8, 16, 0.9, 4.0, 1),
            (8, 64, 0.9, 4.0, 0),
            // A prompt's chunk beside it.
            (8, 128, 0.9, 4.0, 0),
            // A GPU, whose weights take as long as a hundred rows and more.
            (8, 32, 0.85, 200.0, 6),
            (8, 256, 0.85, 200.0, 2),
            // Rows are all that takes time.
            (8, 1, 0.9, 0.0, 0),
        ];
        for (most, rows, acceptance, fixed, expected) in table {
            let found = worthwhile(most, rows, acceptance, fixed);
            assert_eq!(found, expected, "{most} {rows} {acceptance} {fixed}");
        }
    }

    #[test]
    fn acceptance_is_learnt_and_forgotten() {
        let mut acceptance = Acceptance::default();
        assert_eq!(acceptance.chance(), 0.5);
        (0..50).for_each(|_| acceptance.add(4, 4));
        assert!(acceptance.chance() > 0.97, "{acceptance:?}");
        (0..50).for_each(|_| acceptance.add(4, 0));
        assert!(acceptance.chance() < 0.3, "{acceptance:?}");
        (0..100).for_each(|_| acceptance.add(0, 0));
        assert!((acceptance.chance() - 0.5).abs() < 0.03, "{acceptance:?}");
    }

    #[test]
    fn only_drafts_that_were_reached_count() {
        let mut one = Acceptance::default();
        one.add(8, 1);
        assert_eq!((one.tried, one.accepted), (2.0, 1.0));
    }

    #[test]
    fn what_a_step_takes_in_any_case_is_the_line_through_its_times() {
        let mut times = StepTimes::default();
        (0..100).for_each(|_| times.add(1, 0.01));
        assert_eq!(times.fixed_rows(), FIXED_ROWS, "one number of rows makes no line");
        for i in 0..400 {
            let rows = 1 + i % 5;
            times.add(rows, 0.012 + 0.002 * rows as f64);
        }
        assert!((times.fixed_rows() - 6.0).abs() < 0.1, "{}", times.fixed_rows());
        (0..400).for_each(|i| times.add(1 + i % 3, 0.01));
        assert_eq!(times.fixed_rows(), MOST_FIXED_ROWS, "rows that take no time");
        (0..400).for_each(|i| times.add(1 + i % 3, 0.01 * (1 + i % 3) as f64));
        assert!(times.fixed_rows() < 0.1, "{}", times.fixed_rows());
    }

    proptest! {
        #[test]
        fn more_rows_never_draft_more_and_better_drafts_never_less(
            most in 0usize..16,
            rows in 1usize..200,
            acceptance in 0.0f64..1.0,
            better in 0.0f64..1.0,
            fixed in 0.0f64..300.0,
        ) {
            let drafts = worthwhile(most, rows, acceptance, fixed);
            prop_assert!(drafts <= most);
            prop_assert!(worthwhile(most, rows + 1, acceptance, fixed) <= drafts);
            prop_assert!(worthwhile(most, rows, acceptance.max(better), fixed) >= drafts);
        }
    }
}
