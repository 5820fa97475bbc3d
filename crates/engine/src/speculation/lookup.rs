//! Drafts without a model: what followed the same tokens earlier in the sequence.
//!
//! Answers that quote their prompt (code being edited, texts being summed up, records being filled in) repeat long runs of
//! it, and these are free to guess.

use super::SpeculationError;

/// Latest tokens that are searched. It bounds a draft's cost to some 10⁵ comparisons, microseconds beside a step.
const WINDOW: usize = 16_384;

/// Looks for the last few tokens of a sequence further up in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLookup {
    min: usize,
    max: usize,
}

impl Default for PromptLookup {
    /// Two tokens alone often mislead, but the number of drafts follows what is accepted; beyond five nothing is gained.
    fn default() -> Self {
        Self { min: 2, max: 5 }
    }
}

impl PromptLookup {
    /// Longest n-gram that can be looked for.
    pub const LONGEST: usize = 16;

    /// Looks for the last `max` tokens, or else fewer, down to `min`.
    ///
    /// # Errors
    /// [`SpeculationError::NGrams`] unless `1 <= min <= max <= LONGEST`.
    pub fn new(min: usize, max: usize) -> Result<Self, SpeculationError> {
        if 1 <= min && min <= max && max <= Self::LONGEST {
            Ok(Self { min, max })
        } else {
            Err(SpeculationError::NGrams { min, max })
        }
    }

    /// Tokens of the shortest n-gram.
    pub fn min(&self) -> usize {
        self.min
    }

    /// Tokens of the longest n-gram.
    pub fn max(&self) -> usize {
        self.max
    }

    /// What may follow `tokens`: what followed the latest of the longest matches. `most` tokens, or none where nothing
    /// matches; a match that reaches into what it matches goes on as a period.
    pub fn draft(&self, tokens: &[u32], most: usize) -> Vec<u32> {
        let Some(after) = self.find(tokens).filter(|_| most > 0) else { return Vec::new() };
        let period = tokens.len() - after;
        (0..most).map(|i| tokens[after + i % period]).collect()
    }

    /// Where the match ends that is followed by the draft.
    fn find(&self, tokens: &[u32]) -> Option<usize> {
        let (mut longest, mut found) = (self.min - 1, None);
        for end in (1..tokens.len()).rev().take(WINDOW) {
            let len = self.common_suffix(&tokens[..end], tokens);
            if len > longest {
                (longest, found) = (len, Some(end));
            }
            if longest == self.max {
                break;
            }
        }
        found
    }

    /// Tokens the two end with in common, up to the longest n-gram.
    fn common_suffix(&self, one: &[u32], other: &[u32]) -> usize {
        one.iter().rev().zip(other.iter().rev()).take(self.max).take_while(|(a, b)| a == b).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_latest_of_the_longest_matches_is_continued() {
        let table: [(&[u32], usize, &[u32]); 8] = [
            (&[], 4, &[]),
            (&[1, 2, 3], 4, &[]),
            (&[1, 2, 3, 9, 2, 3], 1, &[9]),
            // The run up to here is one period.
            (&[1, 2, 3, 9, 2, 3], 5, &[9, 2, 3, 9, 2]),
            // Three tokens beat two that are nearer.
            (&[1, 2, 3, 7, 5, 2, 3, 8, 1, 2, 3], 2, &[7, 5]),
            // Of equals the latest.
            (&[2, 3, 7, 2, 3, 8, 2, 3], 1, &[8]),
            (&[4, 4, 4], 3, &[4, 4, 4]),
            (&[1, 2, 3, 9, 2, 3], 0, &[]),
        ];
        for (tokens, most, expected) in table {
            assert_eq!(PromptLookup::default().draft(tokens, most), expected, "{tokens:?}");
        }
        assert_eq!(PromptLookup::new(3, 3).unwrap().draft(&[1, 2, 9, 1, 2], 2), [0; 0]);
    }

    #[test]
    fn what_lies_far_back_is_not_searched() {
        let mut tokens: Vec<u32> = vec![1, 2];
        tokens.extend(10..10 + WINDOW as u32);
        tokens.extend([1, 2]);
        assert_eq!(PromptLookup::default().draft(&tokens, 1), [0; 0]);
        tokens.drain(2..4);
        assert_eq!(PromptLookup::default().draft(&tokens, 1), [12]);
    }

    proptest! {
        #[test]
        fn a_draft_is_what_its_definition_says(
            tokens in prop::collection::vec(0u32..3, 0..60),
            min in 1usize..4,
            more in 0usize..4,
            most in 0usize..9,
        ) {
            let max = min + more;
            let draft = PromptLookup::new(min, max).unwrap().draft(&tokens, most);
            let matches = |n: usize| {
                let suffix = &tokens[tokens.len() - n..];
                (n..tokens.len()).rev().find(|end| tokens[end - n..*end] == *suffix)
            };
            let found = (min..=max.min(tokens.len())).rev().find_map(matches);
            let Some(after) = found.filter(|_| most > 0) else {
                prop_assert!(draft.is_empty());
                return Ok(());
            };
            prop_assert_eq!(draft.len(), most);
            let mut text = tokens;
            for (i, token) in draft.iter().enumerate() {
                prop_assert_eq!(*token, text[after + i]);
                text.push(*token);
            }
        }
    }
}
