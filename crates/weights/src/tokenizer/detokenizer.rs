//! Turns a growing token sequence into text that is never taken back.

use super::Tokenizer;

/// Bounds the work per token when a model emits nothing but broken bytes.
const LONGEST_WINDOW: usize = 256;

const BROKEN: char = char::REPLACEMENT_CHARACTER;

/// Decodes one sequence token by token, holding back bytes until they are whole characters.
///
/// Lossy UTF-8 decoding writes one U+FFFD for each broken part, and only the last part of a text can still become a
/// character. So everything before a final U+FFFD is certain.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The tokens behind the last two points at which all text was certain. The first part is context, for decoders
    /// whose spacing depends on the token before.
    window: Vec<u32>,
    /// Tokens of `window` that are only context.
    context: usize,
    /// Bytes of the window's text that have been given out.
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
        match text.strip_suffix(BROKEN) {
            Some(certain) if self.window.len() <= LONGEST_WINDOW => {
                let piece = certain.get(self.given..).unwrap_or_default().to_owned();
                self.given = certain.len();
                piece
            }
            _ => self.give_all(&text),
        }
    }

    /// Ends the sequence and returns what was held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = self.text();
        self.give_all(&text)
    }

    fn text(&self) -> String {
        self.tokenizer.decode(&self.window, self.skip_special)
    }

    fn give_all(&mut self, text: &str) -> String {
        let piece = text.get(self.given..).unwrap_or_default().to_owned();
        self.window.drain(..self.context);
        if text.ends_with(BROKEN) {
            // What was given for a broken part is no prefix of what it might become: start afresh behind it.
            self.window.clear();
        }
        self.context = self.window.len();
        self.given = self.text().len();
        piece
    }
}
