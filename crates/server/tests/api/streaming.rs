//! Answers as server-sent events.

use std::sync::atomic::Ordering;

use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    client::{Server, chat, until},
    engine::FAIL,
};

#[tokio::test]
async fn a_chat_stream_from_role_to_done() {
    let server = Server::saying("Hi");
    let answer = server.chat(json!({"stream": true, "stream_options": {"include_usage": true}})).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = answer.events();
    let deltas: Vec<&Value> = events.iter().filter_map(|event| event["choices"][0].get("delta")).collect();
    assert_eq!(
        deltas,
        [
            &json!({"role": "assistant", "content": ""}),
            &json!({"content": "H"}),
            &json!({"content": "i"}),
            &json!({})
        ]
    );
    let (last, choices) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}));
    assert_eq!(choices[3]["choices"][0]["finish_reason"], "stop");
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!((&event["id"], &event["created"]), (&events[0]["id"], &events[0]["created"]));
    }
}

#[tokio::test]
async fn without_stream_options_there_is_no_usage() {
    let events = Server::saying("Hi").chat(json!({"stream": true})).await.events();
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn split_characters_are_never_shown_in_halves() {
    let answer = Server::saying("né€🦀").complete(json!({"stream": true})).await;
    assert_eq!(answer.text(0), "né€🦀");
    assert!(!answer.body.contains('\u{FFFD}'), "{}", answer.body);
}

#[tokio::test]
async fn a_stop_string_in_pieces_never_leaks() {
    let answer = Server::saying("say EN ENDING").complete(json!({"stream": true, "stop": "END"})).await;
    assert_eq!(answer.text(0), "say EN ");
}

#[tokio::test]
async fn several_choices_share_one_stream() {
    let answer = Server::saying("abc").complete(json!({"stream": true, "n": 2})).await;
    assert_eq!((answer.text(0).as_str(), answer.text(1).as_str()), ("abc", "abc"));
    let finished =
        answer.events().iter().filter(|event| event["choices"][0]["finish_reason"] == "stop").count();
    assert_eq!(finished, 2);
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_a_status_and_after_it_an_event() {
    let answer = Server::with_ids(vec![FAIL]).chat(json!({"stream": true})).await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json()["error"]["message"], "the engine failed: the script says so");

    let answer = Server::with_ids(vec![104, FAIL]).chat(json!({"stream": true})).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.body.contains("[DONE]"), "{}", answer.body);
    let last = answer.body.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["error"]["type"], "server_error");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_sequence() {
    let server = Server::saying(&"x".repeat(60));
    let mut response = server.open(chat(json!({"stream": true}))).await;
    let first = response.frame().await.unwrap().unwrap();
    assert!(first.into_data().unwrap().starts_with(b"data: "));
    drop(response);
    until("the cancellation", || server.engine.cancelled.load(Ordering::SeqCst) == 1).await;
    assert!(server.engine.delivered.load(Ordering::SeqCst) < 60);
    until("the end of the request", || server.app.requests.is_empty()).await;
    assert!(
        server
            .metrics()
            .contains(r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 1"#)
    );
}

#[tokio::test(start_paused = true)]
async fn a_long_silence_is_filled_with_comments() {
    let server = Server::saying("Hi");
    server.engine.hold.store(true, Ordering::SeqCst);
    let mut response = server.open(chat(json!({"stream": true}))).await;
    let first = response.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b": ping\n\n");
    server.engine.hold.store(false, Ordering::SeqCst);
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn streamed_pieces_are_the_whole_text(script in "[aé€🦀 ]{1,6}", stop in "[aé ]{1,2}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::saying(&script);
            let fields = json!({"stop": stop, "max_tokens": 40});
            let whole = server.complete(fields.clone()).await.json();
            let mut streamed = fields;
            streamed["stream"] = json!(true);
            let streamed = server.complete(streamed).await;
            let expected = script.split(&stop).next().unwrap();
            prop_assert_eq!(whole["choices"][0]["text"].as_str().unwrap(), expected);
            prop_assert_eq!(streamed.text(0), expected);
            Ok(())
        })?;
    }
}
