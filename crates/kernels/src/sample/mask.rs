//! Which tokens may be chosen, a bit each.

/// A bit for every token of a vocabulary: set where the token may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// Allows all tokens of a vocabulary.
    pub fn all(vocab: usize) -> Self {
        let mut words = vec![u32::MAX; vocab.div_ceil(32)];
        if let Some(last) = words.last_mut().filter(|_| !vocab.is_multiple_of(32)) {
            *last = (1 << (vocab % 32)) - 1;
        }
        Self { words }
    }

    /// Whether a token may be chosen; one outside the vocabulary may not.
    pub fn allows(&self, id: usize) -> bool {
        self.words.get(id / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Forbids a token.
    pub fn forbid(&mut self, id: usize) {
        if let Some(word) = self.words.get_mut(id / 32) {
            *word &= !(1 << (id % 32));
        }
    }

    /// Forbids all tokens but those whose bits are set in `words`, token 0 in the lowest bit of the first; those beyond are
    /// forbidden.
    pub fn keep(&mut self, words: &[u32]) {
        let others = words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter_mut().zip(others).for_each(|(word, other)| *word &= other);
    }

    /// Whether no token is allowed.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The bits, token 0 in the lowest of the first word.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}
