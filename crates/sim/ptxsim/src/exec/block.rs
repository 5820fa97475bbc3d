//! One block: its warps' turns, its barriers, and which lanes of a warp go next.

use super::{
    Launch, Schedule,
    warp::{Group, Warp, each},
};
use crate::{
    global::GlobalMemory,
    matrix::Lanes,
    program::{Instruction, Kernel, Op, Operand, Special},
    report::{Fault, FaultKind, Report},
    shared::{Accessor, Shared},
    types::Type,
};

pub(super) struct Block<'a> {
    pub kernel: &'a Kernel,
    pub launch: &'a Launch<'a>,
    pub memory: &'a mut GlobalMemory,
    pub report: &'a mut Report,
    pub shared: Shared,
    pub warps: Vec<Warp>,
    pub id: [u32; 3],
    /// Block barriers passed, from 1.
    pub barriers: u32,
    random: Random,
}

impl<'a> Block<'a> {
    pub fn new(launch: &'a Launch<'a>, memory: &'a mut GlobalMemory, report: &'a mut Report) -> Self {
        let kernel = launch.kernel;
        let threads: u32 = launch.block.iter().product();
        let warp = || Warp::new(kernel.registers, kernel.local_bytes);
        Self {
            kernel,
            launch,
            memory,
            report,
            shared: Shared::new(launch.shared_bytes()),
            warps: (0..threads.div_ceil(32)).map(|_| warp()).collect(),
            id: [0; 3],
            barriers: 1,
            random: Random::new(launch.schedule),
        }
    }

    /// Runs the block `id` to its end; false when the launch has become endless.
    pub fn run(&mut self, id: [u32; 3]) -> bool {
        self.id = id;
        self.barriers = 1;
        self.shared.clear();
        let threads: u32 = self.launch.block.iter().product();
        for (warp, state) in self.warps.iter_mut().enumerate() {
            let rest = threads - 32 * warp as u32;
            state.start(if rest >= 32 { u32::MAX } else { (1 << rest) - 1 });
        }
        self.report.counters.blocks += 1;
        while self.warps.iter().any(|warp| warp.alive() != 0) {
            for (warp, turn) in self.random.turns(self.warps.len(), self.launch.schedule) {
                if !self.take_turn(warp, turn) {
                    return false;
                }
            }
            if self.warps.iter().all(|warp| warp.groups.is_empty())
                && self.warps.iter().any(|warp| !warp.parked.is_empty())
            {
                self.barriers += 1;
                self.report.counters.barriers += 1;
                self.warps.iter_mut().for_each(Warp::release);
            }
        }
        true
    }

    /// Runs a warp until it waits or ends, at most `instructions`; false when the launch has become endless.
    fn take_turn(&mut self, warp: usize, instructions: u64) -> bool {
        for _ in 0..instructions {
            let Some((group, complete)) = self.next_group(warp) else { return true };
            let Some(instruction) = self.kernel.code.get(group.pc) else {
                // Past the last instruction: the kernel ends there.
                self.warps[warp].groups.retain(|other| other.pc != group.pc);
                continue;
            };
            if self.report.counters.warp_instructions >= self.launch.instruction_limit {
                let detail = format!("{} instructions of warps", self.launch.instruction_limit);
                self.fault(FaultKind::Endless, warp, 0, instruction, detail);
                return false;
            }
            if !complete {
                let detail = format!("only lanes {:#010x} of warp {warp} reach it together", group.lanes);
                self.fault(FaultKind::DivergentCollective, warp, 0, instruction, detail);
            }
            self.step(warp, group, instruction);
        }
        true
    }

    /// The lanes furthest behind, except that lanes at an instruction for more lanes wait for those. When all wait for
    /// others that do not come, some go on, and the flag says that they are not all.
    fn next_group(&self, warp: usize) -> Option<(Group, bool)> {
        let state = &self.warps[warp];
        let first = state.groups.first()?;
        let ready = state.groups.iter().find(|group| self.is_complete(warp, group));
        Some(ready.map_or((*first, false), |group| (*group, true)))
    }

    fn is_complete(&self, warp: usize, group: &Group) -> bool {
        let Some(instruction) = self.kernel.code.get(group.pc) else { return true };
        let missing = |needed: u32| needed & !self.guarded(warp, group.lanes, instruction) == 0;
        match instruction.op {
            Op::Mma | Op::LoadMatrix { .. } => missing(u32::MAX),
            Op::Barrier => missing(self.warps[warp].groups.iter().fold(0, |all, group| all | group.lanes)),
            Op::SyncWarp => missing(self.members(warp, group.lanes, instruction, 0)),
            Op::Vote(_) | Op::Reduce(_) => missing(self.members(warp, group.lanes, instruction, 1)),
            Op::Shuffle(_) => missing(self.members(warp, group.lanes, instruction, 3)),
            _ => true,
        }
    }

    /// The lanes that the instruction's mask names, in the source `index`.
    fn members(&self, warp: usize, lanes: u32, instruction: &Instruction, index: usize) -> u32 {
        let masks = self.value(warp, instruction.from[index]);
        each(self.guarded(warp, lanes, instruction)).fold(0, |all, lane| all | masks[lane] as u32)
    }

    /// Those of `lanes` whose guard lets them execute.
    pub fn guarded(&self, warp: usize, lanes: u32, instruction: &Instruction) -> u32 {
        let Some(guard) = instruction.guard else { return lanes };
        let values = &self.warps[warp].registers[guard.register.index as usize];
        let passes = |lane: &usize| (values[*lane] != 0) != guard.negated;
        each(lanes).filter(passes).fold(0, |all, lane| all | 1 << lane)
    }

    /// An operand's value in all lanes.
    pub fn value(&self, warp: usize, operand: Operand) -> Lanes {
        match operand {
            Operand::Register(register) => self.warps[warp].registers[register.index as usize],
            Operand::Not(register) => {
                self.warps[warp].registers[register.index as usize].map(|x| u64::from(x == 0))
            }
            Operand::Immediate(bits) => [bits; 32],
            Operand::Special(special) => std::array::from_fn(|lane| self.special(warp, lane, special).into()),
        }
    }

    fn special(&self, warp: usize, lane: usize, special: Special) -> u32 {
        let thread = (32 * warp + lane) as u32;
        let [x, y, _] = self.launch.block;
        match special {
            Special::Thread(0) => thread % x,
            Special::Thread(1) => thread / x % y,
            Special::Thread(_) => thread / (x * y),
            Special::Threads(axis) => self.launch.block[axis],
            Special::Block(axis) => self.id[axis],
            Special::Blocks(axis) => self.launch.grid[axis],
            Special::Lane => lane as u32,
            Special::Warp => warp as u32,
            Special::DynamicShared => self.launch.dynamic_shared,
            Special::DynamicOffset => self.kernel.dynamic_offset,
        }
    }

    pub fn accessor(&self, warp: usize, lane: usize) -> Accessor {
        Accessor {
            warp: warp as u32,
            lane: lane as u32,
            barriers: self.barriers,
            warp_barriers: self.warps[warp].barriers,
        }
    }

    pub fn fault(
        &mut self,
        kind: FaultKind,
        warp: usize,
        lane: usize,
        instruction: &Instruction,
        detail: String,
    ) {
        let block = self.id;
        self.report.faults.add(kind, || Fault {
            kind,
            line: instruction.line,
            instruction: instruction.text.clone(),
            block,
            thread: (32 * warp + lane) as u32,
            detail,
        });
    }

    /// Whether `address` suits an access of `bytes`; a fault if not.
    pub fn aligned(
        &mut self,
        warp: usize,
        lane: usize,
        instruction: &Instruction,
        address: u64,
        bytes: u64,
    ) -> bool {
        let aligned = address.is_multiple_of(bytes);
        if !aligned {
            self.fault(
                FaultKind::Misaligned,
                warp,
                lane,
                instruction,
                format!("{bytes} bytes at {address:#x}"),
            );
        }
        aligned
    }
}

/// `bits` of `ty` as they are put into a register.
pub(super) fn loaded(ty: Type, bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    ty.extend(u64::from_le_bytes(all))
}

/// xorshift64*, enough to shuffle with.
struct Random(u64);

impl Random {
    fn new(schedule: Schedule) -> Self {
        Self(if let Schedule::Shuffled(seed) = schedule { seed | 1 << 63 } else { 1 })
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % bound
    }

    /// The warps in the order of their turns, and how many instructions each may run.
    fn turns(&mut self, warps: usize, schedule: Schedule) -> Vec<(usize, u64)> {
        match schedule {
            Schedule::Forward => (0..warps).map(|warp| (warp, u64::MAX)).collect(),
            Schedule::Reverse => (0..warps).rev().map(|warp| (warp, u64::MAX)).collect(),
            Schedule::Shuffled(_) => {
                let mut order: Vec<usize> = (0..warps).collect();
                for last in (1..warps).rev() {
                    order.swap(last, self.below(last as u64 + 1) as usize);
                }
                order.into_iter().map(|warp| (warp, 16 + self.below(256))).collect()
            }
        }
    }
}
