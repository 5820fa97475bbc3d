//! The tensor-parallel ranks of a model, which step together.
//!
//! The first rank steps on the engine's thread, every other on a thread of its own with its own [`Pool`]. There is one
//! scheduler and one block table: each rank is told of every copy, expansion, step and draft in the same order, and keeps its
//! part of the cache under the same block numbers. Nobody reports back, since a step's exchanges end for the first
//! rank with whatever went wrong on any.

#[cfg(test)]
mod draft_tests;
#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use gqla_kernels::{
    Pool,
    attention::{CacheFormat, Segment},
    sample::{Choice, Draw, NoToken, choose_rows},
};
use gqla_model::DecodePath;
use gqla_weights::Checkpoint;

use super::{
    CommError, CpuEngineConfig, LoadError, LogitsError, Model,
    comm::{Alone, Comm, SharedMemory},
    forward::Workspace,
    shard::{Rank, Shard},
};
use crate::{
    DraftSource,
    blocks::BlockCopy,
    runner::{StepModel, message_of},
};

/// How long a rank that has nothing to wait for may take to end before it is left behind.
const FAREWELL: Duration = Duration::from_secs(1);

/// A rank's part of a model.
pub(super) struct Part {
    pub model: Model,
    /// Bytes of the checkpoint that it holds.
    pub weight_bytes: u64,
}

/// Loads the parts of all ranks side by side. `threads` are shared out; every rank has one at least.
pub(super) fn load(checkpoint: &Checkpoint, config: &CpuEngineConfig) -> Result<Vec<Part>, LoadError> {
    let CpuEngineConfig { path, precision, threads, expandable, tensor_parallel: world, .. } = *config;
    let source = config.speculation.map(|speculation| speculation.source());
    let all = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let part = |rank| {
        let shard = match world {
            1 => Shard::whole(checkpoint),
            _ => Shard::new(checkpoint, path.unwrap_or(DecodePath::Gqa), Rank { rank, world })?,
        };
        let own = Rank { rank, world }.share(all).len();
        let mut model = Model::load_shard(&shard, path, precision, Pool::new(Some(own))?)?;
        if source == Some(DraftSource::PredictionLayer) {
            model.make_rank_drafting(&shard, precision)?;
        }
        let weight_bytes = shard.bytes_read();
        if expandable {
            model.make_expandable(&shard, precision)?;
        }
        Ok(Part { model, weight_bytes })
    };
    thread::scope(|scope| {
        let part = &part;
        let ranks: Vec<_> = (0..world).map(|rank| scope.spawn(move || part(rank))).collect();
        let join = |rank: thread::ScopedJoinHandle<'_, _>| {
            rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        ranks.into_iter().map(join).collect()
    })
}

/// The ends of a group for `world` ranks.
pub(super) fn comms(world: usize, limit: Duration) -> Vec<Box<dyn Comm>> {
    let boxed = |comm| Box::new(comm) as Box<dyn Comm>;
    match world {
        1 => vec![Box::new(Alone)],
        _ => SharedMemory::group(world, limit).into_iter().map(boxed).collect(),
    }
}

/// All ranks of a model with their caches.
pub(super) struct Ranks {
    first: Stepping,
    others: Vec<Other>,
    /// Disconnected once all other ranks have ended.
    alive: Receiver<Infallible>,
}

struct Other {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

/// A rank's part and its buffers.
struct Stepping {
    model: Model,
    workspace: Workspace,
}

/// What a rank is told to do.
#[derive(Clone)]
enum Order {
    Copy(Arc<[BlockCopy]>),
    Expand(Arc<[u32]>),
    Step(Arc<Step>),
    /// The tokens are those that follow these rows.
    Draft(Arc<[usize]>, Arc<Step>),
}

/// The input of a step or of the prediction layer, for threads to keep.
struct Step {
    tokens: Vec<u32>,
    /// Segments without their blocks, and these.
    segments: Vec<(Segment<'static>, Vec<u32>)>,
    wanted: Vec<usize>,
}

impl Ranks {
    /// Gives every part a cache of `blocks` blocks and starts the ranks; there is one of `comms` for each part.
    pub fn start(
        parts: Vec<Model>,
        comms: Vec<Box<dyn Comm>>,
        blocks: usize,
        format: CacheFormat,
    ) -> Result<Self, LoadError> {
        let (life, alive) = channel();
        let mut ranks = parts.into_iter().zip(comms).map(|(model, comm)| {
            let workspace = Workspace::of_rank(&model, blocks, format, comm);
            Stepping { model, workspace }
        });
        let first = ranks.next().ok_or(LoadError::Zero { field: "tensor_parallel" })?;
        let others = ranks.map(|rank| Other::start(rank, life.clone())).collect::<Result<_, _>>()?;
        Ok(Self { first, others, alive })
    }

    /// Tells the other ranks. One that is gone has ended the group, so that the next step says why.
    fn order(&self, order: impl FnOnce() -> Order) {
        if self.others.is_empty() {
            return;
        }
        let order = order();
        for other in &self.others {
            let _ = other.orders.send(order.clone());
        }
    }
}

impl StepModel for Ranks {
    fn copy(&mut self, copies: &[BlockCopy]) {
        if !copies.is_empty() {
            self.order(|| Order::Copy(copies.into()));
        }
        self.first.workspace.copy(copies);
    }

    fn expand(&mut self, blocks: &[u32]) {
        self.order(|| Order::Expand(blocks.into()));
        self.first.model.expand(&mut self.first.workspace, blocks);
    }

    fn step(&mut self, tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Result<(), String> {
        self.order(|| Order::Step(Arc::new(Step::of(tokens, segments, wanted))));
        let Stepping { model, workspace } = &mut self.first;
        model.forward(workspace, tokens, segments, wanted).map(drop).map_err(|error| error.to_string())
    }

    fn choose(&mut self, draws: &[Draw]) -> Result<Vec<Result<Choice, NoToken>>, String> {
        let Stepping { model, workspace } = &self.first;
        Ok(choose_rows(workspace.logits(), model.vocab_size(), draws))
    }

    fn draft(
        &mut self,
        rows: &[usize],
        next: &[u32],
        segments: &[Segment<'_>],
        wanted: &[usize],
    ) -> Result<(), String> {
        self.order(|| Order::Draft(rows.into(), Arc::new(Step::of(next, segments, wanted))));
        let Stepping { model, workspace } = &mut self.first;
        let logits =
            model.draft(workspace, rows, next, segments, wanted).map_err(|error| error.to_string())?;
        logits.map(drop).ok_or_else(|| LogitsError::NoDraftLayer.to_string())
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // Whoever waits in an exchange that the first rank left, by a panic perhaps, stops waiting.
        self.first.workspace.comm.fail("it was stopped");
        let threads: Vec<_> = self.others.drain(..).map(|other| other.thread).collect();
        if self.alive.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("a tensor-parallel rank hangs and is left behind");
        }
        for thread in threads.into_iter().filter(|thread| thread.is_finished()) {
            // Panics were caught in the thread.
            let _ = thread.join();
        }
    }
}

impl Other {
    fn start(mut rank: Stepping, life: Sender<Infallible>) -> std::io::Result<Self> {
        let (orders, received) = channel();
        let name = format!("rank-{}", rank.workspace.comm.rank());
        let body = move || {
            rank.obey(&received);
            drop(rank);
            drop(life);
        };
        Ok(Self { orders, thread: thread::Builder::new().name(name).spawn(body)? })
    }
}

impl Stepping {
    /// Does as told until told no more, or the group has ended.
    fn obey(&mut self, orders: &Receiver<Order>) {
        for order in orders {
            match catch_unwind(AssertUnwindSafe(|| self.carry_out(&order))) {
                Ok(Ok(())) => {}
                // The first rank has the same error and tells it.
                Ok(Err(_)) => return,
                Err(panic) => return self.workspace.comm.fail(&message_of(panic.as_ref())),
            }
        }
    }

    fn carry_out(&mut self, order: &Order) -> Result<(), CommError> {
        match order {
            Order::Copy(copies) => self.workspace.copy(copies),
            Order::Expand(blocks) => self.model.expand(&mut self.workspace, blocks),
            Order::Step(step) => {
                self.model.forward(&mut self.workspace, &step.tokens, &step.segments(), &step.wanted)?;
            }
            Order::Draft(rows, step) => {
                self.model.draft(&mut self.workspace, rows, &step.tokens, &step.segments(), &step.wanted)?;
            }
        }
        Ok(())
    }
}

impl Step {
    fn of(tokens: &[u32], segments: &[Segment<'_>], wanted: &[usize]) -> Self {
        let owned = |segment: &Segment<'_>| {
            let Segment { first_row, rows, start, blocks } = *segment;
            (Segment { first_row, rows, start, blocks: &[] }, blocks.to_vec())
        };
        Self {
            tokens: tokens.to_vec(),
            segments: segments.iter().map(owned).collect(),
            wanted: wanted.to_vec(),
        }
    }

    fn segments(&self) -> Vec<Segment<'_>> {
        self.segments.iter().map(|(segment, blocks)| Segment { blocks, ..*segment }).collect()
    }
}
