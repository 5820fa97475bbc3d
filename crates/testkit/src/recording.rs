//! An API server in the test's own process: it stores what is applied, refuses what the real one refuses, and keeps a
//! record of every request.
//!
//! Reconcilers are tested against it at the wire, not against traits that mirror their calls: which requests were
//! made, in which order, and how failures of a single one are survived. It knows no schemas, admission or garbage
//! collection; tests of those need [`crate::cluster`].

mod request;
mod store;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};

pub use request::Recorded;
use request::Target;
use store::Store;

#[derive(Default)]
struct State {
    store: Store,
    requests: Vec<Recorded>,
    /// Status codes for the next writes.
    failures: Vec<u16>,
    hang: bool,
}

/// See the [module](self).
#[derive(Clone, Default)]
pub struct RecordingServer(Arc<Mutex<State>>);

impl RecordingServer {
    /// A server without objects.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client of this server.
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn clear(&self) {
        self.state().requests.clear();
    }

    /// Makes the next write fail with this HTTP status.
    pub fn fail_next_write(&self, code: u16) {
        self.state().failures.push(code);
    }

    /// Makes the next request never be answered.
    pub fn hang_next_request(&self) {
        self.state().hang = true;
    }

    /// Names of the objects of one plural, such as `deployments`.
    pub fn names(&self, plural: &str) -> Vec<String> {
        self.state().store.names(plural)
    }

    /// The object at a path such as `/apis/apps/v1/namespaces/n/deployments/d`.
    pub fn get(&self, path: &str) -> Option<Value> {
        self.state().store.get(path).cloned()
    }

    /// Stores an object as another client would have.
    pub fn put(&self, path: &str, object: Value) {
        self.state().store.put(path, object);
    }

    /// Changes an object in place, as a controller that sets a status does.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        if let Some(object) = self.state().store.get_mut(path) {
            change(object);
        }
    }

    async fn answer(&self, request: http::Request<Body>) -> http::Response<Body> {
        if std::mem::take(&mut self.state().hang) {
            std::future::pending::<()>().await;
        }
        let method = request.method().clone();
        let uri = request.uri().clone();
        let merges = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/merge-patch+json");
        let bytes =
            request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let target = Target::new(&uri);
        let mut state = self.state();
        let (code, answer) = match (method.as_str(), state.failures.first().copied()) {
            ("PATCH" | "POST" | "DELETE", Some(code)) => {
                state.failures.remove(0);
                (code, refusal(code, "injected by the test"))
            }
            ("PATCH", None) if merges => state.store.merge(&target, &body),
            (method, _) => state.store.handle(method, &target, &body),
        };
        state.requests.push(Recorded {
            method: method.to_string(),
            path: target.path,
            query: target.query,
            body,
            code,
        });
        response(code, &answer)
    }
}

fn response(code: u16, body: &Value) -> http::Response<Body> {
    let mut response = http::Response::new(Body::from(body.to_string().into_bytes()));
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// A `Status` object.
pub(crate) fn refusal(code: u16, message: &str) -> Value {
    let reason = match code {
        400 => "BadRequest",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        _ => "InternalError",
    };
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

#[cfg(test)]
mod tests;
