//! From tokens to text that can be shown: whole characters only, nothing that may belong to a stop string.

#[cfg(test)]
mod tests;

use gqla_engine::TokenLogprob;
use gqla_protocol::{ScoredToken, StopBuffer, TokenText};
use gqla_weights::{Detokenizer, Tokenizer};

/// The text of one sequence as it grows.
pub struct TextStream {
    decoder: Decoder,
    stop: StopBuffer,
    /// Characters decoded so far, shown or held.
    characters: usize,
    scored: Vec<ScoredToken>,
    tokens: u64,
}

/// What became certain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text to append.
    pub text: String,
    /// Log-probabilities of the tokens behind it; empty unless asked for.
    pub scored: Vec<ScoredToken>,
    /// Tokens to bill since the last piece.
    pub tokens: u64,
}

/// Gives tokens their text. A model without tokenizer shows decimal ids, each followed by a space.
enum Decoder {
    Text { tokenizer: Tokenizer, detokenizer: Detokenizer },
    Ids,
}

impl TextStream {
    /// A stream cut at the first of `stops`, none of which is empty.
    pub fn new(tokenizer: Option<&Tokenizer>, stops: Vec<String>) -> Self {
        let decoder = tokenizer.map_or(Decoder::Ids, |tokenizer| Decoder::Text {
            tokenizer: tokenizer.clone(),
            detokenizer: tokenizer.detokenizer(true),
        });
        Self { decoder, stop: StopBuffer::new(stops), characters: 0, scored: Vec::new(), tokens: 0 }
    }

    /// Adds a token. `None` while nothing is certain yet.
    pub fn push(&mut self, id: u32, logprob: Option<TokenLogprob>) -> Option<Piece> {
        self.tokens += 1;
        if let Some(logprob) = logprob {
            self.scored.push(self.decoder.score(id, logprob, self.characters));
        }
        let decoded = self.decoder.push(id);
        self.characters += decoded.chars().count();
        let text = self.stop.push(&decoded);
        (!text.is_empty() || self.stopped()).then(|| self.piece(text))
    }

    /// Whether a stop string was completed; later tokens are neither shown nor billed.
    pub fn stopped(&self) -> bool {
        self.stop.stopped()
    }

    /// Ends the stream: what was held back is text after all.
    pub fn finish(&mut self) -> Piece {
        let rest = self.decoder.finish();
        let mut text = self.stop.push(&rest);
        text.push_str(&self.stop.finish());
        self.piece(text)
    }

    fn piece(&mut self, text: String) -> Piece {
        Piece { text, scored: std::mem::take(&mut self.scored), tokens: std::mem::take(&mut self.tokens) }
    }
}

impl Decoder {
    fn push(&mut self, id: u32) -> String {
        match self {
            Self::Text { detokenizer, .. } => detokenizer.push(id),
            Self::Ids => format!("{id} "),
        }
    }

    fn finish(&mut self) -> String {
        match self {
            Self::Text { detokenizer, .. } => detokenizer.finish(),
            Self::Ids => String::new(),
        }
    }

    fn score(&self, id: u32, logprob: TokenLogprob, text_offset: usize) -> ScoredToken {
        let top = logprob.top.into_iter().map(|(id, logprob)| (self.text_of(id), logprob)).collect();
        ScoredToken { token: self.text_of(id), logprob: logprob.logprob, top, text_offset }
    }

    fn text_of(&self, id: u32) -> TokenText {
        let text = match self {
            Self::Text { tokenizer, .. } => tokenizer.decode(&[id], false),
            Self::Ids => id.to_string(),
        };
        // A replacement mark stands for bytes the tokenizer does not reveal.
        let bytes = (!text.contains('\u{FFFD}')).then(|| text.clone().into_bytes());
        TokenText { text, bytes }
    }
}
