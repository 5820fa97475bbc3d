//! What a launch did and what was wrong with it.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// What happened during a launch. Everything is counted, nothing is timed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Totals over all blocks.
    pub counters: Counters,
    /// Traffic of every allocation that was touched, by its address.
    pub buffers: BTreeMap<u64, Traffic>,
    /// What a correct kernel does not do.
    pub faults: Faults,
}

/// Counts over all blocks of a launch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counters {
    pub blocks: u64,
    pub warp_instructions: u64,
    pub thread_instructions: u64,
    /// m16n8k16 multiplications, each by a whole warp.
    pub mma: u64,
    pub ldmatrix: u64,
    pub shuffles: u64,
    pub votes: u64,
    /// Barriers that a whole block passed.
    pub barriers: u64,
    pub atomics: u64,
    /// Loads from global memory, `cp.async` included.
    pub global_loads: Requests,
    pub global_stores: Requests,
    /// Bytes of loads and stores to local memory, which PTX has for indexed arrays; spills are ptxas's and not counted.
    pub local_bytes: u64,
    /// Bytes that threads read of shared memory, `ldmatrix` included.
    pub shared_bytes_read: u64,
    /// Bytes that threads wrote to shared memory, `cp.async` included, and those that atomics change.
    pub shared_bytes_written: u64,
    /// Loads from and stores to shared memory.
    pub shared: Wavefronts,
    pub ldmatrix_shared: Wavefronts,
    pub cp_async_shared: Wavefronts,
}

/// Requests of warps to global memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Instructions of a warp.
    pub requests: u64,
    /// Bytes that threads asked for.
    pub bytes: u64,
    /// Sectors of 32 bytes that the requests touched, each counted once per request.
    pub sectors: u64,
}

/// Passes through the banks of shared memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Wavefronts {
    /// Passes that were needed: more than one word of a bank makes more than one.
    pub actual: u64,
    /// Passes without any conflict.
    pub ideal: u64,
}

/// Bytes that threads asked for in one allocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Size of the allocation.
    pub size: u64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// What a thread did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum FaultKind {
    /// A read outside of every allocation.
    GlobalOutOfBoundsRead,
    /// A write outside of every allocation.
    GlobalOutOfBoundsWrite,
    /// A read of global memory that nobody wrote.
    GlobalUninitialised,
    /// An access beyond the block's shared memory.
    SharedOutOfBounds,
    /// A read of shared memory that nobody wrote.
    SharedUninitialised,
    /// A read of what another thread wrote, with no barrier between.
    SharedReadAfterWrite,
    /// A write over what another thread wrote, with no barrier between.
    SharedWriteAfterWrite,
    /// A write over what another thread read, with no barrier between.
    SharedWriteAfterRead,
    /// An access to where a `cp.async` has not arrived yet.
    SharedInFlight,
    /// An access beyond a thread's local memory or the parameters.
    OutOfBounds,
    /// A store to the parameters.
    ReadOnly,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// An instruction for a whole warp, or the lanes it names, that some of them never reached.
    DivergentCollective,
    /// `trap`.
    Trap,
    /// The launch ran longer than it may, most likely for ever.
    Endless,
}

/// One fault, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What it is.
    pub kind: FaultKind,
    /// Line in the PTX.
    pub line: u32,
    /// The instruction.
    pub instruction: String,
    /// The block, x, y, z.
    pub block: [u32; 3],
    /// The thread in its block, counted along x, then y, then z.
    pub thread: u32,
    /// Addresses and sizes.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, line, instruction, block, thread, detail } = self;
        write!(f, "{kind:?} at PTX line {line}, block {block:?}, thread {thread}: {detail}; `{instruction}`")
    }
}

/// Faults kept whole of each kind.
const KEPT: u64 = 4;

/// All faults by number, and the first of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// How many of each kind.
    pub counts: BTreeMap<FaultKind, u64>,
    /// The first few of each kind.
    pub first: Vec<Fault>,
}

impl Faults {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many there are of `kind`.
    pub fn count(&self, kind: FaultKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Counts one; `fault` is only asked for when it is kept.
    pub(crate) fn add(&mut self, kind: FaultKind, fault: impl FnOnce() -> Fault) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= KEPT {
            self.first.push(fault());
        }
    }
}
