//! What the engine calls for every event of a sequence.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use gqla_engine::{Event, Finish, TokenLogprob};
use gqla_protocol::FinishReason;
use tokio::sync::mpsc::UnboundedSender;

use super::Update;
use crate::{metrics::SequenceMetrics, stream::TextStream};

/// Turns events into updates and counts what is billed. Dropped in mid-answer, it counts as an error; dropped before
/// its first token it was refused, and does not count.
pub(super) struct SequenceSink {
    index: usize,
    text: TextStream,
    updates: UnboundedSender<Result<Update, String>>,
    metrics: SequenceMetrics,
    /// Prompt tokens still to bill, with the first token or at the end of an answer without any; 0 for further samples of the same prompt.
    billed_prompt: usize,
    submitted: Instant,
    tokens: u64,
    first: Option<Instant>,
    last: Instant,
    ended: bool,
}

impl SequenceSink {
    pub(super) fn new(
        index: usize,
        text: TextStream,
        updates: UnboundedSender<Result<Update, String>>,
        metrics: SequenceMetrics,
        billed_prompt: usize,
    ) -> Self {
        let now = Instant::now();
        Self {
            index,
            text,
            updates,
            metrics,
            billed_prompt,
            submitted: now,
            tokens: 0,
            first: None,
            last: now,
            ended: false,
        }
    }

    pub(super) fn on_event(&mut self, event: Event) -> ControlFlow<()> {
        if self.ended {
            return ControlFlow::Break(());
        }
        if self.updates.is_closed() {
            self.end("abort");
            return ControlFlow::Break(());
        }
        match event {
            Event::Token { id, logprob } => self.on_token(id, logprob),
            Event::Finished(finish) => {
                self.on_finished(finish);
                ControlFlow::Break(())
            }
        }
    }

    fn on_token(&mut self, id: u32, logprob: Option<TokenLogprob>) -> ControlFlow<()> {
        self.count();
        let piece = self.text.push(id, logprob);
        let stopped = self.text.stopped();
        // Counted before it is told, so that a client that has its answer finds itself in the metrics.
        if stopped {
            self.end(FinishReason::Stop.as_str());
        }
        if let Some(piece) = piece {
            let finish = stopped.then_some(FinishReason::Stop);
            let _ = self.updates.send(Ok(Update { index: self.index, piece, finish }));
        }
        if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn on_finished(&mut self, finish: Finish) {
        if matches!(finish, Finish::Stop | Finish::Length) {
            self.bill_prompt();
        }
        let reason = match finish {
            Finish::Stop => FinishReason::Stop,
            Finish::Length => FinishReason::Length,
            Finish::Aborted => FinishReason::Abort,
            Finish::Error(reason) => {
                self.end("error");
                let _ = self.updates.send(Err(reason));
                return;
            }
        };
        self.end(reason.as_str());
        let piece = self.text.finish();
        let _ = self.updates.send(Ok(Update { index: self.index, piece, finish: Some(reason) }));
    }

    fn count(&mut self) {
        let now = Instant::now();
        match self.first {
            None => {
                self.first = Some(now);
                self.bill_prompt();
                self.metrics.first_token(now - self.submitted);
            }
            Some(_) => self.metrics.next_token(now - self.last),
        }
        self.tokens += 1;
        self.last = now;
    }

    fn bill_prompt(&mut self) {
        self.metrics.billed_prompt(std::mem::take(&mut self.billed_prompt));
    }

    fn end(&mut self, reason: &str) {
        self.ended = true;
        let decode: Option<Duration> = self.first.map(|first| self.last - first);
        self.metrics.finished(reason, self.tokens, self.submitted.elapsed(), decode);
    }
}

impl Drop for SequenceSink {
    fn drop(&mut self) {
        if !self.ended && self.first.is_some() {
            self.end(if self.updates.is_closed() { "abort" } else { "error" });
        }
    }
}
