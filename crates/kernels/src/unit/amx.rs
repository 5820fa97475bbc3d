//! AMX tiles. The compiler has no stable names for them, so they are driven by assembly, and only here.
//!
//! A tile holds 16 rows of 64 bytes. Sums are in tiles 0 to 3, inputs in 4 (and 5), weights in the others. The compiler
//! never uses tiles, so between a task's blocks of assembly they keep what they hold.

use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _mm512_loadu_si512, _xgetbv},
    },
    sync::OnceLock,
};

use super::{
    Narrow, STEP, TILE, UnitTask,
    numbers::{Bf16, Int8, Numbers},
};
use crate::{
    gemm::{PANEL, finish},
    simd::Avx512,
};

/// Sums of a tile.
const SUMS: usize = TILE * PANEL;

/// Whether the processor has tiles of these numbers and the system lets this process use them.
pub(super) fn has(numbers: Narrow) -> bool {
    const TILES: u32 = 1 << 24;
    let numbers = match numbers {
        Narrow::Bf16 => 1 << 22,
        Narrow::Int8 => 1 << 25,
    };
    __cpuid_count(7, 0).edx & (TILES | numbers) == TILES | numbers && is_permitted()
}

fn is_permitted() -> bool {
    const TILE_STATE: u64 = 0b11 << 17;
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    // SAFETY: a processor with tiles has `xgetbv`.
    *PERMITTED.get_or_init(|| unsafe { saved_state() } & TILE_STATE == TILE_STATE && ask())
}

/// State components that the system saves.
#[target_feature(enable = "xsave")]
unsafe fn saved_state() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel for the tiles' state; it is given to all threads of the process.
#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call reads its two numbers and changes no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// Shapes of the eight tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static WHOLE: Shapes = {
    let mut shapes =
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        shapes.row_bytes[tile] = STEP as u16;
        shapes.rows[tile] = TILE as u8;
        tile += 1;
    }
    shapes
};

/// Four tiles of sums.
#[repr(C, align(64))]
pub(super) struct Sums([i32; 4 * SUMS]);

/// Numbers that tiles multiply.
pub(super) trait Tiles: Numbers {
    /// Sums of one tile of inputs and four panels.
    unsafe fn one_by_four(task: &UnitTask, row: usize, panel: usize, sums: &mut Sums);
    /// Sums of two tiles of inputs and two panels.
    unsafe fn two_by_two(task: &UnitTask, row: usize, panel: usize, sums: &mut Sums);
}

/// # Safety
/// As [`UnitTask::run`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn run<N: Tiles>(task: &UnitTask) {
    let mut sums = Sums([0; 4 * SUMS]);
    let (rows, panels) = (N::ROWS * task.rows, task.outputs.div_ceil(PANEL));
    // SAFETY: the machine has tiles; rows are padded to whole tiles, two of them beyond one, and panels exist.
    unsafe {
        asm!("ldtilecfg [{shapes}]", shapes = in(reg) &WHOLE, options(nostack, readonly, preserves_flags));
        let mut row = 0;
        while row < rows {
            let wide = rows - row <= TILE;
            let (tall, step) = if wide { (1, 4) } else { (2, 2) };
            for panel in (0..panels).step_by(step) {
                if wide {
                    N::one_by_four(task, row, panel, &mut sums);
                } else {
                    N::two_by_two(task, row, panel, &mut sums);
                }
                for (index, sums) in sums.0.chunks_exact(SUMS).enumerate() {
                    store::<N>(task, row + index / step * TILE, panel + index % step, panels, sums);
                }
            }
            row += tall * TILE;
        }
        asm!("tilerelease", options(nomem, nostack, preserves_flags));
    }
}

/// Stores what is wanted of one tile's sums.
#[inline(always)]
unsafe fn store<N: Numbers>(task: &UnitTask, tile_row: usize, panel: usize, panels: usize, sums: &[i32]) {
    if panel >= panels {
        return;
    }
    let (output, first) = (panel * PANEL, tile_row / N::ROWS);
    let rows = task.rows.saturating_sub(first).min(TILE / N::ROWS);
    for (r, sums) in sums.chunks_exact(N::ROWS * PANEL).take(rows).enumerate() {
        // SAFETY: rows and outputs that exist; the caller's contract.
        unsafe {
            let last = sums[(N::ROWS - 1) * PANEL..].as_ptr();
            let sums = [_mm512_loadu_si512(sums.as_ptr().cast()), _mm512_loadu_si512(last.cast())];
            let results = N::results(task, first + r, output, sums);
            let y = task.y.add(task.y_rows.offset(first + r) + output);
            finish::<Avx512>(y, results, task.outputs - output, task.accumulate);
        }
    }
}

macro_rules! tiles {
    ($numbers:ty, $multiply:literal) => {
        impl Tiles for $numbers {
            unsafe fn one_by_four(task: &UnitTask, row: usize, panel: usize, sums: &mut Sums) {
                // SAFETY: every tile lies in the rows and panels; the caller's contract.
                unsafe {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        "tileloadd tmm4, [{x} + {row_bytes}]",
                        "tileloadd tmm5, [{w0} + {line}]",
                        concat!($multiply, " tmm0, tmm4, tmm5"),
                        "tileloadd tmm6, [{w1} + {line}]",
                        concat!($multiply, " tmm1, tmm4, tmm6"),
                        "tileloadd tmm7, [{w2} + {line}]",
                        concat!($multiply, " tmm2, tmm4, tmm7"),
                        "tileloadd tmm5, [{w3} + {line}]",
                        concat!($multiply, " tmm3, tmm4, tmm5"),
                        "add {x}, 64",
                        "add {w0}, 1024",
                        "add {w1}, 1024",
                        "add {w2}, 1024",
                        "add {w3}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{sums} + {line}], tmm0",
                        "tilestored [{sums} + {line} + 1024], tmm1",
                        "tilestored [{sums} + {line} + 2048], tmm2",
                        "tilestored [{sums} + {line} + 3072], tmm3",
                        x = inout(reg) task.tile_row(row) => _,
                        w0 = inout(reg) task.panel(panel) => _,
                        w1 = inout(reg) task.panel(panel + 1) => _,
                        w2 = inout(reg) task.panel(panel + 2) => _,
                        w3 = inout(reg) task.panel(panel + 3) => _,
                        row_bytes = in(reg) task.row_bytes,
                        line = in(reg) STEP,
                        steps = inout(reg) task.row_bytes / STEP => _,
                        sums = in(reg) sums.0.as_mut_ptr(),
                        options(nostack)
                    );
                }
            }

            unsafe fn two_by_two(task: &UnitTask, row: usize, panel: usize, sums: &mut Sums) {
                // SAFETY: every tile lies in the rows and panels; the caller's contract.
                unsafe {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "2:",
                        "tileloadd tmm4, [{x0} + {row_bytes}]",
                        "tileloadd tmm6, [{w0} + {line}]",
                        "tileloadd tmm7, [{w1} + {line}]",
                        concat!($multiply, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm5, [{x1} + {row_bytes}]",
                        concat!($multiply, " tmm1, tmm4, tmm7"),
                        concat!($multiply, " tmm2, tmm5, tmm6"),
                        concat!($multiply, " tmm3, tmm5, tmm7"),
                        "add {x0}, 64",
                        "add {x1}, 64",
                        "add {w0}, 1024",
                        "add {w1}, 1024",
                        "dec {steps}",
                        "jnz 2b",
                        "tilestored [{sums} + {line}], tmm0",
                        "tilestored [{sums} + {line} + 1024], tmm1",
                        "tilestored [{sums} + {line} + 2048], tmm2",
                        "tilestored [{sums} + {line} + 3072], tmm3",
                        x0 = inout(reg) task.tile_row(row) => _,
                        x1 = inout(reg) task.tile_row(row + TILE) => _,
                        w0 = inout(reg) task.panel(panel) => _,
                        w1 = inout(reg) task.panel(panel + 1) => _,
                        row_bytes = in(reg) task.row_bytes,
                        line = in(reg) STEP,
                        steps = inout(reg) task.row_bytes / STEP => _,
                        sums = in(reg) sums.0.as_mut_ptr(),
                        options(nostack)
                    );
                }
            }
        }
    };
}

tiles!(Bf16, "tdpbf16ps");
tiles!(Int8, "tdpbsud");
