//! The end of a pod's life.

use std::{sync::atomic::Ordering, time::Duration};

use gqla_server::{
    AppHealth, Liveness,
    drain::{DrainState, drain},
};
use gqla_telemetry::{Health, Probe};
use http_body_util::BodyExt;
use serde_json::json;

use crate::client::{Server, chat, until};

const MOMENT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn readiness_fails_first_then_requests_then_nothing_is_left() {
    let server = Server::saying("Hi");
    let app = server.app.clone();
    let ending = tokio::spawn(drain(app.clone(), MOMENT, Duration::from_secs(10)));
    until("the lame-duck window", || app.drain.state() == DrainState::LameDuck).await;
    let health = AppHealth { app: app.clone(), liveness: Liveness(MOMENT) };
    assert_eq!(health.ready(), Probe::NotOk("draining: the server was told to stop".to_owned()));
    assert_eq!(health.live(), Probe::Ok);
    assert_eq!(server.chat(json!({})).await.status, 200, "a lame duck still answers");
    until("the drain", || app.drain.state() == DrainState::Draining).await;
    let refused = server.chat(json!({})).await;
    assert_eq!((refused.status.as_u16(), &refused.headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(refused.json()["error"]["code"], "draining");
    tokio::time::timeout(Duration::from_secs(5), ending).await.unwrap().unwrap();
    assert!(server.metrics().contains(r#"gqla_drain_state{engine="0",model_name="m"} 2"#));
}

#[tokio::test]
async fn running_requests_finish() {
    let server = Server::saying(&"x".repeat(60));
    let mut response = server.open(chat(json!({"stream": true}))).await;
    response.frame().await.unwrap().unwrap();
    let reader = tokio::spawn(async move { response.into_body().collect().await.unwrap().to_bytes() });
    drain(server.app.clone(), Duration::ZERO, Duration::from_secs(10)).await;
    let rest = String::from_utf8(reader.await.unwrap().to_vec()).unwrap();
    assert!(rest.contains(r#""finish_reason":"stop""#), "{rest}");
    assert!(rest.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn requests_that_take_too_long_are_told_so() {
    let server = Server::saying("Hi");
    server.engine.hold.store(true, Ordering::SeqCst);
    let app = server.app.clone();
    let request = chat(json!({}));
    let answer = async {
        let answer = server.send(request).await;
        answer.json()
    };
    let ending = async {
        until("the request", || server.engine.running.load(Ordering::SeqCst) == 1).await;
        drain(app, Duration::ZERO, MOMENT).await;
    };
    let (body, ()) = tokio::join!(answer, ending);
    assert_eq!(body["choices"][0]["finish_reason"], "abort");
    assert_eq!(body["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn a_whole_answer_counts_until_its_last_byte_is_taken() {
    let server = Server::saying("Hi");
    let response = server.open(chat(json!({}))).await;
    let length: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
    assert_eq!(server.app.requests.len(), 1, "the answer is not written yet");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!((body.len(), server.app.requests.len()), (length, 0));
}
