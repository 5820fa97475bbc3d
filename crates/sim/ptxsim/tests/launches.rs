//! Whole launches: memory, barriers, divergence, asynchronous copies, and what is told about wrong ones.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use gqla_ptxsim::{
    Architecture, FaultKind, GlobalMemory, Launch, LaunchError, Report, Schedule, launch, parse,
};
use proptest::prelude::*;

const HEAD: &str = ".version 8.8\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 smem[];\n\
    .visible .entry k(.param .u64 from, .param .u64 to)\n{\n.reg .b32 %t, %r<9>;\n.reg .b64 %from, %to, %at, %rd<9>;\n\
    .reg .f32 %f<9>;\n.reg .pred %p<4>;\nmov.u32 %t, %tid.x;\nld.param.u64 %from, [from];\nld.param.u64 %to, [to];\n";
/// Lines before a body's first.
const HEAD_LINES: u32 = 13;

struct Run {
    report: Report,
    out: Vec<u8>,
}

impl Run {
    fn words(&self) -> Vec<u32> {
        self.out.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }

    fn kinds(&self) -> Vec<(FaultKind, u64)> {
        self.report.faults.counts.iter().map(|(kind, count)| (*kind, *count)).collect()
    }
}

fn run_with(body: &str, threads: u32, shared: u32, input: &[u8], out: usize, schedule: Schedule) -> Run {
    let module = parse(&format!("{HEAD}{body}\nret;\n}}\n")).unwrap();
    let mut memory = GlobalMemory::new(1 << 20);
    let (from, to) = (memory.allocate(input.len() as u64).unwrap(), memory.allocate(out as u64).unwrap());
    memory.write(from, input).unwrap();
    let report = launch(
        &Launch {
            kernel: module.kernel("k").unwrap(),
            grid: [1; 3],
            block: [threads, 1, 1],
            dynamic_shared: shared,
            params: &[from.to_le_bytes(), to.to_le_bytes()].concat(),
            architecture: Architecture::of(9, 0).unwrap(),
            schedule,
            instruction_limit: 100_000,
        },
        &mut memory,
    )
    .unwrap();
    let mut bytes = vec![0; out];
    memory.read(to, &mut bytes).unwrap();
    Run { report, out: bytes }
}

fn run(body: &str, threads: u32, shared: u32) -> Run {
    let input: Vec<u8> = (0..1024u32).flat_map(u32::to_le_bytes).collect();
    run_with(body, threads, shared, &input, 1024, Schedule::Forward)
}

/// Puts `%r8` of each thread into the output.
const STORE: &str = "mul.wide.u32 %rd8, %t, 4;\nadd.s64 %rd8, %to, %rd8;\nst.global.u32 [%rd8], %r8;\n";

/// Writes `%t` to shared word `%t` and reads that of the thread 33 further on, among 64, into `%r8`.
fn exchange(between: &str) -> String {
    format!(
        "mov.u32 %r0, smem;\nshl.b32 %r1, %t, 2;\nadd.s32 %r1, %r0, %r1;\nst.shared.u32 [%r1], %t;\n{between}\n\
        add.s32 %r2, %t, 33;\nand.b32 %r2, %r2, 63;\nshl.b32 %r2, %r2, 2;\nadd.s32 %r2, %r0, %r2;\nld.shared.u32 %r8, [%r2];\n{STORE}"
    )
}

#[test]
fn a_barrier_puts_threads_in_order() {
    for schedule in [Schedule::Forward, Schedule::Reverse, Schedule::Shuffled(7)] {
        let run = run_with(&exchange("bar.sync 0;"), 64, 256, &[0], 256, schedule);
        assert!(run.report.faults.is_empty(), "{:?}", run.report.faults.first);
        assert_eq!(run.words(), (0..64).map(|t| (t + 33) % 64).collect::<Vec<u32>>());
        assert_eq!(run.report.counters.barriers, 1);
    }
    let missing = run(&exchange(""), 64, 256);
    // A word is two places. Warp 0 reads 31 words that warp 1 has not written yet and one of its own lane 0; warp 1 writes
    // over what warp 0 read, reads 31 words of warp 0 and one of its own lane 0.
    let mut expected = [
        (FaultKind::SharedUninitialised, 62),
        (FaultKind::SharedReadAfterWrite, 2 + 62 + 2),
        (FaultKind::SharedWriteAfterRead, 62),
    ];
    expected.sort();
    assert_eq!(missing.kinds(), expected);
    // Fences order what one thread does, and make nobody wait.
    for fence in ["membar.cta;", "membar.gl;", "fence.acq_rel.gpu;", "fence.sc.sys;"] {
        assert_eq!(run(&exchange(fence), 64, 256).kinds(), expected, "{fence}");
    }
}

#[test]
fn lanes_of_one_warp_need_a_barrier_too() {
    let neighbour = |between: &str| {
        run(
            &format!(
                "mov.u32 %r0, smem;\nshl.b32 %r1, %t, 2;\nadd.s32 %r1, %r0, %r1;\nst.shared.u32 [%r1], %t;\n{between}\n\
                xor.b32 %r2, %r1, 4;\nld.shared.u32 %r8, [%r2];\n{STORE}"
            ),
            32,
            128,
        )
    };
    assert_eq!(neighbour("").kinds(), [(FaultKind::SharedReadAfterWrite, 64)]);
    let synced = neighbour("bar.warp.sync -1;");
    assert!(synced.report.faults.is_empty());
    assert_eq!(synced.words()[..32], (0..32).map(|t| t ^ 1).collect::<Vec<u32>>());
}

#[test]
fn diverging_lanes_meet_again() {
    // A loop of lane-many turns, then a shuffle that needs all lanes.
    let body = format!(
        "mov.u32 %r8, 0;\nmov.u32 %r1, %t;\nloop:\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra done;\nadd.u32 %r8, %r8, %r1;\nsub.u32 %r1, %r1, 1;\nbra loop;\n\
        done:\nshfl.sync.bfly.b32 %r8, %r8, 1, 31, -1;\n{STORE}"
    );
    let run = run(&body, 32, 0);
    assert!(run.report.faults.is_empty(), "{:?}", run.report.faults.first);
    assert_eq!(run.words()[..32], (0..32u32).map(|t| (t ^ 1) * ((t ^ 1) + 1) / 2).collect::<Vec<_>>());
}

#[test]
fn collectives_that_lanes_miss_are_told() {
    let half = "setp.lt.u32 %p1, %t, 16;\n";
    for body in [
        format!("{half}@%p1 shfl.sync.bfly.b32 %r8, %t, 1, 31, -1;"),
        format!("{half}@%p1 exit;\nbar.warp.sync -1;"),
        format!("{half}@%p1 bra out;\nvote.sync.any.pred %p2, %p1, -1;\nout:"),
        "shfl.sync.idx.b32 %r8, %t, 20, 31, 65535;".replace("shfl", "@%p1 shfl").replacen(
            "@%p1",
            &format!("{half}@%p1"),
            1,
        ),
    ] {
        let run = run(&body, 32, 0);
        assert!(run.report.faults.count(FaultKind::DivergentCollective) > 0, "{body}: {:?}", run.kinds());
    }
    let fine = run(&format!("{half}@%p1 shfl.sync.bfly.b32 %r8, %t, 1, 31, 65535;"), 32, 0);
    assert!(fine.report.faults.is_empty(), "{:?}", fine.report.faults.first);
}

#[test]
fn copies_arrive_when_they_are_waited_for() {
    let copy = |wait: &str| {
        run(
            &format!(
                "mov.u32 %r0, smem;\nshl.b32 %r1, %t, 4;\nadd.s32 %r1, %r0, %r1;\nmul.wide.u32 %rd1, %t, 16;\nadd.s64 %rd1, %from, %rd1;\n\
                mov.u32 %r3, 8;\ncp.async.cg.shared.global.L2::128B [%r1], [%rd1], 16, %r3;\ncp.async.commit_group;\n\
                cp.async.cg.shared.global [%r1+0], [%rd1], 16;\ncp.async.commit_group;\n{wait}\nld.shared.u32 %r8, [%r1+4];\nld.shared.u32 %r4, [%r1+512];\n"
            )
            .replace("[%r1+0], [%rd1], 16;", "[%r5], [%rd1], 16;")
            .replace("cp.async.commit_group;\ncp", "cp.async.commit_group;\nadd.s32 %r5, %r1, 512;\ncp"),
            32,
            1024,
        )
    };
    let all = copy("cp.async.wait_group 0;");
    assert!(all.report.faults.is_empty(), "{:?}", all.report.faults.first);
    assert_eq!(all.report.counters.global_loads.bytes, 32 * (8 + 16));
    assert_eq!(copy("cp.async.wait_all;").kinds(), []);
    // The second group, of two places in each word read, has not arrived.
    let one_too_few = copy("cp.async.wait_group 1;");
    assert_eq!(one_too_few.report.faults.count(FaultKind::SharedInFlight), 64);
    assert_eq!(copy("").report.faults.count(FaultKind::SharedInFlight), 128);
}

#[test]
fn a_short_source_fills_with_zeros() {
    let body = format!(
        "mov.u32 %r0, smem;\nshl.b32 %r1, %t, 4;\nadd.s32 %r1, %r0, %r1;\nmov.u32 %r3, 0;\ncp.async.cg.shared.global [%r1], [%to], 16, %r3;\n\
        cp.async.wait_all;\nld.shared.u32 %r8, [%r1+12];\n{STORE}"
    );
    let run = run(&body, 32, 512);
    assert!(run.report.faults.is_empty(), "nothing is read: {:?}", run.report.faults.first);
    assert_eq!(run.words()[..32], [0; 32]);
    assert_eq!(run.report.counters.global_loads.bytes, 0);
}

#[test]
fn what_a_launch_adds_lies_behind_what_a_kernel_declares() {
    let body = format!(
        ".shared .align 4 .b8 own[20];\nmov.u32 %r0, own;\nmov.u32 %r1, smem;\nshl.b32 %r2, %t, 2;\nadd.s32 %r3, %r1, %r2;\nst.shared.u32 [%r3], %t;\n\
        setp.eq.u32 %p1, %t, 0;\n@%p1 st.shared.u32 [%r0+16], 7;\nbar.sync 0;\nld.shared.u32 %r8, [smem+4];\nshl.b32 %r1, %r1, 8;\nadd.u32 %r8, %r8, %r1;\n{STORE}"
    );
    let run = run(&body, 32, 128);
    assert!(run.report.faults.is_empty(), "{:?}", run.report.faults.first);
    assert_eq!(run.words()[0], 32 << 8 | 1, "20 bytes, then the next multiple of 16");
}

#[test]
fn accesses_outside_are_told_with_line_and_thread() {
    let case = |line: &str| {
        run(
            &format!("mul.wide.u32 %rd1, %t, 4;\nadd.s64 %rd2, %from, %rd1;\nmov.u32 %r0, smem;\n{line}"),
            32,
            64,
        )
    };
    for (line, kind, count) in [
        ("ld.global.u32 %r1, [%rd2+4096];", FaultKind::GlobalOutOfBoundsRead, 32),
        ("ld.global.u32 %r1, [%rd2+-4];", FaultKind::GlobalOutOfBoundsRead, 1),
        ("st.global.u32 [%rd2+4000], %t;", FaultKind::GlobalOutOfBoundsWrite, 8),
        ("ld.global.u32 %r1, [%to];", FaultKind::GlobalUninitialised, 32),
        ("ld.global.v2.u32 {%r1, %r2}, [%rd2];", FaultKind::Misaligned, 16),
        ("st.shared.u32 [%r0+64], %t;", FaultKind::SharedOutOfBounds, 32),
        ("ld.shared.u32 %r1, [%r0];", FaultKind::SharedUninitialised, 32 * 2),
        ("ld.param.u32 %r1, [from+16];", FaultKind::OutOfBounds, 32),
        ("st.param.u32 [from], %r1;", FaultKind::ReadOnly, 32),
        ("trap;", FaultKind::Trap, 1),
        ("here:\nbra here;", FaultKind::Endless, 1),
    ] {
        let run = case(line);
        assert_eq!(run.report.faults.count(kind), count, "{line}: {:?}", run.kinds());
    }
    let first = case("st.global.u32 [%rd2+4000], %t;").report.faults.first[0].to_string();
    assert!(
        first.starts_with(&format!(
            "GlobalOutOfBoundsWrite at PTX line {}, block [0, 0, 0], thread 24: 4 bytes at ",
            HEAD_LINES + 4
        )),
        "{first}"
    );
    assert!(first.ends_with("; `st.global.u32 [%rd2+4000], %t`"), "{first}");
}

#[test]
fn generic_addresses_reach_every_space() {
    let body = ".local .align 4 .b8 depot[8];\nmov.u64 %rd0, smem;\ncvta.shared.u64 %rd0, %rd0;\nmov.u64 %rd1, depot;\ncvta.local.u64 %rd1, %rd1;\n\
        mul.wide.u32 %rd2, %t, 4;\nadd.s64 %rd0, %rd0, %rd2;\nst.u32 [%rd0], %t;\nst.u32 [%rd1+4], %t;\nld.u32 %r1, [%rd0];\nld.u32 %r2, [%rd1+4];\n\
        ld.local.u32 %r3, [depot+4];\nadd.u32 %r8, %r1, %r2;\nadd.u32 %r8, %r8, %r3;\nadd.s64 %rd3, %to, %rd2;\nst.u32 [%rd3], %r8;";
    let run = run(body, 32, 128);
    assert!(run.report.faults.is_empty(), "{:?}", run.report.faults.first);
    assert_eq!(run.words()[..32], (0..32).map(|t| 3 * t).collect::<Vec<u32>>());
    assert_eq!(run.report.counters.local_bytes, 32 * 4 * 3);
}

#[test]
fn atomics_lose_nothing() {
    let body = |between: &str| {
        format!(
            "mov.u32 %r0, smem;\nsetp.eq.u32 %p1, %t, 0;\n@%p1 st.shared.u32 [%r0], 5;\n{between}\natom.shared.add.u32 %r1, [%r0], 2;\n\
            red.shared.max.u32 [%r0], 3;\nbar.sync 0;\nld.shared.u32 %r8, [%r0];\nbar.sync 0;\n\
            atom.shared.cas.b32 %r2, [%r0], 133, -1;\nbar.sync 0;\nld.shared.u32 %r3, [%r0];\nxor.b32 %r8, %r8, %r3;\n{STORE}"
        )
    };
    let right = run(&body("bar.sync 0;"), 64, 4);
    assert!(right.report.faults.is_empty(), "{:?}", right.report.faults.first);
    assert_eq!(right.words()[..64], [133 ^ u32::MAX; 64]);
    assert_eq!(right.report.counters.atomics, 6);
    // Both atomics of the other 63 threads race with the plain store, but not with each other. A word is two places.
    assert_eq!(run(&body(""), 64, 4).kinds(), [(FaultKind::SharedWriteAfterWrite, 63 * 2 * 2)]);
}

/// One m16n8k16 of matrices that came through `ldmatrix`: B as its transpose, plainly, and as itself, transposed.
#[test]
fn matrices_go_through_ldmatrix_and_mma() {
    let element = |i: usize| ((i * 29 + 3) % 17) as f32 - 8.0;
    let a: Vec<f32> = (0..256).map(element).collect();
    let b: Vec<f32> = (0..128).map(|i| element(i + 7)).collect();
    let bf16 = |x: &f32| (x.to_bits() >> 16) as u16;
    let transposed: Vec<f32> = (0..128).map(|i| b[i % 16 * 8 + i / 16]).collect();
    // A is 16 × 16 in rows of 32 bytes; B is 16 × 8 in rows of 16, or 8 × 16 in rows of 32.
    let a_row = "and.b32 %r1, %t, 15;\nshl.b32 %r1, %r1, 5;\nshr.u32 %r2, %t, 4;\nshl.b32 %r2, %r2, 4;\nadd.s32 %r1, %r1, %r2;\nadd.s32 %r1, %r0, %r1;\n";
    let plain = "and.b32 %r2, %t, 7;\nshl.b32 %r2, %r2, 5;\nshr.u32 %r3, %t, 3;\nand.b32 %r3, %r3, 1;\nshl.b32 %r3, %r3, 4;\nadd.s32 %r2, %r2, %r3;\nadd.s32 %r2, %r0, %r2;\n\
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%b0, %b1}, [%r2+512];\n";
    let trans = "and.b32 %r2, %t, 15;\nshl.b32 %r2, %r2, 4;\nadd.s32 %r2, %r0, %r2;\nldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%b0, %b1}, [%r2+512];\n";
    for (load_b, b_bytes) in [(plain, &transposed), (trans, &b)] {
        let input: Vec<u8> = a.iter().chain(b_bytes).map(bf16).flat_map(u16::to_le_bytes).collect();
        let body = format!(
            ".reg .b32 %a<4>, %b<2>;\nmov.u32 %r0, smem;\nmul.wide.u32 %rd1, %t, 16;\nadd.s64 %rd1, %from, %rd1;\nshl.b32 %r1, %t, 4;\nadd.s32 %r1, %r0, %r1;\n\
            cp.async.cg.shared.global [%r1], [%rd1], 16;\nadd.s64 %rd2, %rd1, 512;\nadd.s32 %r2, %r1, 512;\nsetp.lt.u32 %p1, %t, 16;\n@%p1 cp.async.cg.shared.global [%r2], [%rd2], 16;\n\
            cp.async.wait_all;\nbar.sync 0;\n{a_row}ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%a0, %a1, %a2, %a3}}, [%r1];\n{load_b}\
            mov.f32 %f0, 0f3F800000;\nmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f1, %f2, %f3, %f4}}, {{%a0, %a1, %a2, %a3}}, {{%b0, %b1}}, {{%f0, %f0, %f0, %f0}};\n\
            mul.wide.u32 %rd8, %t, 16;\nadd.s64 %rd8, %to, %rd8;\nst.global.v4.f32 [%rd8], {{%f1, %f2, %f3, %f4}};"
        );
        let run = run_with(&body, 32, 1024, &input, 512, Schedule::Forward);
        assert!(run.report.faults.is_empty(), "{:?}", run.report.faults.first);
        for (lane, values) in run.words().chunks(4).enumerate() {
            for (v, bits) in values.iter().enumerate() {
                let (m, n) = (lane / 4 + 8 * (v / 2), 2 * (lane % 4) + v % 2);
                let expected = 1.0 + (0..16).map(|k| a[m * 16 + k] * b[k * 8 + n]).sum::<f32>();
                assert_eq!(f32::from_bits(*bits), expected, "[{m}][{n}]");
            }
        }
        let counters = &run.report.counters;
        assert_eq!((counters.mma, counters.ldmatrix), (1, 2));
        assert_eq!((counters.shared_bytes_read, counters.shared_bytes_written), (512 + 256, 512 + 256));
    }
}

#[test]
fn traffic_is_counted_by_request_and_buffer() {
    let body = format!(
        "shl.b32 %r1, %t, 5;\ncvt.u64.u32 %rd1, %r1;\nadd.s64 %rd1, %from, %rd1;\nld.global.u32 %r8, [%rd1];\n{STORE}"
    );
    let run = run(&body, 32, 0);
    let counters = &run.report.counters;
    assert_eq!(
        (counters.global_loads.bytes, counters.global_loads.sectors, counters.global_loads.requests),
        (128, 32, 1)
    );
    assert_eq!(
        (counters.global_stores.bytes, counters.global_stores.sectors, counters.global_stores.requests),
        (128, 4, 1)
    );
    let traffic: Vec<(u64, u64, u64)> =
        run.report.buffers.values().map(|t| (t.size, t.read, t.written)).collect();
    assert_eq!(traffic, [(4096, 128, 0), (1024, 0, 128)]);
}

#[test]
fn limits_are_those_of_the_architecture() {
    let text = format!(
        "{}ret;\n}}\n",
        HEAD.replace("{\n.reg", ".maxntid 128, 1, 1\n{\n.shared .b8 own[1024];\n.reg")
    );
    let module = parse(&text).unwrap();
    let start = |capability: (u32, u32), threads: u32, grid: [u32; 3], shared: u32, params: &[u8]| {
        let launched = Launch {
            kernel: module.kernel("k").unwrap(),
            grid,
            block: [threads, 1, 1],
            dynamic_shared: shared,
            params,
            architecture: Architecture::of(capability.0, capability.1).unwrap(),
            schedule: Schedule::Forward,
            instruction_limit: 1000,
        };
        launch(&launched, &mut GlobalMemory::new(0)).map(|report| report.counters.blocks)
    };
    let params = [0; 16];
    assert_eq!(start((9, 0), 128, [2, 3, 4], 226 << 10, &params), Ok(24));
    assert!(matches!(start((9, 0), 128, [1; 3], 227 << 10, &params), Err(LaunchError::SharedMemory { .. })));
    assert_eq!(start((8, 6), 128, [1; 3], 98 << 10, &params), Ok(1));
    let refused = start((8, 6), 128, [1; 3], 99 << 10, &params).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "k: 1024 bytes of shared memory declared and 101376 asked for, a block of sm_86 has at most 101376"
    );
    assert!(matches!(
        start((8, 0), 160, [1; 3], 0, &params),
        Err(LaunchError::Threads { threads: 160, limit: 128, .. })
    ));
    assert!(matches!(start((8, 0), 0, [1; 3], 0, &params), Err(LaunchError::Dimensions { .. })));
    assert!(matches!(start((8, 0), 32, [1, 65536, 1], 0, &params), Err(LaunchError::Dimensions { .. })));
    assert_eq!(
        start((8, 0), 32, [1; 3], 0, &[0; 8]),
        Err(LaunchError::Params { kernel: "k".into(), got: 8, expected: 16 })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A sum over a block through shared memory is the same in every order of warps and for every size of block.
    #[test]
    fn order_of_warps_changes_nothing(threads in 1u32..=256, seed in any::<u64>()) {
        let body = format!(
            "mov.u32 %r0, smem;\nshl.b32 %r1, %t, 2;\nadd.s32 %r1, %r0, %r1;\nst.shared.u32 [%r1], %t;\nbar.sync 0;\nmov.u32 %r8, 0;\nmov.u32 %r2, %ntid.x;\n\
            sum:\nsub.u32 %r2, %r2, 1;\nshl.b32 %r3, %r2, 2;\nadd.s32 %r3, %r0, %r3;\nld.shared.u32 %r4, [%r3];\nadd.u32 %r8, %r8, %r4;\nsetp.ne.u32 %p1, %r2, 0;\n@%p1 bra sum;\n{STORE}"
        );
        let run = run_with(&body, threads, 4 * threads, &[0], 4 * threads as usize, Schedule::Shuffled(seed));
        prop_assert!(run.report.faults.is_empty(), "{:?}", run.report.faults.first);
        prop_assert_eq!(run.words(), vec![threads * (threads - 1) / 2; threads as usize]);
    }
}
