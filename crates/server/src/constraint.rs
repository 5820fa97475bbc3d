//! Answers held to a JSON schema: which tokens may come next, by `llguidance` over the model's own vocabulary.

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use gqla_engine::{Constraint, TokenMask};
use gqla_protocol::{ApiError, ResponseFormat, SCHEMA_FIELD};
use gqla_weights::{Tokenizer, TokenizerError};
use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    token_bytes_from_tokenizer_json,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::json;

/// Symbols of a grammar at most. A client's schema is compiled beside running requests: this takes tens of
/// milliseconds, ten times less than `llguidance` would allow.
const MAX_GRAMMAR_SIZE: usize = 50_000;

/// Work for a schema's regular expressions, in `llguidance`'s unit (50 000 take about a millisecond).
const MAX_LEXER_FUEL: u64 = 500_000;

/// Compiles schemas for one vocabulary.
pub struct Grammars(ParserFactory);

/// Why no schema can be followed.
#[derive(Debug, thiserror::Error)]
pub enum GrammarsError {
    /// A tokenizer that cannot be read.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// An answer could never end.
    #[error("the model names no end-of-sequence token that its tokenizer has")]
    NoEnd,
    /// What the library says.
    #[error("the vocabulary cannot be indexed: {0}")]
    Index(String),
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Indexes the vocabulary by its bytes.
    ///
    /// # Errors
    /// As [`GrammarsError`] says.
    pub fn new(tokenizer: &Tokenizer, eos_token_ids: &[u32]) -> Result<Self, GrammarsError> {
        let index = |error: &dyn fmt::Display| GrammarsError::Index(error.to_string());
        let json = serde_json::from_str(&tokenizer.to_json()?).map_err(|error| index(&error))?;
        let words = token_bytes_from_tokenizer_json(&json).map_err(|error| index(&error))?;
        let known = |id: &u32| (*id as usize) < words.len();
        let ends: Vec<u32> = eos_token_ids.iter().copied().filter(known).collect();
        let first = *ends.first().ok_or(GrammarsError::NoEnd)?;
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, first), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| index(&error))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_grammar_size = MAX_GRAMMAR_SIZE;
        limits.initial_lexer_fuel = MAX_LEXER_FUEL;
        limits.verbose_errors = false;
        Ok(Self(factory))
    }

    /// The grammar of a form; `None` where anything goes.
    ///
    /// # Errors
    /// 400 with the reason for schemas that are malformed, too large or use what is not supported.
    pub fn compile(&self, format: &ResponseFormat) -> Result<Option<Grammar>, ApiError> {
        let schema = match format {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::JsonObject => json!({"type": "object"}),
            ResponseFormat::JsonSchema(schema) => schema.clone(),
        };
        let parser = self.0.create_parser(TopLevelGrammar::from_json_schema(schema));
        let refused = |error| ApiError::field(SCHEMA_FIELD, format!("cannot be followed: {error:#}"));
        Ok(Some(Grammar(Matcher::new(Ok(parser.map_err(refused)?)))))
    }
}

/// A compiled schema at its beginning.
#[derive(Clone)]
pub struct Grammar(Matcher);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Grammar {
    /// Follows one sequence from its beginning.
    pub fn follow(&self) -> Box<dyn Constraint> {
        // A deep copy: sequences that share caches would wait for each other.
        Box::new(Follower(self.0.deep_clone()))
    }
}

struct Follower(Matcher);

impl Constraint for Follower {
    fn forbid(&mut self, allowed: &mut TokenMask) -> Result<(), String> {
        let mask = self.0.compute_mask_or_eos().map_err(|error| error.to_string())?;
        allowed.keep(mask.as_slice());
        // What the last word has beyond the tokenizer's vocabulary is not said.
        (mask.len()..mask.len().next_multiple_of(32)).for_each(|id| allowed.forbid(id));
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<bool, String> {
        self.0.consume_token(id).map_err(|error| error.to_string())?;
        Ok(self.0.is_stopped())
    }
}
