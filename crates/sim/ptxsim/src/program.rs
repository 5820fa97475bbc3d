//! What a PTX text becomes: typed instructions whose operands are resolved.

use std::collections::BTreeMap;

use crate::{
    alu::Conversion,
    types::{Space, Type},
};

/// The kernels of one PTX text.
#[derive(Debug)]
pub struct Module {
    /// PTX ISA version, `.version` 8.8 is (8, 8).
    pub version: (u32, u32),
    /// Virtual architecture, as in `.target sm_80`.
    pub target: String,
    pub(crate) kernels: BTreeMap<String, Kernel>,
}

impl Module {
    /// The kernel called `name`.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels, by name.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }
}

/// One `.entry`.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// Bytes of shared memory that the kernel declares itself.
    pub static_shared: u32,
    /// Where the shared memory begins that a launch adds.
    pub(crate) dynamic_offset: u32,
    /// Bytes of local memory of a thread.
    pub local_bytes: u32,
    /// Threads of a block at most, from `.maxntid`.
    pub max_threads: Option<u32>,
    /// Virtual registers; the machine's own are only known to ptxas.
    pub(crate) registers: u32,
    pub(crate) code: Vec<Instruction>,
}

impl Kernel {
    /// Bytes that all parameters take.
    pub fn param_bytes(&self) -> u32 {
        self.params.last().map_or(0, |last| last.offset + last.bytes)
    }

    /// Instructions in the text.
    pub fn instructions(&self) -> usize {
        self.code.len()
    }
}

/// One parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Where it begins in the parameters.
    pub offset: u32,
    /// Its size.
    pub bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub index: u32,
    pub ty: Type,
}

/// Numbers that every thread can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
    Warp,
    DynamicShared,
    /// Address of the shared memory that the launch adds, known once all of the kernel is read.
    DynamicOffset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Register(Register),
    /// A negated predicate.
    Not(Register),
    Immediate(u64),
    Special(Special),
}

/// A function of each lane's own operands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LaneFn {
    One(fn(u64) -> u64),
    Two(fn(u64, u64) -> u64),
    Three(fn(u64, u64, u64) -> u64),
    Four(fn(u64, u64, u64, u64) -> u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// `flush` is `.ftz`: subnormal inputs and results count as zero.
    Lane {
        f: LaneFn,
        flush: bool,
    },
    Convert(Conversion),
    /// Joins sources of so many bits each.
    Pack(u32),
    /// Splits into destinations of so many bits each.
    Unpack(u32),
    Compare {
        f: fn(u64, u64) -> bool,
        combine: Option<fn(bool, bool) -> bool>,
    },
    Load(Space, Type),
    Store(Space, Type),
    /// The new value from the old one and the operands.
    Atomic {
        f: LaneFn,
        space: Space,
        ty: Type,
    },
    Branch(usize),
    Exit,
    Trap,
    /// `__syncthreads`.
    Barrier,
    /// `__syncwarp`.
    SyncWarp,
    Shuffle(ShuffleMode),
    Vote(VoteMode),
    /// Folds the lanes' values, for `redux.sync`.
    Reduce(fn(u64, u64) -> u64),
    ActiveMask,
    LoadMatrix {
        matrices: usize,
        transposed: bool,
    },
    /// m16n8k16, bf16 inputs, f32 accumulators.
    Mma,
    /// `cp.async` of so many bytes.
    CopyAsync(u32),
    CommitGroup,
    /// Waits until at most so many groups are in flight.
    WaitGroup(u32),
    WaitAll,
    /// Orders memory between blocks; blocks run one after another here.
    Fence,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    pub register: Register,
    pub negated: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub guard: Option<Guard>,
    pub op: Op,
    /// `None` where the text has the sink `_`.
    pub to: Vec<Option<Register>>,
    pub from: Vec<Operand>,
    /// Added to the address in the first source.
    pub offset: u64,
    pub line: u32,
    pub text: String,
}
