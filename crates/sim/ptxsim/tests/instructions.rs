//! Every instruction against plain Rust: 32 lanes load their operands, execute one line and store what it gave.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use gqla_ptxsim::{Architecture, GlobalMemory, Launch, Report, Schedule, launch, parse};

type Lanes = [u64; 32];

/// Executes `line`, whose operands are `%a %b %c` of `source` bits and `%d` of `result` bits, and returns `%d`.
fn execute(line: &str, source: u32, result: u32, operands: [Lanes; 3]) -> Lanes {
    let text = format!(
        ".version 8.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 from, .param .u64 to)\n{{\n\
        .reg .b64 %base, %lane, %from, %to;\n.reg .b32 %t, %mask;\n.reg .pred %p, %q;\n.reg .b16 %x<2>;\n.reg .b{source} %a, %b, %c;\n.reg .b{result} %d;\n\
        mov.u32 %t, %tid.x;\nmul.wide.u32 %lane, %t, 8;\nld.param.u64 %base, [from];\nadd.s64 %from, %base, %lane;\n\
        ld.param.u64 %base, [to];\nadd.s64 %to, %base, %lane;\nmov.b32 %mask, -1;\n\
        ld.global.b{source} %a, [%from];\nld.global.b{source} %b, [%from+256];\nld.global.b{source} %c, [%from+512];\n\
        {line}\nst.global.b{result} [%to], %d;\nret;\n}}\n"
    );
    let module = parse(&text).unwrap();
    let mut memory = GlobalMemory::new(1 << 20);
    let (from, to) = (memory.allocate(768).unwrap(), memory.allocate(256).unwrap());
    let bytes: Vec<u8> = operands.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    memory.write(from, &bytes).unwrap();
    memory.write(to, &[0; 256]).unwrap();
    let report = launch(
        &Launch {
            kernel: module.kernel("k").unwrap(),
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared: 0,
            params: &[from.to_le_bytes(), to.to_le_bytes()].concat(),
            architecture: Architecture::of(8, 0).unwrap(),
            schedule: Schedule::Forward,
            instruction_limit: 1000,
        },
        &mut memory,
    );
    let Report { faults, .. } = report.unwrap();
    assert!(faults.is_empty(), "{line}: {:?}", faults.first);
    let mut out = [0; 256];
    memory.read(to, &mut out).unwrap();
    std::array::from_fn(|lane| u64::from_le_bytes(out[8 * lane..8 * lane + 8].try_into().unwrap()))
}

/// Numbers at which integer arithmetic goes wrong, and some in between.
fn integers(salt: u64) -> Lanes {
    let edges = [
        0,
        1,
        2,
        31,
        32,
        33,
        u64::MAX,
        i32::MIN as u64,
        i32::MAX as u64,
        1 << 63,
        0xffff_ffff,
        0x8000,
        0x7fff,
    ];
    std::array::from_fn(|lane| {
        let mixed = (lane as u64 + 1 + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(salt as u32 * 7);
        edges.get((lane * (2 * salt as usize + 1)) % 32).copied().unwrap_or(mixed)
    })
}

fn floats(salt: u64) -> Lanes {
    let edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE / 4.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        3e9,
        -3e9,
        1e-3,
    ];
    std::array::from_fn(|lane| {
        let mixed = ((lane as u64 + salt) * 7919 % 1000) as f32 / 37.0 - 13.0;
        u64::from(edges.get((lane * (2 * salt as usize + 1)) % 32).copied().unwrap_or(mixed).to_bits())
    })
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn same_float(got: u64, expected: u64) -> bool {
    got == expected || (f(got).is_nan() && f(expected).is_nan())
}

fn check(
    line: &str,
    source: u32,
    result: u32,
    inputs: fn(u64) -> Lanes,
    expected: impl Fn(u64, u64, u64) -> u64,
) {
    let operands = [inputs(0), inputs(1), inputs(2)];
    let mask = |bits: u32| u64::MAX >> (64 - bits);
    let got = execute(line, source, result, operands);
    for lane in 0..32 {
        let [a, b, c] = operands.map(|operand| operand[lane] & mask(source));
        let want = expected(a, b, c) & mask(result);
        let float = result == 32 && line.contains("f32 %d");
        assert!(
            got[lane] == want || (float && same_float(got[lane], want)),
            "{line}: {a:#x} {b:#x} {c:#x} gave {:#x}, expected {want:#x}",
            got[lane]
        );
    }
}

#[test]
fn integer_arithmetic() {
    type Case = (&'static str, fn(u64, u64, u64) -> u64);
    let of_32_bits: [Case; 31] = [
        ("add.s32 %d, %a, %b;", |a, b, _| a.wrapping_add(b)),
        ("sub.s32 %d, %a, %b;", |a, b, _| a.wrapping_sub(b)),
        ("mul.lo.s32 %d, %a, %b;", |a, b, _| a.wrapping_mul(b)),
        ("mul.hi.s32 %d, %a, %b;", |a, b, _| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u64),
        ("mul.hi.u32 %d, %a, %b;", |a, b, _| (a * b) >> 32),
        ("mad.lo.s32 %d, %a, %b, %c;", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("div.s32 %d, %a, %b;", |a, b, _| {
            (a as i32).checked_div(b as i32).unwrap_or(if b == 0 { -1 } else { i32::MIN }) as u64
        }),
        ("div.u32 %d, %a, %b;", |a, b, _| a.checked_div(b).unwrap_or(u64::MAX)),
        ("rem.s32 %d, %a, %b;", |a, b, _| if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u64 }),
        ("rem.u32 %d, %a, %b;", |a, b, _| a.checked_rem(b).unwrap_or(a)),
        ("min.s32 %d, %a, %b;", |a, b, _| (a as i32).min(b as i32) as u64),
        ("max.u32 %d, %a, %b;", |a, b, _| a.max(b)),
        ("and.b32 %d, %a, %b;", |a, b, _| a & b),
        ("or.b32 %d, %a, %b;", |a, b, _| a | b),
        ("xor.b32 %d, %a, %b;", |a, b, _| a ^ b),
        ("not.b32 %d, %a;", |a, _, _| !a),
        ("neg.s32 %d, %a;", |a, _, _| a.wrapping_neg()),
        ("abs.s32 %d, %a;", |a, _, _| (a as i32).wrapping_abs() as u64),
        ("shl.b32 %d, %a, %b;", |a, b, _| if b < 32 { a << b } else { 0 }),
        ("shr.u32 %d, %a, %b;", |a, b, _| if b < 32 { a >> b } else { 0 }),
        ("shr.s32 %d, %a, %b;", |a, b, _| (i64::from(a as i32) >> b.min(31)) as u64),
        ("shf.l.wrap.b32 %d, %a, %b, %c;", |a, b, c| ((b << 32 | a) << (c % 32)) >> 32),
        ("shf.r.wrap.b32 %d, %a, %b, %c;", |a, b, c| (b << 32 | a) >> (c % 32)),
        ("popc.b32 %d, %a;", |a, _, _| a.count_ones().into()),
        ("clz.b32 %d, %a;", |a, _, _| (a as u32).leading_zeros().into()),
        ("brev.b32 %d, %a;", |a, _, _| (a as u32).reverse_bits().into()),
        (
            "bfind.u32 %d, %a;",
            |a, _, _| if a == 0 { u64::MAX } else { 31 - u64::from((a as u32).leading_zeros()) },
        ),
        ("lop3.b32 %d, %a, %b, %c, 0xE8;", |a, b, c| (a & b) | (a & c) | (b & c)),
        ("lop3.b32 %d, %a, %b, %c, 0x96;", |a, b, c| a ^ b ^ c),
        ("prmt.b32 %d, %a, %b, 0x5410;", |a, b, _| (b & 0xffff) << 16 | (a & 0xffff)),
        ("prmt.b32 %d, %a, %b, 0x7F3B;", |a, b, _| {
            let sign = |x: u64| if x >> 31 & 1 == 1 { 0xff } else { 0 };
            (b >> 24) << 24 | sign(b) << 16 | (a >> 24) << 8 | sign(a)
        }),
    ];
    for (line, expected) in of_32_bits {
        check(line, 32, 32, integers, expected);
    }
    let of_64_bits: [Case; 9] = [
        ("add.s64 %d, %a, %b;", |a, b, _| a.wrapping_add(b)),
        ("mul.lo.s64 %d, %a, %b;", |a, b, _| a.wrapping_mul(b)),
        ("mul.hi.u64 %d, %a, %b;", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        ("mul.hi.s64 %d, %a, %b;", |a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        (
            "div.s64 %d, %a, %b;",
            |a, b, _| if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 },
        ),
        ("max.s64 %d, %a, %b;", |a, b, _| (a as i64).max(b as i64) as u64),
        ("xor.b64 %d, %a, %b;", |a, b, _| a ^ b),
        ("popc.b64 %t, %a;\ncvt.u64.u32 %d, %t;", |a, _, _| a.count_ones().into()),
        ("not.b64 %d, %a;", |a, _, _| !a),
    ];
    for (line, expected) in of_64_bits {
        check(line, 64, 64, integers, expected);
    }
    check("mul.wide.s32 %d, %a, %b;", 32, 64, integers, |a, b, _| {
        (i64::from(a as i32) * i64::from(b as i32)) as u64
    });
    check("mul.wide.u32 %d, %a, %b;", 32, 64, integers, |a, b, _| a * b);
    check("mad.wide.u32 %d, %a, %b, 7;", 32, 64, integers, |a, b, _| (a * b).wrapping_add(7));
    check("mad.wide.s32 %d, %a, %b, -1;", 32, 64, integers, |a, b, _| {
        (i64::from(a as i32) * i64::from(b as i32) - 1) as u64
    });
    check("shl.b64 %d, %a, 40;", 64, 64, integers, |a, _, _| a << 40);
    check("shr.s64 %d, %a, 40;", 64, 64, integers, |a, _, _| ((a as i64) >> 40) as u64);
}

/// Position and length of a bit field, in and out of range.
#[test]
fn bit_fields() {
    for position in [0u64, 1, 7, 31, 32, 40] {
        for length in [0u64, 1, 5, 31, 32, 60] {
            let field = |a: u64| {
                (position..position + length)
                    .filter(|bit| *bit < 32 && a >> bit & 1 == 1)
                    .fold(0, |all, bit| all | 1 << (bit - position))
            };
            check(&format!("bfe.u32 %d, %a, {position}, {length};"), 32, 32, integers, |a, _, _| field(a));
            // As the PTX ISA's pseudocode: above the field, its last bit, or the number's sign where that comes first.
            let signed = |a: u64| {
                let sign = if length == 0 { 0 } else { a >> (position + length - 1).min(31) & 1 };
                (0..32).fold(0, |all, bit| {
                    let inside = bit < length && position + bit <= 31;
                    all | (if inside { a >> (position + bit) & 1 } else { sign }) << bit
                })
            };
            check(&format!("bfe.s32 %d, %a, {position}, {length};"), 32, 32, integers, |a, _, _| signed(a));
            let inserted = |a: u64, b: u64, bits: u64| {
                (0..bits).fold(0, |all, bit| {
                    let from_a = bit >= position && bit < position + length;
                    all | (if from_a { a >> (bit - position) & 1 } else { b >> bit & 1 }) << bit
                })
            };
            for bits in [32, 64] {
                let insert = format!("bfi.b{bits} %d, %a, %b, {position}, {length};");
                check(&insert, bits, bits, integers, |a, b, _| inserted(a, b, bits.into()));
            }
            let wide = |a: u64| (0..length).fold(0, |all, bit| all | (a >> (position + bit) & 1) << bit);
            check(&format!("bfe.u64 %d, %a, {position}, {length};"), 64, 64, integers, |a, _, _| {
                if position + length <= 64 { wide(a) } else { a >> position }
            });
        }
    }
}

/// What an atomic gives is what was there; what is there then is what it made of that.
#[test]
fn atomics() {
    type Case = (&'static str, u32, fn(u64, u64, u64) -> u64);
    let cases: [Case; 18] = [
        ("add.u32", 32, |a, b, _| a.wrapping_add(b)),
        ("add.u64", 64, |a, b, _| a.wrapping_add(b)),
        ("min.u32", 32, |a, b, _| a.min(b)),
        ("min.s32", 32, |a, b, _| (a as i32).min(b as i32) as u64),
        ("min.s64", 64, |a, b, _| (a as i64).min(b as i64) as u64),
        ("max.u32", 32, |a, b, _| a.max(b)),
        ("max.s32", 32, |a, b, _| (a as i32).max(b as i32) as u64),
        ("max.u64", 64, |a, b, _| a.max(b)),
        ("and.b32", 32, |a, b, _| a & b),
        ("and.b64", 64, |a, b, _| a & b),
        ("or.b32", 32, |a, b, _| a | b),
        ("or.b64", 64, |a, b, _| a | b),
        ("xor.b32", 32, |a, b, _| a ^ b),
        ("xor.b64", 64, |a, b, _| a ^ b),
        ("exch.b32", 32, |_, b, _| b),
        ("exch.b64", 64, |_, b, _| b),
        ("cas.b32", 32, |a, b, c| if a == b { c } else { a }),
        ("cas.b64", 64, |a, b, c| if a == b { c } else { a }),
    ];
    for (name, bits, expected) in cases {
        let operands = if name.starts_with("cas") { "%b, %c" } else { "%b" };
        let atom = format!("atom.global.{name} %d, [%from], {operands};");
        check(&atom, bits, bits, integers, |a, _, _| a);
        let after = format!("ld.global.b{bits} %d, [%from];");
        check(&format!("{atom}\n{after}"), bits, bits, integers, expected);
        if !name.starts_with("exch") && !name.starts_with("cas") {
            check(&format!("red.global.{name} [%from], %b;\n{after}"), bits, bits, integers, expected);
        }
    }
    let sum = "atom.global.add.f32 %d, [%from], %b;\nld.global.f32 %d, [%from];";
    check(sum, 32, 32, floats, |a, b, _| (f(a) + f(b)).to_bits().into());
}

#[test]
fn float_arithmetic() {
    type Case = (&'static str, fn(f32, f32, f32) -> f32);
    let cases: [Case; 19] = [
        ("add.f32 %d, %a, %b;", |a, b, _| a + b),
        ("sub.rn.f32 %d, %a, %b;", |a, b, _| a - b),
        ("mul.f32 %d, %a, %b;", |a, b, _| a * b),
        ("div.rn.f32 %d, %a, %b;", |a, b, _| a / b),
        ("fma.rn.f32 %d, %a, %b, %c;", f32::mul_add),
        ("min.f32 %d, %a, %b;", |a, b, _| a.min(b)),
        ("max.f32 %d, %a, %b;", |a, b, _| a.max(b)),
        ("neg.f32 %d, %a;", |a, _, _| -a),
        ("abs.f32 %d, %a;", |a, _, _| a.abs()),
        ("rcp.rn.f32 %d, %a;", |a, _, _| 1.0 / a),
        ("sqrt.rn.f32 %d, %a;", |a, _, _| a.sqrt()),
        ("rsqrt.approx.f32 %d, %a;", |a, _, _| (1.0 / f64::from(a).sqrt()) as f32),
        ("ex2.approx.f32 %d, %a;", |a, _, _| f64::from(a).exp2() as f32),
        ("lg2.approx.f32 %d, %a;", |a, _, _| f64::from(a).log2() as f32),
        ("sin.approx.f32 %d, %a;", |a, _, _| f64::from(a).sin() as f32),
        ("cos.approx.f32 %d, %a;", |a, _, _| f64::from(a).cos() as f32),
        ("tanh.approx.f32 %d, %a;", |a, _, _| f64::from(a).tanh() as f32),
        ("mul.ftz.f32 %d, %a, 0f3F800000;", |a, _, _| if a.is_subnormal() { 0.0f32.copysign(a) } else { a }),
        ("copysign.f32 %d, %a, %b;", |a, b, _| b.copysign(a)),
    ];
    for (line, expected) in cases {
        check(line, 32, 32, floats, |a, b, c| expected(f(a), f(b), f(c)).to_bits().into());
    }
}

/// Integers of 16 and floats of 64 bits, and what is left of integers of 64.
#[test]
fn other_widths() {
    type Case = (&'static str, u32, u32, fn(u64, u64, u64) -> u64);
    let whole: [Case; 17] = [
        ("add.s16 %d, %a, %b;", 16, 16, |a, b, _| a + b),
        ("mul.lo.s16 %d, %a, %b;", 16, 16, |a, b, _| a * b),
        ("min.s16 %d, %a, %b;", 16, 16, |a, b, _| (a as i16).min(b as i16) as u64),
        ("max.u16 %d, %a, %b;", 16, 16, |a, b, _| a.max(b)),
        ("not.b16 %d, %a;", 16, 16, |a, _, _| !a),
        ("shl.b16 %d, %a, 5;", 16, 16, |a, _, _| a << 5),
        ("shr.u16 %d, %a, 5;", 16, 16, |a, _, _| a >> 5),
        ("shr.s16 %d, %a, 5;", 16, 16, |a, _, _| (a as i16 >> 5) as u64),
        ("mul.wide.s16 %d, %a, %b;", 16, 32, |a, b, _| (i32::from(a as i16) * i32::from(b as i16)) as u64),
        ("mul.wide.u16 %d, %a, %b;", 16, 32, |a, b, _| a * b),
        ("mad.wide.s16 %d, %a, %b, -9;", 16, 32, |a, b, _| {
            (i32::from(a as i16) * i32::from(b as i16) - 9) as u64
        }),
        ("mad.wide.u16 %d, %a, %b, 9;", 16, 32, |a, b, _| a * b + 9),
        ("mad.lo.s64 %d, %a, %b, %c;", 64, 64, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("abs.s64 %d, %a;", 64, 64, |a, _, _| (a as i64).wrapping_abs() as u64),
        ("shr.u64 %d, %a, 40;", 64, 64, |a, _, _| a >> 40),
        ("brev.b64 %d, %a;", 64, 64, |a, _, _| a.reverse_bits()),
        ("clz.b64 %t, %a;\ncvt.u64.u32 %d, %t;", 64, 64, |a, _, _| a.leading_zeros().into()),
    ];
    for (line, source, result, expected) in whole {
        check(line, source, result, integers, expected);
    }
    let doubles =
        |salt| floats(salt).map(|x| if f(x).is_normal() { f64::from(f(x)) / 3.0 } else { 1.5 }.to_bits());
    type Real = (&'static str, fn(f64, f64, f64) -> f64);
    let real: [Real; 10] = [
        ("add.f64 %d, %a, %b;", |a, b, _| a + b),
        ("sub.f64 %d, %a, %b;", |a, b, _| a - b),
        ("mul.f64 %d, %a, %b;", |a, b, _| a * b),
        ("div.rn.f64 %d, %a, %b;", |a, b, _| a / b),
        ("fma.rn.f64 %d, %a, %b, %c;", f64::mul_add),
        ("min.f64 %d, %a, %b;", |a, b, _| a.min(b)),
        ("max.f64 %d, %a, %b;", |a, b, _| a.max(b)),
        ("neg.f64 %d, %a;", |a, _, _| -a),
        ("abs.f64 %d, %a;", |a, _, _| a.abs()),
        ("setp.lt.f64 %p, %a, %b;\nselp.f64 %d, %a, %c, %p;", |a, b, c| if a < b { a } else { c }),
    ];
    for (line, expected) in real {
        let of_bits = |a, b, c| expected(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c)).to_bits();
        check(line, 64, 64, doubles, of_bits);
    }
    check("cvt.rn.f32.f64 %d, %a;", 64, 32, doubles, |a, _, _| (f64::from_bits(a) as f32).to_bits().into());
}

#[test]
fn comparisons() {
    type Case = (&'static str, fn(u64, u64) -> bool);
    let integer: [Case; 7] = [
        ("lt.s32", |a, b| (a as i32) < b as i32),
        ("lt.u32", |a, b| a < b),
        ("lo.u32", |a, b| a < b),
        ("ge.s32", |a, b| a as i32 >= b as i32),
        ("hs.u32", |a, b| a >= b),
        ("eq.b32", |a, b| a == b),
        ("ne.s32", |a, b| a != b),
    ];
    let float: [Case; 14] = [
        ("eq.f32", |a, b| f(a) == f(b)),
        ("ne.f32", |a, b| !f(a).is_nan() && !f(b).is_nan() && f(a) != f(b)),
        ("lt.f32", |a, b| f(a) < f(b)),
        ("le.f32", |a, b| f(a) <= f(b)),
        ("gt.f32", |a, b| f(a) > f(b)),
        ("ge.f32", |a, b| f(a) >= f(b)),
        ("equ.f32", |a, b| f(a).partial_cmp(&f(b)).is_none_or(|order| order.is_eq())),
        ("neu.f32", |a, b| f(a) != f(b)),
        ("ltu.f32", |a, b| f(a).partial_cmp(&f(b)).is_none_or(|order| order.is_lt())),
        ("leu.f32", |a, b| f(a).partial_cmp(&f(b)).is_none_or(|order| order.is_le())),
        ("gtu.f32", |a, b| f(a).partial_cmp(&f(b)).is_none_or(|order| order.is_gt())),
        ("geu.f32", |a, b| f(a).partial_cmp(&f(b)).is_none_or(|order| order.is_ge())),
        ("num.f32", |a, b| !f(a).is_nan() && !f(b).is_nan()),
        ("nan.f32", |a, b| f(a).is_nan() || f(b).is_nan()),
    ];
    for (cases, inputs) in [(integer.as_slice(), integers as fn(u64) -> Lanes), (float.as_slice(), floats)] {
        for (name, expected) in cases {
            let plain = format!("setp.{name} %p, %a, %b;\nselp.b32 %d, 1, 0, %p;");
            check(&plain, 32, 32, inputs, |a, b, _| expected(a, b).into());
            let both = format!("setp.{name} %p|%q, %a, %b;\nselp.b32 %d, 1, 0, %q;");
            check(&both, 32, 32, inputs, |a, b, _| (!expected(a, b)).into());
        }
    }
    let combined = "setp.gt.s32 %q, %a, 0;\nsetp.lt.and.s32 %p, %a, %b, !%q;\nselp.b32 %d, 1, 0, %p;";
    check(combined, 32, 32, integers, |a, b, _| u64::from((a as i32) < b as i32 && a as i32 <= 0));
    check("mov.u32 %d, 5;\nsetp.eq.u32 %p, %a, %b;\n@!%p mov.u32 %d, 6;", 32, 32, integers, |a, b, _| {
        if a == b { 5 } else { 6 }
    });
}

#[test]
fn conversions() {
    check("cvt.s64.s32 %d, %a;", 32, 64, integers, |a, _, _| i64::from(a as i32) as u64);
    check("cvt.u64.u32 %d, %a;", 32, 64, integers, |a, _, _| a);
    check("cvt.u32.u64 %d, %a;", 64, 32, integers, |a, _, _| a);
    check("cvt.s8.s32 %d, %a;", 32, 32, integers, |a, _, _| i64::from(a as i8) as u64);
    check("cvt.u16.u32 %d, %a;", 32, 16, integers, |a, _, _| a);
    check("cvt.rn.f32.s32 %d, %a;", 32, 32, integers, |a, _, _| (a as i32 as f32).to_bits().into());
    check("cvt.rn.f32.u32 %d, %a;", 32, 32, integers, |a, _, _| (a as u32 as f32).to_bits().into());
    check("cvt.rn.f32.u64 %d, %a;", 64, 32, integers, |a, _, _| (a as f32).to_bits().into());
    check("cvt.rzi.s32.f32 %d, %a;", 32, 32, floats, |a, _, _| f(a) as i32 as u64);
    check("cvt.rni.u32.f32 %d, %a;", 32, 32, floats, |a, _, _| f(a).round_ties_even() as u32 as u64);
    check("cvt.rmi.f32.f32 %d, %a;", 32, 32, floats, |a, _, _| f(a).floor().to_bits().into());
    check("cvt.rpi.s64.f32 %d, %a;", 32, 64, floats, |a, _, _| f(a).ceil() as i64 as u64);
    check("cvt.sat.f32.f32 %d, %a;", 32, 32, floats, |a, _, _| {
        if f(a) > 0.0 { f(a).min(1.0) } else { 0.0 }.to_bits().into()
    });
    check(
        "cvt.f64.f32 %d, %a;",
        32,
        64,
        |salt| floats(salt).map(|x| if f(x).is_nan() { 0 } else { x }),
        |a, _, _| f64::from(f(a)).to_bits(),
    );
    check("cvt.f32.bf16 %d, %a;", 16, 32, |salt| floats(salt).map(|x| x >> 16), |a, _, _| a << 16);
    let rounded = |x: u64| if f(x).is_nan() { 0x7fff } else { (x + 0x7fff + (x >> 16 & 1)) >> 16 & 0xffff };
    check("cvt.rn.bf16.f32 %d, %a;", 32, 16, floats, |a, _, _| rounded(a));
    check("cvt.rn.bf16x2.f32 %d, %a, %b;", 32, 32, floats, |a, b, _| rounded(a) << 16 | rounded(b));
    check("mov.b32 {%x0, %x1}, %a;\nmov.b32 %d, {%x1, %x0};", 32, 32, integers, |a, _, _| a << 16 | a >> 16);
    check("cvta.shared.u64 %d, %a;\ncvta.to.shared.u64 %d, %d;", 64, 64, integers, |a, _, _| a);
}

#[test]
fn collectives() {
    let a = integers(0).map(|x| x & 0xffff_ffff);
    let run = |line: &str| execute(line, 32, 32, [a, integers(1), integers(2)]);
    let lanes = |from: &dyn Fn(usize) -> usize| -> Lanes { std::array::from_fn(|lane| a[from(lane)]) };
    for d in [1usize, 2, 16, 31] {
        assert_eq!(
            run(&format!("shfl.sync.bfly.b32 %d, %a, {d}, 31, -1;")),
            lanes(&|lane| lane ^ d),
            "bfly {d}"
        );
        assert_eq!(
            run(&format!("shfl.sync.down.b32 %d, %a, {d}, 31, -1;")),
            lanes(&|lane| if lane + d < 32 { lane + d } else { lane })
        );
        assert_eq!(
            run(&format!("shfl.sync.up.b32 %d, %a, {d}, 0, -1;")),
            lanes(&|lane| lane.checked_sub(d).unwrap_or(lane))
        );
        assert_eq!(run(&format!("shfl.sync.idx.b32 %d, %a, {d}, 31, -1;")), lanes(&|_| d));
    }
    // Segments of eight lanes: c = (32 - 8) << 8 | 31.
    assert_eq!(run("shfl.sync.idx.b32 %d, %a, 3, 6175, -1;"), lanes(&|lane| lane / 8 * 8 + 3));
    let outside = run("shfl.sync.down.b32 %d|%p, %a, 4, 31, -1;\nselp.b32 %d, 1, 0, %p;");
    assert_eq!(outside, std::array::from_fn(|lane| u64::from(lane < 28)));
    let even = "and.b32 %t, %t, 1;\nsetp.eq.u32 %p, %t, 0;\n";
    assert_eq!(run(&format!("{even}vote.sync.ballot.b32 %d, %p, -1;")), [0x5555_5555; 32]);
    for (mode, expected) in [("all", 0), ("any", 1), ("uni", 0)] {
        assert_eq!(
            run(&format!("{even}vote.sync.{mode}.pred %q, %p, -1;\nselp.b32 %d, 1, 0, %q;")),
            [expected; 32],
            "{mode}"
        );
    }
    assert_eq!(
        run(&format!("{even}mov.b32 %d, 0;\n@%p activemask.b32 %d;")),
        std::array::from_fn(|lane| if lane % 2 == 0 { 0x5555_5555 } else { 0 })
    );
    assert_eq!(run("redux.sync.min.u32 %d, %a, -1;"), [a.into_iter().min().unwrap(); 32]);
    for (name, fold) in
        [("and", (|x, y| x & y) as fn(u64, u64) -> u64), ("or", |x, y| x | y), ("xor", |x, y| x ^ y)]
    {
        let all = a.into_iter().reduce(fold).unwrap();
        assert_eq!(run(&format!("redux.sync.{name}.b32 %d, %a, -1;")), [all; 32], "{name}");
    }
    assert_eq!(run("redux.sync.max.u32 %d, %a, -1;"), [a.into_iter().max().unwrap(); 32]);
    assert_eq!(run("redux.sync.add.s32 %d, %a, -1;"), [a.iter().sum::<u64>() & 0xffff_ffff; 32]);
}
