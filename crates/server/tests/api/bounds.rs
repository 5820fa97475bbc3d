//! Queues, probes and a model that is still loading.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{body::Body, http::Request};
use gqla_server::{AppHealth, Liveness, state::Phase};
use gqla_telemetry::{Health, Probe};
use serde_json::json;

use crate::{
    client::{LIMITS, Server, chat, get, until},
    engine::ScriptedEngine,
};

fn health(server: &Server) -> AppHealth {
    AppHealth { app: server.app.clone(), liveness: Liveness(Duration::from_secs(1)) }
}

#[tokio::test]
async fn while_loading_probes_tell_and_requests_wait_outside() {
    let server = Server::loading(None);
    server.app.set_phase(Phase::Loading("layer 3 of 30".to_owned()));
    let loading = Probe::NotOk("loading: layer 3 of 30".to_owned());
    assert_eq!(health(&server).started(), loading);
    assert_eq!(health(&server).ready(), loading);
    assert_eq!(health(&server).live(), Probe::Ok);
    for answer in [server.chat(json!({})).await, server.send(get("/v1/models")).await] {
        assert_eq!((answer.status.as_u16(), &answer.headers["retry-after"]), (503, &"5".parse().unwrap()));
        assert_eq!(answer.json()["error"]["code"], "loading");
    }
    server.publish(ScriptedEngine::start(vec![104], LIMITS.queued).0);
    assert_eq!(health(&server).started(), Probe::Ok);
    assert_eq!(health(&server).ready(), Probe::Ok);
    assert_eq!(server.chat(json!({})).await.status, 200);
    server.app.set_phase(Phase::Failed("no such file".to_owned()));
    assert_eq!(health(&server).live(), Probe::NotOk("no such file".to_owned()));
}

#[tokio::test]
async fn a_full_queue_answers_429_and_is_not_ready() {
    let server = Server::saying("Hi");
    server.engine.hold.store(true, Ordering::SeqCst);
    let fill = || server.open(chat(json!({"stream": true})));
    let engine = &server.engine;
    let mut open: Vec<_> = Vec::new();
    for waiting in 0..=LIMITS.queued {
        let mut request = Box::pin(fill());
        assert!(futures::poll!(request.as_mut()).is_pending());
        let mut admitted = false;
        for _ in 0..2000 {
            let _ = futures::poll!(request.as_mut());
            tokio::time::sleep(Duration::from_millis(2)).await;
            admitted = engine.running.load(Ordering::SeqCst) == 1
                && engine.waiting.load(Ordering::SeqCst) == waiting;
            if admitted {
                break;
            }
        }
        assert!(admitted, "request {waiting} was not taken");
        open.push(request);
    }
    assert_eq!(health(&server).ready(), Probe::NotOk("queue: at its limit of 4 requests".to_owned()));
    let refused = server.chat(json!({})).await;
    assert_eq!((refused.status.as_u16(), &refused.headers["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    assert!(
        server
            .metrics()
            .contains(r#"gqla_queue_rejected_total{engine="0",model_name="m",reason="queue_full"} 1"#)
    );

    engine.hold.store(false, Ordering::SeqCst);
    for request in open {
        assert_eq!(request.await.status(), 200);
    }
    until("room in the queue", || health(&server).ready() == Probe::Ok).await;
}

#[tokio::test]
async fn a_request_larger_than_the_room_left_takes_none_of_it() {
    let server = Server::saying("Hi");
    server.engine.hold.store(true, Ordering::SeqCst);
    // One runs and one waits: three of the four places are left.
    let mut open = Vec::new();
    for waiting in 0..2 {
        let mut request = Box::pin(server.open(chat(json!({}))));
        for _ in 0..2000 {
            let _ = futures::poll!(request.as_mut());
            tokio::time::sleep(Duration::from_millis(2)).await;
            if server.engine.running.load(Ordering::SeqCst) == 1
                && server.engine.waiting.load(Ordering::SeqCst) == waiting
            {
                break;
            }
        }
        open.push(request);
    }
    let refused = server.complete(json!({"n": 4})).await;
    assert_eq!(refused.status, 429);
    server.engine.hold.store(false, Ordering::SeqCst);
    for request in open {
        assert_eq!(request.await.status(), 200);
    }
    until("the queue to empty", || server.engine.waiting.load(Ordering::SeqCst) == 0).await;
    until("their cancellation", || server.engine.cancelled.load(Ordering::SeqCst) == 3).await;
    assert_eq!(server.engine.delivered.load(Ordering::SeqCst), 4, "two answers of two tokens, nothing else");
}

#[tokio::test]
async fn a_dead_engine_fails_both_probes_at_once_and_is_no_drain() {
    let server = Server::saying("Hi");
    *server.engine.failure.lock().unwrap() = Some("CUDA_ERROR_ILLEGAL_ADDRESS".to_owned());
    let dead =
        Probe::NotOk("the engine failed and takes no more requests: CUDA_ERROR_ILLEGAL_ADDRESS".to_owned());
    assert_eq!(health(&server).live(), dead);
    assert_eq!(health(&server).ready(), dead);
    let answer = server.chat(json!({})).await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json()["error"]["code"], "internal_error");
}

#[tokio::test]
async fn bodies_that_do_not_end_take_no_more_places_than_the_queue_has() {
    let server = Server::saying("Hi");
    let endless = || {
        let body = Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>());
        Request::post("/v1/chat/completions").header("content-type", "application/json").body(body).unwrap()
    };
    let mut slow: Vec<_> = (0..LIMITS.queued).map(|_| Box::pin(server.open(endless()))).collect();
    for request in &mut slow {
        assert!(futures::poll!(request.as_mut()).is_pending());
    }
    let refused = server.chat(json!({})).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (429, &json!("queue_full")));
    slow.pop();
    assert_eq!(server.chat(json!({})).await.status, 200);
}
