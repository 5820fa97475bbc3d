//! Turns a growing token sequence into text that is never taken back.

use super::Tokenizer;

/// Bounds the work per token when a model emits nothing but broken bytes.
const LONGEST_WINDOW: usize = 256;

const BROKEN: char = char::REPLACEMENT_CHARACTER;

/// Decodes one sequence token by token, holding back bytes until they are whole characters.
///
/// Decoders over bytes write one U+FFFD for each broken part. Decoders with byte fallback write one for every byte of a
/// run that is not UTF-8 as a whole, whole characters at its start included. So what stands before the final U+FFFDs is
/// certain, and what was given out stays given when a later byte breaks its run.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The tokens behind the last two points at which all text was certain. The first part is context, for decoders
    /// whose spacing depends on the token before.
    window: Vec<u32>,
    /// Tokens of `window` that are only context.
    context: usize,
    /// Characters of the window's text that have been given out.
    given: usize,
}

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), context: 0, given: 0 }
    }

    /// Adds a token and returns the text that has become certain, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        self.window.push(id);
        let text = self.text();
        if !text.ends_with(BROKEN) || self.window.len() > LONGEST_WINDOW {
            return self.give_all(&text);
        }
        let certain = text.trim_end_matches(BROKEN);
        let piece = self.ungiven(certain);
        self.given = self.given.max(certain.chars().count());
        piece
    }

    /// Ends the sequence and returns what was held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.text();
        self.give_all(&text)
    }

    fn text(&self) -> String {
        self.tokenizer.decode(&self.window, self.skip_special)
    }

    /// Characters, not bytes: a character that was given out may have become a U+FFFD of another length.
    fn ungiven(&self, text: &str) -> String {
        text.chars().skip(self.given).collect()
    }

    fn give_all(&mut self, text: &str) -> String {
        let piece = self.ungiven(text);
        self.window.drain(..self.context);
        if text.ends_with(BROKEN) {
            // What was given for a broken part is no prefix of what it might become: start afresh behind it.
            self.window.clear();
        }
        self.context = self.window.len();
        self.given = self.text().chars().count();
        piece
    }
}
