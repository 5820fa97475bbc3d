//! Arithmetic of one lane: what an opcode and its type mean. Registers are 64 bits here; who writes a result to a
//! register cuts it to the register's width, so that functions may leave anything above.
//!
//! The approximate functions (`ex2`, `lg2`, `rcp`, …) are computed exactly and rounded; a GPU's differ in the last bits.

use crate::types::Type;

pub(crate) type Fn1 = fn(u64) -> u64;
pub(crate) type Fn2 = fn(u64, u64) -> u64;
pub(crate) type Fn3 = fn(u64, u64, u64) -> u64;

pub(crate) fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

pub(crate) fn bits_of(x: f32) -> u64 {
    u64::from(x.to_bits())
}

/// The f32 with the value of the bf16 in the low 16 bits.
pub(crate) fn f32_of_bf16(bits: u64) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// `x` rounded to bf16, ties to even.
pub(crate) fn bf16_of(x: f32) -> u64 {
    if x.is_nan() {
        return 0x7fff;
    }
    let bits = x.to_bits();
    let to_even = 0x7fff + (bits >> 16 & 1);
    u64::from(bits.wrapping_add(to_even) >> 16)
}

/// Zero with the sign of `bits`, an f32, if that is subnormal.
pub(crate) fn flushed(bits: u64) -> u64 {
    if f32_of(bits).is_subnormal() { bits & 0x8000_0000 } else { bits }
}

/// A function of two integers of one type; `T` is that type in the expression.
macro_rules! integers {
    ($ty:expr, $a:ident, $b:ident => $result:expr) => {{
        macro_rules! of {
            ($t:ty) => {
                Some(
                    (|x: u64, y: u64| {
                        #[allow(
                            dead_code,
                            clippy::allow_attributes,
                            reason = "not every expression names its type"
                        )]
                        type T = $t;
                        let ($a, $b) = (x as T, y as T);
                        ($result) as u64
                    }) as Fn2,
                )
            };
        }
        match $ty {
            Type::S16 => of!(i16),
            Type::S32 => of!(i32),
            Type::S64 => of!(i64),
            Type::U16 | Type::B16 => of!(u16),
            Type::U32 | Type::B32 => of!(u32),
            Type::U64 | Type::B64 => of!(u64),
            _ => None,
        }
    }};
}

macro_rules! floats {
    ($ty:expr, $a:ident, $b:ident => $result:expr) => {
        match $ty {
            Type::F32 => Some(
                (|x: u64, y: u64| {
                    let ($a, $b) = (f32_of(x), f32_of(y));
                    bits_of($result)
                }) as Fn2,
            ),
            Type::F64 => Some(
                (|x: u64, y: u64| {
                    let ($a, $b) = (f64::from_bits(x), f64::from_bits(y));
                    f64::to_bits($result)
                }) as Fn2,
            ),
            _ => None,
        }
    };
}

/// What `name.ty` makes of two operands. Integer `mul` is `mul.lo`; `shl` and `shr` take their count from the second.
pub(crate) fn two(name: &str, ty: Type) -> Option<Fn2> {
    match name {
        "add" => integers!(ty, a, b => a.wrapping_add(b)).or(floats!(ty, a, b => a + b)),
        "sub" => integers!(ty, a, b => a.wrapping_sub(b)).or(floats!(ty, a, b => a - b)),
        "mul" => integers!(ty, a, b => a.wrapping_mul(b)).or(floats!(ty, a, b => a * b)),
        "mul.hi" => integers!(ty, a, b => i128::from(a).wrapping_mul(i128::from(b)) >> T::BITS),
        "mul.wide" if ty.bytes() < 8 => integers!(ty, a, b => i128::from(a).wrapping_mul(i128::from(b))),
        // The machine's integer division by zero gives all ones; PTX leaves it open.
        "div" => {
            integers!(ty, a, b => if b == 0 { !0 } else { a.wrapping_div(b) }).or(floats!(ty, a, b => a / b))
        }
        "rem" => integers!(ty, a, b => if b == 0 { a } else { a.wrapping_rem(b) }),
        // Both give the other operand when one is not a number, as PTX has it.
        "min" => integers!(ty, a, b => a.min(b)).or(floats!(ty, a, b => a.min(b))),
        "max" => integers!(ty, a, b => a.max(b)).or(floats!(ty, a, b => a.max(b))),
        "and" => logic(ty, |a, b| a & b),
        "or" => logic(ty, |a, b| a | b),
        "xor" => logic(ty, |a, b| a ^ b),
        "shl" => shift_left(ty),
        "shr" => shift_right(ty),
        "copysign" => floats!(ty, a, b => b.copysign(a)),
        _ => None,
    }
}

fn logic(ty: Type, f: Fn2) -> Option<Fn2> {
    matches!(ty, Type::Pred | Type::B16 | Type::B32 | Type::B64).then_some(f)
}

fn shift_left(ty: Type) -> Option<Fn2> {
    match ty {
        Type::B16 => Some(|a, n| if n as u32 >= 16 { 0 } else { a << n as u32 }),
        Type::B32 => Some(|a, n| (a as u32).checked_shl(n as u32).unwrap_or(0).into()),
        Type::B64 => Some(|a, n| a.checked_shl(n as u32).unwrap_or(0)),
        _ => None,
    }
}

fn shift_right(ty: Type) -> Option<Fn2> {
    match ty {
        Type::B16 | Type::U16 => Some(|a, n| u64::from((a as u16).checked_shr(n as u32).unwrap_or(0))),
        Type::B32 | Type::U32 => Some(|a, n| u64::from((a as u32).checked_shr(n as u32).unwrap_or(0))),
        Type::B64 | Type::U64 => Some(|a, n| a.checked_shr(n as u32).unwrap_or(0)),
        Type::S16 => Some(|a, n| ((a as i16) >> (n as u32).min(15)) as u64),
        Type::S32 => Some(|a, n| ((a as i32) >> (n as u32).min(31)) as u64),
        Type::S64 => Some(|a, n| ((a as i64) >> (n as u32).min(63)) as u64),
        _ => None,
    }
}

/// What `name.ty` makes of one operand.
pub(crate) fn one(name: &str, ty: Type) -> Option<Fn1> {
    let exact: Option<Fn1> = match (name, ty) {
        ("mov", _) => Some(|x| x),
        ("not", Type::Pred) => Some(|x| u64::from(x == 0)),
        ("not", Type::B16 | Type::B32 | Type::B64) => Some(|x| !x),
        ("neg", Type::S16 | Type::S32 | Type::S64) => Some(|x| x.wrapping_neg()),
        ("neg", Type::F32) => Some(|x| x ^ 0x8000_0000),
        ("neg", Type::F64) => Some(|x| x ^ 1 << 63),
        ("abs", Type::S32) => Some(|x| (x as i32).wrapping_abs() as u64),
        ("abs", Type::S64) => Some(|x| (x as i64).wrapping_abs() as u64),
        ("abs", Type::F32) => Some(|x| x & 0x7fff_ffff),
        ("abs", Type::F64) => Some(|x| x & !(1 << 63)),
        ("popc", Type::B32) => Some(|x| (x as u32).count_ones().into()),
        ("popc", Type::B64) => Some(|x| x.count_ones().into()),
        ("clz", Type::B32) => Some(|x| (x as u32).leading_zeros().into()),
        ("clz", Type::B64) => Some(|x| x.leading_zeros().into()),
        ("brev", Type::B32) => Some(|x| (x as u32).reverse_bits().into()),
        ("brev", Type::B64) => Some(u64::reverse_bits),
        ("bfind", Type::U32) => Some(|x| u64::from((x as u32).checked_ilog2().unwrap_or(u32::MAX))),
        _ => None,
    };
    exact.or_else(|| function(name, ty))
}

/// Functions of one float, through f64 so that their f32 results are rounded once.
fn function(name: &str, ty: Type) -> Option<Fn1> {
    macro_rules! through_f64 {
        ($f:expr) => {
            match ty {
                Type::F32 => Some((|x| bits_of($f(f64::from(f32_of(x))) as f32)) as Fn1),
                Type::F64 => Some((|x| $f(f64::from_bits(x)).to_bits()) as Fn1),
                _ => None,
            }
        };
    }
    match name {
        "ex2" => through_f64!(f64::exp2),
        "lg2" => through_f64!(f64::log2),
        "rcp" => through_f64!(f64::recip),
        "sqrt" => through_f64!(f64::sqrt),
        "rsqrt" => through_f64!(|x: f64| x.sqrt().recip()),
        "sin" => through_f64!(f64::sin),
        "cos" => through_f64!(f64::cos),
        "tanh" => through_f64!(f64::tanh),
        _ => None,
    }
}

/// What `name.ty` makes of three operands. Integer `mad` is `mad.lo`; of `bfe`, the second and third are position and length.
pub(crate) fn three(name: &str, ty: Type) -> Option<Fn3> {
    let f: Fn3 = match (name, ty) {
        ("fma" | "mad", Type::F32) => |a, b, c| bits_of(f32_of(a).mul_add(f32_of(b), f32_of(c))),
        ("fma" | "mad", Type::F64) => {
            |a, b, c| f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
        }
        ("mad", ty) if ty.is_integer() && ty.bytes() > 1 => |a, b, c| a.wrapping_mul(b).wrapping_add(c),
        ("mad.wide", Type::S16) => {
            |a, b, c| (i64::from(a as i16) * i64::from(b as i16)).wrapping_add(c as i64) as u64
        }
        ("mad.wide", Type::U16) => |a, b, c| (a & 0xffff).wrapping_mul(b & 0xffff).wrapping_add(c),
        ("mad.wide", Type::S32) => {
            |a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
        }
        ("mad.wide", Type::U32) => {
            |a, b, c| u64::from(a as u32).wrapping_mul(b as u32 as u64).wrapping_add(c)
        }
        ("selp", _) => |a, b, predicate| if predicate == 0 { b } else { a },
        ("bfe", Type::U32) => |a, position, length| extract(a & 0xffff_ffff, position, length, 32),
        ("bfe", Type::U64) => |a, position, length| extract(a, position, length, 64),
        ("bfe", Type::S32) => |a, position, length| {
            let (position, length) = (position & 0xff, length & 0xff);
            if length == 0 {
                return 0;
            }
            // Bits above the number are its sign.
            let top = (position + length).min(64);
            let shifted = Type::S32.extend(a) << (64 - top);
            (shifted.cast_signed() >> (64 - top + position.min(63)).min(63)).cast_unsigned()
        },
        ("prmt", Type::B32) => permute,
        ("shf.l", Type::B32) => |low, high, n| (low as u32 as u64 | high << 32) << (n & 31) >> 32,
        ("shf.r", Type::B32) => |low, high, n| (low as u32 as u64 | high << 32) >> (n & 31),
        _ => return None,
    };
    Some(f)
}

fn extract(a: u64, position: u64, length: u64, width: u64) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= width || length == 0 {
        return 0;
    }
    (a >> position) & (u64::MAX >> (64 - length.min(64)))
}

/// `prmt.b32`: each nibble of the selector names one of eight bytes, or that byte's sign repeated.
fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = (a as u32 as u64 | b << 32).to_le_bytes();
    let pick = |i: u32| {
        let nibble = (selector >> (4 * i)) as usize & 15;
        let byte = bytes[nibble & 7];
        if nibble & 8 == 0 { byte } else { 0u8.wrapping_sub(byte >> 7) }
    };
    u64::from(u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)]))
}

/// `bfi`: the low `length` bits of `a` put into `b` at `position`; of 32 bits, what is beyond them is not kept.
pub(crate) fn insert<const BITS: u64>(a: u64, b: u64, position: u64, length: u64) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= BITS || length == 0 {
        return b;
    }
    let field = (u64::MAX >> (64 - length.min(BITS))) << position;
    (a << position & field) | (b & !field)
}

/// `lop3.b32`: bit i of `table` is the result where the three inputs' bits spell i.
pub(crate) fn logic3(a: u64, b: u64, c: u64, table: u64) -> u64 {
    let term = |i: u64| {
        let pick = |x: u64, bit: u64| if i & bit == 0 { !x } else { x };
        if table >> i & 1 == 0 { 0 } else { pick(a, 4) & pick(b, 2) & pick(c, 1) }
    };
    (0..8).map(term).fold(0, |all, term| all | term)
}

/// The comparison `name` of two values of `ty`.
pub(crate) fn compare(name: &str, ty: Type) -> Option<fn(u64, u64) -> bool> {
    macro_rules! ordered {
        ($convert:expr) => {
            Some(match name {
                "eq" => (|x, y| $convert(x) == $convert(y)) as fn(u64, u64) -> bool,
                "ne" => |x, y| $convert(x) != $convert(y),
                "lt" | "lo" => |x, y| $convert(x) < $convert(y),
                "le" | "ls" => |x, y| $convert(x) <= $convert(y),
                "gt" | "hi" => |x, y| $convert(x) > $convert(y),
                "ge" | "hs" => |x, y| $convert(x) >= $convert(y),
                _ => return None,
            })
        };
    }
    macro_rules! partial {
        ($convert:expr) => {{
            macro_rules! unordered {
                ($x:expr, $y:expr) => {
                    $convert($x).is_nan() || $convert($y).is_nan()
                };
            }
            Some(match name {
                "eq" => (|x, y| $convert(x) == $convert(y)) as fn(u64, u64) -> bool,
                // The machine's `ne` is ordered: false when either is not a number.
                "ne" => |x, y| $convert(x) < $convert(y) || $convert(x) > $convert(y),
                "lt" => |x, y| $convert(x) < $convert(y),
                "le" => |x, y| $convert(x) <= $convert(y),
                "gt" => |x, y| $convert(x) > $convert(y),
                "ge" => |x, y| $convert(x) >= $convert(y),
                "equ" => |x, y| unordered!(x, y) || $convert(x) == $convert(y),
                "neu" => |x, y| $convert(x) != $convert(y),
                "ltu" => |x, y| unordered!(x, y) || $convert(x) < $convert(y),
                "leu" => |x, y| unordered!(x, y) || $convert(x) <= $convert(y),
                "gtu" => |x, y| unordered!(x, y) || $convert(x) > $convert(y),
                "geu" => |x, y| unordered!(x, y) || $convert(x) >= $convert(y),
                "num" => |x, y| !(unordered!(x, y)),
                "nan" => |x, y| unordered!(x, y),
                _ => return None,
            })
        }};
    }
    match ty {
        Type::S16 => ordered!(|x: u64| x as i16),
        Type::S32 => ordered!(|x: u64| x as i32),
        Type::S64 => ordered!(|x: u64| x as i64),
        Type::U16 | Type::B16 => ordered!(|x: u64| x as u16),
        Type::U32 | Type::B32 => ordered!(|x: u64| x as u32),
        Type::U64 | Type::B64 => ordered!(|x: u64| x),
        Type::F32 => partial!(f32_of),
        Type::F64 => partial!(f64::from_bits),
        _ => None,
    }
}

/// `cvt`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub to: Type,
    pub from: Type,
    /// Makes a float whole; without it, the result is the nearest of its format.
    pub whole: Option<fn(f64) -> f64>,
    /// `.sat` of floats: the result lies in 0 ..= 1.
    pub saturate: bool,
}

impl Conversion {
    /// Whether [`Self::apply`] knows these types.
    pub fn is_known(&self) -> bool {
        let known = |ty: Type| ty.is_integer() || matches!(ty, Type::F32 | Type::F64 | Type::Bf16);
        let floats = !self.to.is_integer() && self.to != Type::Bf16;
        known(self.to) && known(self.from) && (!self.saturate || floats)
    }

    pub fn apply(&self, bits: u64) -> u64 {
        let x = match self.from {
            Type::F32 => f64::from(f32_of(bits)),
            Type::F64 => f64::from_bits(bits),
            Type::Bf16 => f64::from(f32_of_bf16(bits)),
            from => return self.apply_integer(from.extend(bits), from),
        };
        let x = self.whole.map_or(x, |whole| whole(x));
        // Not a number becomes 0, and so does -0.
        let x = match self.saturate {
            true if x > 0.0 => x.min(1.0),
            true => 0.0,
            false => x,
        };
        match self.to {
            Type::F32 => bits_of(x as f32),
            Type::F64 => x.to_bits(),
            // Only from f32, which f64 holds exactly, so this rounds once.
            Type::Bf16 => bf16_of(x as f32),
            to => to_integer(x, to),
        }
    }

    fn apply_integer(&self, value: u64, from: Type) -> u64 {
        match (self.to, from.is_signed()) {
            (Type::F32, true) => bits_of(value.cast_signed() as f32),
            (Type::F32, false) => bits_of(value as f32),
            (Type::F64, true) => (value.cast_signed() as f64).to_bits(),
            (Type::F64, false) => (value as f64).to_bits(),
            (to, _) => to.extend(value),
        }
    }
}

/// `x` cut to the range of `to`; not a number is 0.
fn to_integer(x: f64, to: Type) -> u64 {
    match to {
        Type::S8 => x as i8 as u64,
        Type::S16 => x as i16 as u64,
        Type::S32 => x as i32 as u64,
        Type::S64 => x as i64 as u64,
        Type::U8 | Type::B8 => u64::from(x as u8),
        Type::U16 | Type::B16 => u64::from(x as u16),
        Type::U32 | Type::B32 => u64::from(x as u32),
        _ => x as u64,
    }
}
