//! One instruction.

use super::{
    opcode::Opcode,
    operand::{Names, constant, elements, split},
};
use crate::{
    alu::{self, Conversion},
    program::{Guard, Instruction, LaneFn, Op, Operand, Register, ShuffleMode, VoteMode},
    types::{Space, Type},
};

/// What the operands of an instruction are.
#[derive(Default)]
struct Operands {
    to: Vec<Option<Register>>,
    from: Vec<Operand>,
    offset: u64,
    label: Option<String>,
}

/// Reads `@%p opcode operands`; of a branch, also its label, which the caller resolves.
pub(super) fn read(names: &Names, text: &str, line: u32) -> Result<(Instruction, Option<String>), String> {
    let (guard, rest) = guard(names, text)?;
    let (opcode, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let mut reader =
        Reader { names, opcode: Opcode::new(opcode), texts: split(operands), operands: Operands::default() };
    let op = reader.op()?;
    let Operands { to, from, offset, label } = reader.operands;
    reader.opcode.finish()?;
    check(op, &to, &from)?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok((Instruction { guard, op, to, from, offset, line, text }, label))
}

fn guard<'a>(names: &Names, text: &'a str) -> Result<(Option<Guard>, &'a str), String> {
    let Some(guarded) = text.strip_prefix('@') else { return Ok((None, text)) };
    let (name, rest) = guarded.split_once(char::is_whitespace).ok_or("a predicate guards nothing")?;
    let negated = name.starts_with('!');
    let register = names.expect_register(name.trim_start_matches('!'))?;
    Ok((Some(Guard { register, negated }), rest.trim_start()))
}

/// Sources and destinations that the executor will ask for.
fn check(op: Op, to: &[Option<Register>], from: &[Operand]) -> Result<(), String> {
    let (destinations, sources) = match op {
        Op::Lane { f: LaneFn::One(_), .. } | Op::Convert(_) => (1..=1, 1),
        Op::Lane { f: LaneFn::Two(_), .. } => (1..=1, 2),
        Op::Lane { f: LaneFn::Three(_), .. } => (1..=1, 3),
        Op::Lane { f: LaneFn::Four(_), .. } => (1..=1, 4),
        Op::Compare { combine, .. } => (1..=2, 2 + usize::from(combine.is_some())),
        Op::Shuffle(_) => (1..=2, 4),
        Op::Vote(_) | Op::Reduce(_) => (1..=1, 2),
        Op::Mma => (4..=4, 10),
        Op::LoadMatrix { matrices, .. } => (matrices..=matrices, 1),
        Op::Unpack(_) => (2..=4, 1),
        _ => return Ok(()),
    };
    if destinations.contains(&to.len()) && from.len() == sources {
        Ok(())
    } else {
        Err(format!("{} destinations and {} sources are not what this opcode takes", to.len(), from.len()))
    }
}

struct Reader<'a> {
    names: &'a Names,
    opcode: Opcode<'a>,
    texts: Vec<&'a str>,
    operands: Operands,
}

impl Reader<'_> {
    fn op(&mut self) -> Result<Op, String> {
        match self.opcode.base {
            "mov" => self.mov(),
            "ld" | "ldu" | "st" | "atom" | "red" => self.memory(),
            "cp" => self.copy(),
            "cvt" => self.convert(),
            "cvta" => self.convert_address(),
            "setp" => self.compare(),
            "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar" | "fence" => self.control(),
            "shfl" | "vote" | "activemask" | "redux" | "ldmatrix" | "mma" => self.collective(),
            _ => self.lane(),
        }
    }

    fn text(&self, index: usize) -> Result<&str, String> {
        self.texts.get(index).copied().ok_or_else(|| format!("operand {} is missing", index + 1))
    }

    /// The first operand (a register, a vector or a pair `p|q`) is the destination, the others are sources.
    fn usual(&mut self) -> Result<(), String> {
        self.destinations(0)?;
        self.sources(1)
    }

    fn destinations(&mut self, index: usize) -> Result<(), String> {
        let text = self.text(index)?;
        let parts: Vec<&str> =
            if text.contains('|') { text.split('|').map(str::trim).collect() } else { elements(text) };
        self.operands.to =
            parts.into_iter().map(|part| self.names.destination(part)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn sources(&mut self, first: usize) -> Result<(), String> {
        for text in self.texts.iter().skip(first) {
            for element in elements(text) {
                self.operands.from.push(self.names.source(element)?);
            }
        }
        Ok(())
    }

    fn address(&mut self, index: usize) -> Result<(), String> {
        let (base, offset) = self.names.address(self.text(index)?)?;
        self.operands.from.push(base);
        self.operands.offset = offset;
        Ok(())
    }

    fn mov(&mut self) -> Result<Op, String> {
        let ty = self.opcode.take_type()?;
        self.usual()?;
        let parts = |count: usize| match count {
            2 | 4 if ty.bytes() as usize >= count => Ok(8 * ty.bytes() / count as u32),
            _ => Err(format!("{count} parts of {ty:?} are not supported")),
        };
        if self.operands.to.len() > 1 {
            Ok(Op::Unpack(parts(self.operands.to.len())?))
        } else if self.operands.from.len() > 1 {
            Ok(Op::Pack(parts(self.operands.from.len())?))
        } else {
            Ok(Op::Lane { f: LaneFn::One(|x| x), flush: false })
        }
    }

    fn memory(&mut self) -> Result<Op, String> {
        // Caches and ordering between blocks do not change what one block after another sees.
        self.opcode.ignore(&[
            "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "relaxed", "weak", "cta", "gpu",
        ]);
        self.opcode.ignore(&["L1::no_allocate", "L1::evict_last", "L2::64B", "L2::128B", "L2::256B"]);
        let space = self.opcode.take_space();
        match self.opcode.base {
            "st" => {
                let (count, ty) = (self.opcode.take_vector(), self.opcode.take_type()?);
                self.address(0)?;
                self.sources(1)?;
                self.expect_elements(count, self.operands.from.len() - 1)?;
                Ok(Op::Store(space, ty))
            }
            "atom" | "red" => self.atomic(space),
            _ => {
                let (count, ty) = (self.opcode.take_vector(), self.opcode.take_type()?);
                self.destinations(0)?;
                self.address(1)?;
                self.expect_elements(count, self.operands.to.len())?;
                Ok(Op::Load(space, ty))
            }
        }
    }

    fn expect_elements(&self, expected: usize, got: usize) -> Result<(), String> {
        if expected == got { Ok(()) } else { Err(format!("a vector of {expected} has {got} elements")) }
    }

    fn atomic(&mut self, space: Space) -> Result<Op, String> {
        if space != Space::Global && space != Space::Shared && space != Space::Generic {
            return Err(self.opcode.unknown());
        }
        let name = self.opcode.take_next()?;
        let ty = self.opcode.take_type()?;
        let f = match name {
            "exch" => Some(LaneFn::Two(|_, new| new)),
            "cas" => Some(LaneFn::Three(|old, expected, new| if old == expected { new } else { old })),
            _ => alu::two(name, ty).map(LaneFn::Two),
        };
        let first = if self.opcode.base == "atom" {
            self.destinations(0)?;
            1
        } else {
            0
        };
        self.address(first)?;
        self.sources(first + 1)?;
        let f = f.filter(|_| matches!(name, "add" | "min" | "max" | "and" | "or" | "xor" | "exch" | "cas"));
        let f = f.ok_or_else(|| self.opcode.unknown())?;
        let operands = if matches!(f, LaneFn::Three(_)) { 3 } else { 2 };
        self.expect_elements(operands, self.operands.from.len())?;
        Ok(Op::Atomic { f, space, ty })
    }

    fn copy(&mut self) -> Result<Op, String> {
        if !self.opcode.take("async") {
            return Err(self.opcode.unknown());
        }
        if self.opcode.take("commit_group") {
            return Ok(Op::CommitGroup);
        }
        if self.opcode.take("wait_all") {
            return Ok(Op::WaitAll);
        }
        if self.opcode.take("wait_group") {
            let count = constant(self.text(0)?).and_then(|count| u32::try_from(count).ok());
            return count.map(Op::WaitGroup).ok_or_else(|| "wait_group takes a constant".to_owned());
        }
        self.opcode.ignore(&["ca", "cg", "L2::64B", "L2::128B", "L2::256B"]);
        if !((self.opcode.take("shared") || self.opcode.take("shared::cta")) && self.opcode.take("global")) {
            return Err(self.opcode.unknown());
        }
        for index in 0..2 {
            self.address(index)?;
            if self.operands.offset != 0 {
                return Err("an offset in an address of cp.async is not supported".to_owned());
            }
        }
        let bytes = constant(self.text(2)?).filter(|bytes| matches!(bytes, 4 | 8 | 16));
        let bytes = bytes.ok_or_else(|| "cp.async copies 4, 8 or 16 bytes".to_owned())? as u32;
        self.sources(3)?;
        if self.operands.from.len() > 3 {
            return Err("cp.async takes at most a source size besides".to_owned());
        }
        Ok(Op::CopyAsync(bytes))
    }

    fn convert(&mut self) -> Result<Op, String> {
        let whole = [
            ("rzi", f64::trunc as fn(f64) -> f64),
            ("rni", f64::round_ties_even),
            ("rmi", f64::floor),
            ("rpi", f64::ceil),
        ];
        let whole = self.opcode.take_one(&whole);
        self.opcode.ignore(&["rn"]);
        let saturate = self.opcode.take("sat");
        let (to, from) = (self.opcode.take_type()?, self.opcode.take_type()?);
        self.usual()?;
        if to == Type::Bf16x2 && from == Type::F32 && !saturate {
            let pack = |high, low| alu::bf16_of(alu::f32_of(high)) << 16 | alu::bf16_of(alu::f32_of(low));
            return Ok(Op::Lane { f: LaneFn::Two(pack), flush: false });
        }
        let conversion = Conversion { to, from, whole, saturate };
        let needs_whole = to.is_integer() && !from.is_integer();
        if conversion.is_known() && needs_whole <= whole.is_some() {
            Ok(Op::Convert(conversion))
        } else {
            Err(self.opcode.unknown())
        }
    }

    /// Generic addresses differ from those of a space by the space's window.
    fn convert_address(&mut self) -> Result<Op, String> {
        let to_space = self.opcode.take("to");
        let space = self.opcode.take_space();
        self.opcode.take_type()?;
        self.usual()?;
        self.operands.from.push(Operand::Immediate(space.window()));
        let f: alu::Fn2 =
            if to_space { |a, window| a.wrapping_sub(window) } else { |a, window| a.wrapping_add(window) };
        Ok(Op::Lane { f: LaneFn::Two(f), flush: false })
    }

    fn compare(&mut self) -> Result<Op, String> {
        let name = self.opcode.take_next()?;
        let combine: Option<fn(bool, bool) -> bool> = self.opcode.take_one(&[
            ("and", (|a, b| a && b) as fn(bool, bool) -> bool),
            ("or", |a, b| a || b),
            ("xor", |a, b| a != b),
        ]);
        let ty = self.opcode.take_type()?;
        self.usual()?;
        let f = alu::compare(name, ty).ok_or_else(|| self.opcode.unknown())?;
        Ok(Op::Compare { f, combine })
    }

    fn control(&mut self) -> Result<Op, String> {
        match self.opcode.base {
            "bra" => {
                self.opcode.ignore(&["uni"]);
                self.operands.label = Some(self.text(0)?.to_owned());
                Ok(Op::Branch(0))
            }
            "ret" | "exit" => {
                self.opcode.ignore(&["uni"]);
                Ok(Op::Exit)
            }
            "trap" => Ok(Op::Trap),
            "bar" | "barrier" => self.barrier(),
            _ => {
                self.opcode.ignore(&["gl", "cta", "sys", "gpu", "acq_rel", "sc"]);
                Ok(Op::Fence)
            }
        }
    }

    fn barrier(&mut self) -> Result<Op, String> {
        let (of_warp, sync) = (self.opcode.take("warp"), self.opcode.take("sync"));
        if of_warp && sync {
            self.sources(0)?;
            self.expect_elements(1, self.operands.from.len())?;
            return Ok(Op::SyncWarp);
        }
        self.opcode.ignore(&["cta", "aligned"]);
        if sync && self.texts == ["0"] {
            Ok(Op::Barrier)
        } else {
            Err(format!("{}; only `bar.sync 0` is", self.opcode.unknown()))
        }
    }

    fn collective(&mut self) -> Result<Op, String> {
        let base = self.opcode.base;
        if base == "activemask" {
            self.opcode.ignore(&["b32"]);
            self.usual()?;
            return Ok(Op::ActiveMask);
        }
        if !self.opcode.take("sync") {
            return Err(self.opcode.unknown());
        }
        match base {
            "shfl" => {
                let modes = [
                    ("up", ShuffleMode::Up),
                    ("down", ShuffleMode::Down),
                    ("bfly", ShuffleMode::Butterfly),
                    ("idx", ShuffleMode::Index),
                ];
                let mode = self.opcode.take_one(&modes).ok_or_else(|| self.opcode.unknown())?;
                self.opcode.ignore(&["b32"]);
                self.usual()?;
                Ok(Op::Shuffle(mode))
            }
            "vote" => {
                let modes = [
                    ("all", VoteMode::All),
                    ("any", VoteMode::Any),
                    ("uni", VoteMode::Uniform),
                    ("ballot", VoteMode::Ballot),
                ];
                let mode = self.opcode.take_one(&modes).ok_or_else(|| self.opcode.unknown())?;
                self.opcode.ignore(&["pred", "b32"]);
                self.usual()?;
                Ok(Op::Vote(mode))
            }
            "redux" => {
                let name = self.opcode.take_next()?;
                let ty = self.opcode.take_type()?;
                self.usual()?;
                let f = alu::two(name, ty).filter(|_| ty.bytes() == 4 && ty.is_integer());
                let folds = matches!(name, "add" | "min" | "max" | "and" | "or" | "xor");
                f.filter(|_| folds).map(Op::Reduce).ok_or_else(|| self.opcode.unknown())
            }
            _ => self.matrix(),
        }
    }

    fn matrix(&mut self) -> Result<Op, String> {
        if !self.opcode.take("aligned") {
            return Err(self.opcode.unknown());
        }
        if self.opcode.base == "mma" {
            for word in ["m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"] {
                if self.opcode.take_next()? != word {
                    return Err(self.opcode.unknown());
                }
            }
            self.usual()?;
            return Ok(Op::Mma);
        }
        let transposed = self.opcode.take("trans");
        let matrices = self.opcode.take_one(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let shape =
            self.opcode.take("m8n8") && self.opcode.take("b16") && self.opcode.take_space() == Space::Shared;
        let matrices = matrices.filter(|_| shape).ok_or_else(|| self.opcode.unknown())?;
        self.destinations(0)?;
        self.address(1)?;
        Ok(Op::LoadMatrix { matrices, transposed })
    }

    /// What each lane computes from its own operands.
    fn lane(&mut self) -> Result<Op, String> {
        let base = self.opcode.base;
        let flush = self.opcode.take("ftz");
        self.opcode.ignore(&["rn", "approx", "full", "lo", "wrap"]);
        let variants = [("wide", "wide"), ("hi", "hi"), ("l", "l"), ("r", "r")];
        let name = match self.opcode.take_one(&variants) {
            Some(variant) => format!("{base}.{variant}"),
            None => base.to_owned(),
        };
        let ty = self.opcode.take_type()?;
        self.usual()?;
        let f = match (name.as_str(), ty) {
            ("bfi", Type::B32) => Some(LaneFn::Four(alu::insert::<32>)),
            ("bfi", Type::B64) => Some(LaneFn::Four(alu::insert::<64>)),
            ("lop3", Type::B32) => Some(LaneFn::Four(alu::logic3)),
            (name, ty) => alu::one(name, ty)
                .map(LaneFn::One)
                .or_else(|| alu::two(name, ty).map(LaneFn::Two))
                .or_else(|| alu::three(name, ty).map(LaneFn::Three)),
        };
        let f = f.filter(|_| !flush || ty == Type::F32).ok_or_else(|| self.opcode.unknown())?;
        Ok(Op::Lane { f, flush })
    }
}
