//! A server in this process, and the requests sent to it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode},
};
use gqla_engine::Engine;
use gqla_protocol::ChatTemplate;
use gqla_server::{
    ApiKey,
    args::Limits,
    decode_path::Reason,
    metrics::Metrics,
    routes::router,
    state::{App, Model, Phase},
};
use gqla_telemetry::prometheus::TextEncoder;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    engine::{EOS, ScriptedEngine, Shared},
    tokenizer,
};

pub const LIMITS: Limits = Limits { running: 1, queued: 4, body_bytes: 4096 };

/// Joins contents, so that what the model sees is easy to count.
const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}{% endfor %}>";

pub struct Server {
    pub app: Arc<App>,
    pub engine: Arc<Shared>,
    router: Router,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Server {
    /// Answers everything with `script`.
    pub fn saying(script: &str) -> Self {
        Self::with_ids(script.bytes().map(u32::from).collect())
    }

    pub fn with_ids(script: Vec<u32>) -> Self {
        let server = Self::loading(None);
        let (engine, shared) = ScriptedEngine::start(script, LIMITS.queued);
        server.publish(engine);
        Self { engine: shared, ..server }
    }

    /// The model is not there yet.
    pub fn loading(key: Option<ApiKey>) -> Self {
        let app = Arc::new(App::new("m".to_owned(), 7, LIMITS, Metrics::new("m").unwrap()));
        Self { router: router(Arc::clone(&app), key), app, engine: Arc::default() }
    }

    pub fn publish(&self, engine: Arc<ScriptedEngine>) {
        let engine: Arc<dyn Engine> = engine;
        let metrics = self.app.metrics.attach(&engine, Reason::Requested, Duration::from_secs(2)).unwrap();
        let model = Model {
            engine,
            tokenizer: Some(tokenizer::bytes()),
            template: Some(ChatTemplate::new(TEMPLATE, "", "").unwrap()),
            grammars: OnceLock::new(),
            eos_token_ids: vec![EOS],
            metrics,
        };
        self.app.set_phase(Phase::Ready(Arc::new(model)));
    }

    /// Sends a request and returns the response with its body still to come.
    pub async fn open(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.open(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    pub async fn complete(&self, fields: Value) -> Answer {
        self.send(completion(fields)).await
    }

    pub async fn chat(&self, fields: Value) -> Answer {
        self.send(chat(fields)).await
    }

    pub fn metrics(&self) -> String {
        TextEncoder::new().encode_to_string(&self.app.metrics.registry().gather()).unwrap()
    }
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    /// The payloads of a stream that ended with `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let events = self.body.strip_suffix("data: [DONE]\n\n").expect("the stream ends with [DONE]");
        events
            .split_terminator("\n\n")
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
            .collect()
    }

    /// All text of choice `index` of a completion stream.
    pub fn text(&self, index: u64) -> String {
        let choices = self.events().into_iter().filter_map(|event| event["choices"].get(0).cloned());
        choices
            .filter(|choice| choice["index"] == index)
            .filter_map(|choice| choice["text"].as_str().map(str::to_owned))
            .collect()
    }
}

pub fn completion(fields: Value) -> Request<Body> {
    post("/v1/completions", merge(json!({"model": "m", "prompt": "p"}), fields))
}

pub fn chat(fields: Value) -> Request<Body> {
    post(
        "/v1/chat/completions",
        merge(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}), fields),
    )
}

pub fn post(path: &str, body: Value) -> Request<Body> {
    Request::post(path).body(Body::from(body.to_string())).unwrap()
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

fn merge(mut body: Value, fields: Value) -> Value {
    if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
        body.extend(fields);
    }
    body
}

/// Waits for something the engine's thread does.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not happen in 10 s");
}
