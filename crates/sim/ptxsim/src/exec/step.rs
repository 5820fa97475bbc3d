//! One instruction of one group of lanes.

use super::{
    block::Block,
    warp::{Group, Warp, each},
};
use crate::{
    alu::flushed,
    matrix::{self, Lanes},
    program::{Instruction, LaneFn, Op, ShuffleMode, VoteMode},
    report::FaultKind,
};

impl Block<'_> {
    pub(super) fn step(&mut self, warp: usize, group: Group, instruction: &Instruction) {
        let lanes = self.guarded(warp, group.lanes, instruction);
        self.advance(warp, group, lanes, instruction);
        if lanes == 0 {
            return;
        }
        let counters = &mut self.report.counters;
        counters.warp_instructions += 1;
        counters.thread_instructions += u64::from(lanes.count_ones());
        match instruction.op {
            Op::Lane { f, flush } => self.lane(warp, lanes, instruction, f, flush),
            Op::Convert(conversion) => {
                let x = self.value(warp, instruction.from[0]);
                self.set(warp, instruction, 0, lanes, |lane| conversion.apply(x[lane]));
            }
            Op::Pack(bits) => self.pack(warp, lanes, instruction, bits),
            Op::Unpack(bits) => {
                let x = self.value(warp, instruction.from[0]);
                for part in 0..instruction.to.len() {
                    self.set(warp, instruction, part, lanes, |lane| x[lane] >> (part as u32 * bits));
                }
            }
            Op::Compare { f, combine } => self.compare(warp, lanes, instruction, f, combine),
            Op::Load(space, ty) => self.load(warp, lanes, instruction, space, ty),
            Op::Store(space, ty) => self.store(warp, lanes, instruction, space, ty),
            Op::Atomic { f, space, ty } => self.atomic(warp, lanes, instruction, f, space, ty),
            Op::CopyAsync(bytes) => self.copy_async(warp, lanes, instruction, bytes),
            Op::CommitGroup => each(lanes).for_each(|lane| self.warps[warp].copies[lane].commit()),
            Op::WaitGroup(left) => self.wait(warp, lanes, left as usize),
            Op::WaitAll => {
                each(lanes).for_each(|lane| self.warps[warp].copies[lane].commit());
                self.wait(warp, lanes, 0);
            }
            Op::LoadMatrix { matrices, transposed } => {
                self.load_matrices(warp, lanes, instruction, matrices, transposed)
            }
            Op::Mma => self.mma(warp, lanes, instruction),
            Op::Shuffle(mode) => self.shuffle(warp, lanes, instruction, mode),
            Op::Vote(mode) => self.vote(warp, lanes, instruction, mode),
            Op::Reduce(f) => self.reduce(warp, lanes, instruction, f),
            Op::ActiveMask => self.set(warp, instruction, 0, lanes, |_| lanes.into()),
            Op::SyncWarp => self.warps[warp].barriers += 1,
            Op::Trap => {
                let first = lanes.trailing_zeros() as usize;
                self.fault(FaultKind::Trap, warp, first, instruction, "the kernel gave up".into());
            }
            Op::Branch(_) | Op::Exit | Op::Barrier | Op::Fence => {}
        }
    }

    /// Moves the group on: `lanes` as the instruction says, the others to the next one.
    fn advance(&mut self, warp: usize, group: Group, lanes: u32, instruction: &Instruction) {
        let Warp { groups, parked, .. } = &mut self.warps[warp];
        groups.retain(|other| other.pc != group.pc);
        let next = group.pc + 1;
        match instruction.op {
            Op::Branch(target) => Warp::put(groups, Group { pc: target, lanes }),
            Op::Exit | Op::Trap => {}
            Op::Barrier => Warp::put(parked, Group { pc: next, lanes }),
            _ => Warp::put(groups, Group { pc: next, lanes }),
        }
        Warp::put(groups, Group { pc: next, lanes: group.lanes & !lanes });
    }

    pub(super) fn set(
        &mut self,
        warp: usize,
        instruction: &Instruction,
        index: usize,
        lanes: u32,
        value: impl Fn(usize) -> u64,
    ) {
        self.warps[warp].set(instruction.to[index], lanes, value);
    }

    fn lane(&mut self, warp: usize, lanes: u32, instruction: &Instruction, f: LaneFn, flush: bool) {
        let source = |index: usize| {
            let x = self.value(warp, instruction.from[index]);
            if flush { x.map(flushed) } else { x }
        };
        let result: Lanes = match f {
            LaneFn::One(f) => source(0).map(f),
            LaneFn::Two(f) => {
                let (a, b) = (source(0), source(1));
                std::array::from_fn(|lane| f(a[lane], b[lane]))
            }
            LaneFn::Three(f) => {
                let (a, b, c) = (source(0), source(1), source(2));
                std::array::from_fn(|lane| f(a[lane], b[lane], c[lane]))
            }
            LaneFn::Four(f) => {
                let (a, b, c, d) = (source(0), source(1), source(2), source(3));
                std::array::from_fn(|lane| f(a[lane], b[lane], c[lane], d[lane]))
            }
        };
        let result = if flush { result.map(flushed) } else { result };
        self.set(warp, instruction, 0, lanes, |lane| result[lane]);
    }

    fn pack(&mut self, warp: usize, lanes: u32, instruction: &Instruction, bits: u32) {
        let parts: Vec<Lanes> = instruction.from.iter().map(|part| self.value(warp, *part)).collect();
        let mask = u64::MAX >> (64 - bits);
        let join =
            |lane: usize| parts.iter().rev().fold(0, |all: u64, part| all << bits | (part[lane] & mask));
        self.set(warp, instruction, 0, lanes, join);
    }

    fn compare(
        &mut self,
        warp: usize,
        lanes: u32,
        instruction: &Instruction,
        f: fn(u64, u64) -> bool,
        combine: Option<fn(bool, bool) -> bool>,
    ) {
        let (a, b) = (self.value(warp, instruction.from[0]), self.value(warp, instruction.from[1]));
        let other = combine.map(|combine| (combine, self.value(warp, instruction.from[2])));
        let combined = |lane: usize, result: bool| {
            u64::from(other.map_or(result, |(combine, other)| combine(result, other[lane] != 0)))
        };
        self.set(warp, instruction, 0, lanes, |lane| combined(lane, f(a[lane], b[lane])));
        if instruction.to.len() > 1 {
            self.set(warp, instruction, 1, lanes, |lane| combined(lane, !f(a[lane], b[lane])));
        }
    }

    fn mma(&mut self, warp: usize, lanes: u32, instruction: &Instruction) {
        self.report.counters.mma += 1;
        let source = |index: usize| self.value(warp, instruction.from[index]);
        let d = matrix::mma(
            &std::array::from_fn(source),
            &std::array::from_fn(|v| source(4 + v)),
            &std::array::from_fn(|v| source(6 + v)),
        );
        for (v, register) in d.iter().enumerate() {
            self.set(warp, instruction, v, lanes, |lane| register[lane]);
        }
    }

    /// As the PTX ISA's pseudocode of `shfl.sync`.
    fn shuffle(&mut self, warp: usize, lanes: u32, instruction: &Instruction, mode: ShuffleMode) {
        self.report.counters.shuffles += 1;
        let source = |index: usize| self.value(warp, instruction.from[index]);
        let (a, b, c) = (source(0), source(1), source(2));
        let from = |lane: usize| {
            let (b, clamp, segment) =
                (b[lane] as usize & 31, c[lane] as usize & 31, c[lane] as usize >> 8 & 31);
            let max = (lane & segment) | (clamp & !segment);
            let wanted = match mode {
                ShuffleMode::Up => lane.checked_sub(b).filter(|from| *from >= max),
                ShuffleMode::Down => Some(lane + b).filter(|from| *from <= max),
                ShuffleMode::Butterfly => Some(lane ^ b).filter(|from| *from <= max),
                ShuffleMode::Index => {
                    Some((lane & segment) | (b & !segment & 31)).filter(|from| *from <= max)
                }
            };
            wanted.filter(|from| *from < 32)
        };
        // Another lane's value is only there if that lane executes the instruction too.
        let absent = each(lanes).find(|lane| from(*lane).is_some_and(|from| lanes >> from & 1 == 0));
        if let Some(lane) = absent {
            let detail = format!("lane {lane} asks lane {}, which is not here", from(lane).unwrap_or(lane));
            self.fault(FaultKind::DivergentCollective, warp, lane, instruction, detail);
        }
        self.set(warp, instruction, 0, lanes, |lane| a[from(lane).unwrap_or(lane)]);
        if instruction.to.len() > 1 {
            self.set(warp, instruction, 1, lanes, |lane| from(lane).is_some().into());
        }
    }

    fn vote(&mut self, warp: usize, lanes: u32, instruction: &Instruction, mode: VoteMode) {
        self.report.counters.votes += 1;
        let votes = self.value(warp, instruction.from[0]);
        let ballot = each(lanes).filter(|lane| votes[*lane] != 0).fold(0u32, |all, lane| all | 1 << lane);
        let result = match mode {
            VoteMode::All => (ballot == lanes).into(),
            VoteMode::Any => (ballot != 0).into(),
            VoteMode::Uniform => (ballot == 0 || ballot == lanes).into(),
            VoteMode::Ballot => ballot.into(),
        };
        self.set(warp, instruction, 0, lanes, |_| result);
    }

    fn reduce(&mut self, warp: usize, lanes: u32, instruction: &Instruction, f: fn(u64, u64) -> u64) {
        let x = self.value(warp, instruction.from[0]);
        let result = each(lanes).map(|lane| x[lane]).reduce(f).unwrap_or(0);
        self.set(warp, instruction, 0, lanes, |_| result);
    }
}
