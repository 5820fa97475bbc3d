//! Names and operands.

use std::collections::HashMap;

use crate::{
    program::{Operand, Register, Special},
    types::Type,
};

/// Virtual registers of a kernel at most; compilers emit a few thousand.
const MAX_REGISTERS: u32 = 1 << 16;

/// What names mean at one place of a kernel.
pub(super) struct Names {
    /// Addresses of shared, local and parameter variables.
    variables: HashMap<String, Operand>,
    /// One per open brace; the innermost is last.
    scopes: Vec<Scope>,
    pub registers: u32,
}

#[derive(Default)]
struct Scope {
    named: HashMap<String, Register>,
    /// `%r<count>` declares `%r0` … : first index, count, type.
    ranges: HashMap<String, (u32, u32, Type)>,
}

impl Names {
    pub fn new(variables: HashMap<String, Operand>) -> Self {
        Self { variables, scopes: vec![Scope::default()], registers: 0 }
    }

    pub fn open(&mut self) {
        self.scopes.push(Scope::default());
    }

    pub fn close(&mut self) {
        self.scopes.pop();
    }

    pub fn declare_variable(&mut self, name: &str, address: Operand) {
        self.variables.insert(name.to_owned(), address);
    }

    /// Declares one item of a `.reg` list: `%name` or `%name<count>`.
    pub fn declare_register(&mut self, item: &str, ty: Type) -> Result<(), String> {
        let (name, count) = match item.split_once('<') {
            Some((name, count)) => {
                let count = count.strip_suffix('>').and_then(|count| count.trim().parse().ok());
                (name.trim(), Some(count.ok_or_else(|| format!("`{item}` is no list of registers"))?))
            }
            None => (item, None),
        };
        let first = self.registers;
        self.registers = first
            .checked_add(count.unwrap_or(1))
            .filter(|total| *total <= MAX_REGISTERS)
            .ok_or_else(|| format!("`{item}` makes more than {MAX_REGISTERS} registers"))?;
        let Some(scope) = self.scopes.last_mut() else { return Err("a register outside of a scope".into()) };
        match count {
            Some(count) => drop(scope.ranges.insert(name.to_owned(), (first, count, ty))),
            None => drop(scope.named.insert(name.to_owned(), Register { index: first, ty })),
        }
        Ok(())
    }

    pub fn register(&self, name: &str) -> Option<Register> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: Option<u32> = name[prefix.len()..].parse().ok();
        let of_range = |scope: &Scope| {
            let (first, count, ty) = *scope.ranges.get(prefix)?;
            let number = number.filter(|number| *number < count)?;
            Some(Register { index: first + number, ty })
        };
        self.scopes.iter().rev().find_map(|scope| scope.named.get(name).copied().or_else(|| of_range(scope)))
    }

    pub fn expect_register(&self, name: &str) -> Result<Register, String> {
        self.register(name).ok_or_else(|| format!("`{name}` is no register that was declared"))
    }

    /// A destination: a register or the sink `_`.
    pub fn destination(&self, name: &str) -> Result<Option<Register>, String> {
        if name == "_" { Ok(None) } else { self.expect_register(name).map(Some) }
    }

    /// A source: a register, a constant, a special register or a variable's address.
    pub fn source(&self, text: &str) -> Result<Operand, String> {
        if let Some(negated) = text.strip_prefix('!') {
            return Ok(Operand::Not(self.expect_register(negated)?));
        }
        self.register(text)
            .map(Operand::Register)
            .or_else(|| special(text).map(Operand::Special))
            .or_else(|| self.variables.get(text).copied())
            .or_else(|| constant(text).map(Operand::Immediate))
            .ok_or_else(|| format!("`{text}` is neither a declared name nor a constant"))
    }

    /// `[base]` or `[base+offset]`.
    pub fn address(&self, text: &str) -> Result<(Operand, u64), String> {
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let inner = inner.ok_or_else(|| format!("`{text}` is no address in brackets"))?.trim();
        match inner.split_once('+') {
            Some((base, offset)) => {
                let offset = constant(offset.trim()).ok_or_else(|| format!("`{offset}` is no offset"))?;
                Ok((self.source(base.trim())?, offset))
            }
            None => Ok((self.source(inner)?, 0)),
        }
    }
}

/// A constant's bits: `12`, `-3`, `0x1F`, `0b101`, `7U`, `0f3F800000`, `0d3FF0000000000000`.
pub(super) fn constant(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let prefixed =
        |lower: &str, upper: &str| digits.strip_prefix(lower).or_else(|| digits.strip_prefix(upper));
    let number = if let Some(bits) = prefixed("0f", "0F") {
        return u32::from_str_radix(bits, 16).ok().filter(|_| !negative && bits.len() == 8).map(u64::from);
    } else if let Some(bits) = prefixed("0d", "0D") {
        return u64::from_str_radix(bits, 16).ok().filter(|_| !negative && bits.len() == 16);
    } else if let Some(hex) = prefixed("0x", "0X") {
        u64::from_str_radix(hex.trim_end_matches('U'), 16).ok()
    } else if let Some(binary) = prefixed("0b", "0B") {
        u64::from_str_radix(binary.trim_end_matches('U'), 2).ok()
    } else {
        digits.trim_end_matches('U').parse().ok()
    };
    number.map(|number: u64| if negative { number.wrapping_neg() } else { number })
}

fn special(text: &str) -> Option<Special> {
    let axis = |name: &str| match text.strip_prefix(name)? {
        ".x" => Some(0),
        ".y" => Some(1),
        ".z" => Some(2),
        _ => None,
    };
    match text {
        "%laneid" => Some(Special::Lane),
        "%warpid" => Some(Special::Warp),
        "%dynamic_smem_size" => Some(Special::DynamicShared),
        _ => axis("%tid")
            .map(Special::Thread)
            .or_else(|| axis("%ntid").map(Special::Threads))
            .or_else(|| axis("%ctaid").map(Special::Block))
            .or_else(|| axis("%nctaid").map(Special::Blocks)),
    }
}

/// Splits at commas that are in no bracket.
pub(super) fn split(text: &str) -> Vec<&str> {
    let mut depth = 0i32;
    let at_comma = |c: char| {
        depth += i32::from(matches!(c, '{' | '[')) - i32::from(matches!(c, '}' | ']'));
        c == ',' && depth == 0
    };
    let parts: Vec<&str> = text.split(at_comma).map(str::trim).collect();
    if parts == [""] { Vec::new() } else { parts }
}

/// The elements of `{a, b}`, or the one operand itself.
pub(super) fn elements(text: &str) -> Vec<&str> {
    match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
        Some(inner) => inner.split(',').map(str::trim).collect(),
        None => vec![text],
    }
}
