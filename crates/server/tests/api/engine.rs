//! An engine that says what it was told to, as fast as it is allowed to.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use gqla_engine::{
    Constraint, Engine, EngineInfo, EngineStats, Event, Finish, RankInfo, Request, SamplingParams,
    SpeculationStats, SubmitError, TokenLogprob, TokenMask,
};
use gqla_model::DecodePath;

/// Runs one sequence at a time; every answer is the script, token by token, then the end-of-sequence token.
pub struct ScriptedEngine {
    info: EngineInfo,
    queue: mpsc::Sender<Request>,
    queue_limit: usize,
    shared: Arc<Shared>,
}

/// What tests look at and turn.
#[derive(Default)]
pub struct Shared {
    pub waiting: AtomicUsize,
    pub running: AtomicUsize,
    pub delivered: AtomicUsize,
    pub cancelled: AtomicUsize,
    /// Sequences wait before their first token while this is set.
    pub hold: AtomicBool,
    /// Why the engine failed.
    pub failure: Mutex<Option<String>>,
    /// How the last request was to be drawn, its priority and its salt.
    pub last: Mutex<Option<(SamplingParams, i32, String)>>,
    stopping: AtomicBool,
}

/// Ends every script.
pub const EOS: u32 = 256;
/// Makes the engine fail in mid-answer.
pub const FAIL: u32 = 257;
const VOCABULARY: usize = 258;
pub const CONTEXT: usize = 64;
const BLOCK: usize = 16;

impl ScriptedEngine {
    pub fn start(script: Vec<u32>, queue_limit: usize) -> (Arc<Self>, Arc<Shared>) {
        let (queue, requests) = mpsc::channel::<Request>();
        let shared = Arc::new(Shared::default());
        let worker = Arc::clone(&shared);
        std::thread::spawn(move || {
            for request in requests {
                worker.waiting.fetch_sub(1, Ordering::SeqCst);
                worker.running.store(1, Ordering::SeqCst);
                worker.answer(request, &script);
                worker.running.store(0, Ordering::SeqCst);
            }
        });
        let info = EngineInfo {
            path: Some(DecodePath::MqaAbsorb),
            tensor_parallel: 1,
            multi_token_prediction: 2,
            context_length: CONTEXT,
            block_size: BLOCK,
            num_blocks: 8,
            kv_elements_per_token_layer: 10,
            kv_bytes_per_token: 20,
            ranks: vec![RankInfo { weight_bytes: 30, kv_bytes_per_token: 20 }],
            vocab_size: VOCABULARY,
            instruction_sets: vec!["none"],
        };
        (Arc::new(Self { info, queue, queue_limit, shared: Arc::clone(&shared) }), shared)
    }
}

impl Shared {
    fn answer(&self, mut request: Request, script: &[u32]) {
        let asked = (request.sampling.clone(), request.priority, request.cache_salt.clone());
        *self.last.lock().unwrap() = Some(asked);
        while self.hold.load(Ordering::SeqCst) && !self.stopping.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let finish = if request.cancel.is_cancelled() {
            self.cancelled.fetch_add(1, Ordering::SeqCst);
            Finish::Aborted
        } else {
            self.tokens(&mut request, script)
        };
        let _ = (request.sink)(Event::Finished(finish));
    }

    fn tokens(&self, request: &mut Request, script: &[u32]) -> Finish {
        let endless = std::iter::once(EOS).cycle();
        let sampling = &request.sampling;
        let (mut constraint, mut complete) = (request.constraint.take(), false);
        for (id, _) in script.iter().copied().chain(endless).zip(0..sampling.max_tokens) {
            let id = match &mut constraint {
                Some(_) if complete => return Finish::Stop,
                Some(constraint) => {
                    let id = nearest(constraint.as_mut(), id);
                    complete = constraint.accept(id).unwrap();
                    id
                }
                None => id,
            };
            if self.stopping.load(Ordering::SeqCst) {
                return Finish::Aborted;
            }
            if id == FAIL {
                return Finish::Error("the script says so".to_owned());
            }
            if sampling.stop_token_ids.contains(&id) {
                return Finish::Stop;
            }
            let top =
                |count: u32| (0..count).map(|rank| (u32::from(b'a') + rank, -1.0 - rank as f32)).collect();
            let logprob = sampling.logprobs.map(|count| TokenLogprob { logprob: -0.5, top: top(count) });
            self.delivered.fetch_add(1, Ordering::SeqCst);
            if (request.sink)(Event::Token { id, logprob }) == ControlFlow::Break(()) {
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                return Finish::Aborted;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Finish::Length
    }
}

/// The script's token where it is allowed, else the largest allowed id, which is no white space if it can be avoided.
fn nearest(constraint: &mut dyn Constraint, wanted: u32) -> u32 {
    let mut allowed = TokenMask::all(VOCABULARY);
    constraint.forbid(&mut allowed).unwrap();
    let mut ids = std::iter::once(wanted).chain((0..VOCABULARY as u32).rev());
    ids.find(|id| allowed.allows(*id as usize)).unwrap()
}

impl Engine for ScriptedEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&self, request: Request) -> Result<(), SubmitError> {
        let (prompt, max_tokens) = (request.prompt.len(), request.sampling.max_tokens as usize);
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(SubmitError::ShuttingDown);
        }
        if self.failure().is_some() {
            return Err(SubmitError::Dead);
        }
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if prompt + max_tokens > CONTEXT {
            return Err(SubmitError::TooLong { prompt, max_tokens, context: CONTEXT });
        }
        if let Some(position) = request.prompt.iter().position(|&id| id as usize >= VOCABULARY) {
            let id = request.prompt[position];
            return Err(SubmitError::UnknownToken { id, position, vocab_size: VOCABULARY });
        }
        if self.shared.waiting.load(Ordering::SeqCst) >= self.queue_limit {
            return Err(SubmitError::QueueFull { limit: self.queue_limit });
        }
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        self.queue.send(request).map_err(|_| SubmitError::ShuttingDown)
    }

    fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap().clone()
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.shared.running.load(Ordering::SeqCst),
            waiting: self.shared.waiting.load(Ordering::SeqCst),
            blocks_used: 2,
            preemptions: 3,
            prefix_queries: 128,
            prefix_hits: 64,
            speculation: SpeculationStats {
                drafts: 5,
                draft_tokens: 9,
                accepted_tokens: 6,
                accepted_per_position: std::array::from_fn(|position| [4, 2, 0][position.min(2)]),
            },
            ..EngineStats::default()
        }
    }

    fn shutdown(&self, deadline: Duration) {
        std::thread::sleep(deadline);
        self.shared.stopping.store(true, Ordering::SeqCst);
    }
}
