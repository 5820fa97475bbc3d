//! Answers in one body.

use gqla_engine::SamplingParams;
use serde_json::json;

use crate::{
    client::{Server, get},
    engine::EOS,
};

#[tokio::test]
async fn a_completion_ends_at_the_end_token_and_bills_what_it_shows() {
    let server = Server::saying("Paris.");
    let body = server.complete(json!({"prompt": "France", "max_tokens": 20})).await.json();
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"][0]["text"], "Paris.");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"], json!({"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}));
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
}

#[tokio::test]
async fn chat_renders_the_template_and_fills_the_context_by_default() {
    let server = Server::saying(&"x".repeat(100));
    let body = server.chat(json!({})).await.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    // The template makes "hi>" of the message: 3 of 64 tokens.
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 61, "total_tokens": 64}));
    assert_eq!(body["choices"][0]["message"], json!({"role": "assistant", "content": "x".repeat(61)}));
}

#[tokio::test]
async fn completions_default_to_sixteen_tokens_and_end_tokens_can_be_ignored() {
    let server = Server::saying("ab");
    let body = server.complete(json!({"ignore_eos": true})).await.json();
    assert_eq!(body["usage"]["completion_tokens"], 16);
    assert_eq!(body["choices"][0]["text"], "ab", "special tokens have no text");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn every_way_to_steer_the_draw_reaches_the_engine() {
    let server = Server::saying("ab");
    let fields = json!({
        "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125, "seed": 3,
        "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.5, "logit_bias": {"4": -2},
        "stop_token_ids": [5], "logprobs": 1, "priority": -2, "cache_salt": "s",
    });
    assert_eq!(server.complete(fields).await.status, 200);
    let expected = SamplingParams {
        max_tokens: 9,
        min_tokens: 2,
        temperature: 0.5,
        top_p: 0.25,
        top_k: 7,
        min_p: 0.125,
        presence_penalty: 1.0,
        frequency_penalty: -1.0,
        repetition_penalty: 1.5,
        logit_bias: vec![(4, -2.0)],
        seed: 3,
        stop_token_ids: vec![5, EOS],
        logprobs: Some(1),
    };
    assert_eq!(*server.engine.last.lock().unwrap(), Some((expected, -2, "s".to_owned())));
}

#[tokio::test]
async fn choices_are_numbered_prompt_by_prompt() {
    let server = Server::saying("ok");
    let body = server.complete(json!({"prompt": [[1, 2], [3]], "n": 2})).await.json();
    let indices: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(body["usage"], json!({"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}));
}

#[tokio::test]
async fn a_stop_string_cuts_the_text_and_ends_the_sequence() {
    let server = Server::saying("one STOP two");
    let body = server.complete(json!({"stop": ["STOP"], "max_tokens": 30})).await.json();
    assert_eq!(body["choices"][0]["text"], "one ");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["completion_tokens"], 8);
    assert_eq!(
        server.engine.delivered.load(std::sync::atomic::Ordering::SeqCst),
        8,
        "no token after the stop string"
    );
}

#[tokio::test]
async fn logprobs_in_both_routes() {
    let server = Server::saying("hi");
    let body = server.complete(json!({"logprobs": 1})).await.json();
    assert_eq!(
        body["choices"][0]["logprobs"],
        json!({"tokens": ["h", "i"], "token_logprobs": [-0.5, -0.5], "text_offset": [0, 1],
               "top_logprobs": [{"a": -1.0, "h": -0.5}, {"a": -1.0, "i": -0.5}]})
    );
    let body = server.chat(json!({"logprobs": true, "top_logprobs": 1})).await.json();
    assert_eq!(
        body["choices"][0]["logprobs"]["content"][1],
        json!({"token": "i", "logprob": -0.5, "bytes": [105],
               "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}]})
    );
    assert_eq!(server.chat(json!({})).await.json()["choices"][0]["logprobs"], json!(null));
}

#[tokio::test]
async fn an_answer_fits_the_schema_whatever_the_model_would_say() {
    let server = Server::saying("Sure! Here is");
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                        "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let body = server.chat(json!({"response_format": format, "n": 2})).await.json();
    for choice in body["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "stop", "{body}");
        let text = choice["message"]["content"].as_str().unwrap();
        let answer: serde_json::Value = serde_json::from_str(text).unwrap();
        assert!(answer["ok"].is_boolean() && answer.as_object().unwrap().len() == 1, "{text}");
    }
    let streamed =
        server.complete(json!({"response_format": format, "stream": true, "max_tokens": 60})).await;
    let text = streamed.text(0);
    assert!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["ok"].is_boolean(), "{text}");
}

#[tokio::test]
async fn models_lists_the_one_that_is_served() {
    let server = Server::saying("");
    assert_eq!(
        server.send(get("/v1/models")).await.json(),
        json!({"object": "list", "data": [
            {"id": "m", "object": "model", "created": 7, "owned_by": "gqla", "max_model_len": 64}]})
    );
}
