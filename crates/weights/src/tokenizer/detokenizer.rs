//! Turns a growing token sequence into text that is never taken back.

use super::Tokenizer;

/// A character has at most four bytes, so at most three tokens of one byte each can be waiting for its last one.
const LONGEST_WAIT: usize = 3;

/// Decodes one sequence token by token, holding back bytes until they are whole characters.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The tokens of the last text given out, for decoders whose spacing depends on the token before, and then the
    /// tokens still held back.
    window: Vec<u32>,
    /// How many of `window` have been given out.
    given: usize,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), given: 0 }
    }

    /// Adds a token and returns the text that has become certain, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        self.window.push(id);
        let text = self.pending();
        let waiting = self.window.len() - self.given;
        if text.ends_with('\u{FFFD}') && waiting <= LONGEST_WAIT {
            return String::new();
        }
        self.give(text)
    }

    /// Ends the sequence and returns what was held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.pending();
        self.give(text)
    }

    /// The text of the tokens not given out yet.
    fn pending(&self) -> String {
        let known = self.tokenizer.decode(&self.window[..self.given], self.skip_special);
        let all = self.tokenizer.decode(&self.window, self.skip_special);
        all.strip_prefix(known.as_str()).map(str::to_owned).unwrap_or(all)
    }

    fn give(&mut self, text: String) -> String {
        self.window.drain(..self.given);
        // Text that ends in a broken character is no prefix of anything longer: start afresh behind it.
        if text.ends_with('\u{FFFD}') {
            self.window.clear();
        }
        self.given = self.window.len();
        text
    }
}
