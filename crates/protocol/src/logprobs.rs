//! Log-probabilities in the two forms the two routes give them.

use serde_json::{Map, Value, json};

/// What JSON can't say as a number: OpenAI's stand-in for minus infinity.
const LOWEST: f32 = -9999.0;

/// One token as text. A token may be part of a character; then `text` has a replacement mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    /// For people.
    pub text: String,
    /// UTF-8 of the text, where the text is the whole truth.
    pub bytes: Option<Vec<u8>>,
}

/// A drawn token, its log-probability and the most likely tokens in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    /// The drawn token.
    pub token: TokenText,
    /// Natural logarithm of its probability, before temperature and truncation.
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<(TokenText, f32)>,
    /// Where the token's text begins in the answer, in characters.
    pub text_offset: usize,
}

/// `choices[].logprobs` of a chat completion.
pub(crate) fn chat(tokens: &[ScoredToken]) -> Value {
    let entry = |token: &TokenText, logprob: f32| json!({"token": token.text, "logprob": finite(logprob), "bytes": token.bytes});
    let content: Vec<Value> = tokens
        .iter()
        .map(|scored| {
            let mut one = entry(&scored.token, scored.logprob);
            one["top_logprobs"] = scored.top.iter().map(|(token, logprob)| entry(token, *logprob)).collect();
            one
        })
        .collect();
    json!({ "content": content })
}

/// `choices[].logprobs` of a completion.
pub(crate) fn completion(tokens: &[ScoredToken]) -> Value {
    let top = |scored: &ScoredToken| {
        let mut top: Map<String, Value> = scored
            .top
            .iter()
            .rev()
            .map(|(token, logprob)| (token.text.clone(), json!(finite(*logprob))))
            .collect();
        top.insert(scored.token.text.clone(), json!(finite(scored.logprob)));
        top
    };
    json!({
        "tokens": tokens.iter().map(|scored| scored.token.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|scored| finite(scored.logprob)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": tokens.iter().map(|scored| scored.text_offset).collect::<Vec<_>>(),
    })
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LOWEST }
}
