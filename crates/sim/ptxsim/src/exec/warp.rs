//! One warp: its registers and where its lanes are.

use std::collections::VecDeque;

use crate::{matrix::Lanes, program::Register};

/// Lanes at one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub pc: usize,
    pub lanes: u32,
}

/// One thread's part of a `cp.async`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub shared: u64,
    pub global: u64,
    /// Bytes it fills.
    pub bytes: u64,
    /// Bytes it reads; the others become zero.
    pub source: u64,
}

/// Copies that one thread has started.
#[derive(Clone, Default)]
pub(super) struct Copies {
    pub open: Vec<Copy>,
    pub groups: VecDeque<Vec<Copy>>,
}

impl Copies {
    pub fn commit(&mut self) {
        self.groups.push_back(std::mem::take(&mut self.open));
    }

    /// Those that must arrive so that at most `left` groups are in flight.
    pub fn arrivals(&mut self, left: usize) -> Vec<Copy> {
        let done = self.groups.len().saturating_sub(left);
        self.groups.drain(..done).flatten().collect()
    }
}

/// What a register holds that nobody wrote: as an integer or an address it is far off, as a float it is tiny.
const POISON: u64 = 0xdead_beef;

pub(super) struct Warp {
    pub registers: Vec<Lanes>,
    /// Where lanes can go on, by growing pc: the lanes that are behind go first and so meet the others again.
    pub groups: Vec<Group>,
    /// Lanes that wait at a block barrier, and where they will go on.
    pub parked: Vec<Group>,
    pub copies: Vec<Copies>,
    /// Bytes of local memory, one thread's after the other's.
    pub local: Vec<u8>,
    /// `bar.warp.sync`s and block barriers passed, from 1.
    pub barriers: u32,
}

impl Warp {
    pub fn new(registers: u32, local_bytes: u32) -> Self {
        Self {
            registers: vec![[POISON; 32]; registers as usize],
            groups: Vec::new(),
            parked: Vec::new(),
            copies: vec![Copies::default(); 32],
            local: vec![0xff; 32 * local_bytes as usize],
            barriers: 1,
        }
    }

    /// As new, with `lanes` at the first instruction.
    pub fn start(&mut self, lanes: u32) {
        self.registers.fill([POISON; 32]);
        self.local.fill(0xff);
        self.copies.fill(Copies::default());
        self.parked.clear();
        self.groups = vec![Group { pc: 0, lanes }];
        self.barriers = 1;
    }

    /// Lanes that have not ended.
    pub fn alive(&self) -> u32 {
        self.groups.iter().chain(&self.parked).fold(0, |all, group| all | group.lanes)
    }

    /// Puts lanes at an instruction, beside those that are there.
    pub fn put(groups: &mut Vec<Group>, group: Group) {
        if group.lanes == 0 {
            return;
        }
        match groups.binary_search_by_key(&group.pc, |other| other.pc) {
            Ok(at) => groups[at].lanes |= group.lanes,
            Err(at) => groups.insert(at, group),
        }
    }

    /// The lanes at a barrier go on.
    pub fn release(&mut self) {
        self.barriers += 1;
        for group in std::mem::take(&mut self.parked) {
            Self::put(&mut self.groups, group);
        }
    }

    pub fn set(&mut self, register: Option<Register>, lanes: u32, value: impl Fn(usize) -> u64) {
        let Some(register) = register else { return };
        let mask = register.ty.mask();
        let values = &mut self.registers[register.index as usize];
        for lane in each(lanes) {
            values[lane] = value(lane) & mask;
        }
    }
}

/// The lanes of a mask.
pub(super) fn each(mut lanes: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = lanes.trailing_zeros();
        lanes &= lanes.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
