//! What the two completion routes have in common: letting a request in, and writing its answer.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures::stream;
use gqla_protocol::{
    ApiError, Choice, DONE, Dialect, FinishReason, PING, Reply, ScoredToken, Streaming, Usage,
};
use http_body_util::BodyExt as _;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::{
    body,
    generate::{Generation, Job, Update},
    state::{App, Model},
};

/// Silence after which a stream gets a comment; proxies commonly close at 30 or 60 s.
const PING_EVERY: Duration = Duration::from_secs(10);

/// An answer to be given.
pub(super) struct Answer {
    pub(super) job: Job,
    pub(super) dialect: Dialect,
    pub(super) streaming: Streaming,
}

/// Admits a request and reads its body.
pub(super) async fn receive(
    app: &App,
    request: Request,
) -> Result<(Arc<Model>, TaskTrackerToken, Bytes), ApiError> {
    let (model, token) = app.admit()?;
    let _place = app.place_for_body()?;
    let (parts, content) = request.into_parts();
    let content = body::read(&parts.headers, content, app.limits.body_bytes).await?;
    Ok((model, token, content))
}

/// Generates and writes the answer. `token` lives until the last byte.
pub(super) async fn respond(
    app: &App,
    model: &Model,
    token: TaskTrackerToken,
    answer: Answer,
) -> Result<Response, ApiError> {
    let Answer { job, dialect, streaming } = answer;
    let logprobs = job.logprobs.is_some();
    let prefix = match dialect {
        Dialect::Completion => "cmpl",
        Dialect::Chat => "chatcmpl",
    };
    let reply = Reply {
        dialect,
        id: format!("{prefix}-{:032x}", rand::random::<u128>()),
        created: crate::state::unix_seconds(),
        model: app.served_name.clone(),
        include_usage: streaming == Streaming::On { include_usage: true },
    };
    let generation = Generation::start(app, model, job)?;
    match streaming {
        Streaming::Off => whole(reply, generation, logprobs, token).await,
        Streaming::On { .. } => {
            Ok(events(EventStream::new(reply, generation, logprobs, token).after_first_update().await?))
        }
    }
}

async fn whole(
    reply: Reply,
    mut generation: Generation,
    logprobs: bool,
    token: TaskTrackerToken,
) -> Result<Response, ApiError> {
    let empty = |index| Choice {
        index,
        text: String::new(),
        logprobs: logprobs.then(Vec::new),
        finish_reason: FinishReason::Abort,
    };
    let mut choices: Vec<Choice> = (0..generation.choices).map(empty).collect();
    while let Some(update) = generation.next().await {
        let Update { index, piece, finish } = update?;
        let choice = &mut choices[index];
        choice.text.push_str(&piece.text);
        if let Some(scored) = &mut choice.logprobs {
            scored.extend(piece.scored);
        }
        choice.finish_reason = finish.unwrap_or(choice.finish_reason);
    }
    let text = reply.whole(&choices, usage(&generation))?;
    let response = ([(CONTENT_TYPE, "application/json"), (CONTENT_LENGTH, &text.len().to_string())], text);
    // The body takes the token along: the request ends when its last byte is handed to the connection.
    Ok(response.into_response().map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &token;
            frame
        }))
    }))
}

fn usage(generation: &Generation) -> Usage {
    Usage::new(generation.prompt_tokens, generation.completion_tokens)
}

/// A stream of server-sent events under way.
struct EventStream {
    reply: Reply,
    generation: Generation,
    logprobs: bool,
    opened: Vec<bool>,
    ready: VecDeque<String>,
    done: bool,
    _token: TaskTrackerToken,
}

impl EventStream {
    fn new(reply: Reply, generation: Generation, logprobs: bool, token: TaskTrackerToken) -> Self {
        let opened = vec![false; generation.choices];
        Self { reply, generation, logprobs, opened, ready: VecDeque::new(), done: false, _token: token }
    }

    /// Waits for the first news, so that a failure before the first token still has an HTTP status of its own. When it
    /// takes long, the answer begins with a ping instead.
    async fn after_first_update(mut self) -> Result<Self, ApiError> {
        match tokio::time::timeout(PING_EVERY, self.generation.next()).await {
            Ok(Some(Err(error))) => return Err(error),
            Ok(Some(Ok(update))) => self.write(update),
            Ok(None) => {}
            Err(_) => self.ready.push_back(PING.to_owned()),
        }
        Ok(self)
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.done {
                return None;
            }
            match tokio::time::timeout(PING_EVERY, self.generation.next()).await {
                Ok(Some(Ok(update))) => self.write(update),
                Ok(Some(Err(error))) => self.end(Some(error.event()), None),
                Ok(None) => self.end(self.reply.usage(usage(&self.generation)), Some(DONE)),
                Err(_) => self.ready.push_back(PING.to_owned()),
            }
        }
    }

    fn write(&mut self, update: Update) {
        let Update { index, piece, finish } = update;
        if !std::mem::replace(&mut self.opened[index], true) {
            self.ready.extend(self.reply.opening(index));
        }
        let scored: Option<&[ScoredToken]> = self.logprobs.then_some(&piece.scored);
        if !piece.text.is_empty() || scored.is_some_and(|scored| !scored.is_empty()) {
            self.ready.push_back(self.reply.delta(index, &piece.text, scored));
        }
        self.ready.extend(finish.map(|reason| self.reply.closing(index, reason)));
    }

    fn end(&mut self, last: Option<String>, done: Option<&str>) {
        self.done = true;
        self.ready.extend(last);
        self.ready.extend(done.map(str::to_owned));
    }
}

fn events(events: EventStream) -> Response {
    let chunks = stream::unfold(events, |mut events| async move {
        events.next().await.map(|event| (Ok::<_, Infallible>(event), events))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    // nginx buffers answers unless told not to.
    (headers, [("x-accel-buffering", "no")], Body::from_stream(chunks)).into_response()
}
