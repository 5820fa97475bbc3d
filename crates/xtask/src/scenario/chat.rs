//! A client of the OpenAI API: sends one chat request and follows the streamed answer.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// How long a single answer may take before the scenario gives up on it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was streamed, joined.
    pub text: String,
    /// Tokens the server billed for the answer.
    pub completion_tokens: u64,
    /// From sending the request to the first piece of text.
    pub time_to_first_token: Duration,
    /// From sending the request to `[DONE]`.
    pub total: Duration,
}

/// Streams the answer to `question`, handing every piece of text to `on_piece` as it arrives.
pub fn ask(
    server: SocketAddr,
    model: &str,
    question: &str,
    max_tokens: u32,
    mut on_piece: impl FnMut(&str),
) -> Result<Answer> {
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let start = Instant::now();
    let mut response = post(&format!("http://{server}/v1/chat/completions"), &body)?;
    let mut answer = Answer {
        text: String::new(),
        completion_tokens: 0,
        time_to_first_token: Duration::ZERO,
        total: Duration::ZERO,
    };
    let mut done = false;
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line.context("the stream broke off")?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            done = true;
            break;
        }
        let chunk: Value = serde_json::from_str(data).with_context(|| format!("not JSON: {data}"))?;
        if let Some(error) = chunk.get("error") {
            bail!("the server ended the stream with {error}");
        }
        if let Some(piece) =
            chunk["choices"][0]["delta"]["content"].as_str().filter(|piece| !piece.is_empty())
        {
            if answer.text.is_empty() {
                answer.time_to_first_token = start.elapsed();
            }
            answer.text.push_str(piece);
            on_piece(piece);
        }
        if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
            answer.completion_tokens = tokens;
        }
    }
    ensure!(done, "the stream ended without `data: [DONE]` after {:?}", answer.text);
    answer.total = start.elapsed();
    Ok(answer)
}

/// The token ids that a model without tokenizer answers a request to `/v1/completions` with.
pub fn complete(server: SocketAddr, request: &Value) -> Result<Vec<u32>> {
    let answer: Value = post(&format!("http://{server}/v1/completions"), request)?.body_mut().read_json()?;
    let text = answer["choices"][0]["text"].as_str().with_context(|| format!("no text in {answer}"))?;
    let ids = text.split_whitespace().map(str::parse).collect::<Result<_, _>>();
    ids.with_context(|| format!("{text:?} are no token ids"))
}

fn post(url: &str, body: &Value) -> Result<ureq::http::Response<ureq::Body>> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(ANSWER_TIMEOUT))
        .http_status_as_error(false)
        .build()
        .into();
    let mut response = agent.post(url).send_json(body).with_context(|| format!("cannot reach {url}"))?;
    if response.status() != 200 {
        bail!("{url} answered {}: {}", response.status(), response.body_mut().read_to_string()?);
    }
    Ok(response)
}
