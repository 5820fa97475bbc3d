//! AMX tiles. The compiler has no stable names for them, so they are driven by assembly, and only here.
//!
//! A tile holds 16 rows of 64 bytes. Sums are in tiles 0 to 3, rows in 4 (and 5), weights in the others. The compiler
//! never uses tiles, so between a task's blocks of assembly they keep what they hold.

use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _xgetbv},
    },
    sync::OnceLock,
};

use super::{INPUTS, PairTask, TILE};
use crate::{
    gemm::{PANEL, finish},
    simd::{Avx512, Simd},
};

/// Numbers of a tile of sums.
const SUMS: usize = TILE * PANEL;

/// Whether the processor has tiles of bf16 and the system lets this process use them.
pub(super) fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        const TILE_STATE: u64 = 0b11 << 17;
        let features = __cpuid_count(7, 0).edx;
        // SAFETY: a processor with AVX-512, which was found before, has `xgetbv`.
        let saved = || unsafe { saved_state() };
        features & (BF16 | TILES) == BF16 | TILES && saved() & TILE_STATE == TILE_STATE && is_permitted()
    })
}

/// State components that the system saves.
#[target_feature(enable = "xsave")]
unsafe fn saved_state() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel for the tiles' state; it is given to all threads of the process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call reads its two numbers and changes no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
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
        shapes.row_bytes[tile] = 64;
        shapes.rows[tile] = TILE as u8;
        tile += 1;
    }
    shapes
};

#[repr(C, align(64))]
struct Sums([f32; 4 * SUMS]);

/// # Safety
/// As [`PairTask::run`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn run(task: &PairTask) {
    let mut sums = Sums([0.0; 4 * SUMS]);
    let panels = task.outputs.div_ceil(PANEL);
    // SAFETY: the machine has tiles; rows are padded to whole tiles, two of them beyond one, and panels exist.
    unsafe {
        asm!("ldtilecfg [{shapes}]", shapes = in(reg) &WHOLE, options(nostack, readonly, preserves_flags));
        let mut row = 0;
        while row < task.rows {
            let wide = task.rows - row <= TILE;
            let (tall, step) = if wide { (1, 4) } else { (2, 2) };
            for panel in (0..panels).step_by(step) {
                if wide {
                    one_by_four(task, row, panel, &mut sums);
                } else {
                    two_by_two(task, row, panel, &mut sums);
                }
                for (index, sums) in sums.0.chunks_exact(SUMS).enumerate() {
                    store(task, row + index / step * TILE, panel + index % step, panels, sums);
                }
            }
            row += tall * TILE;
        }
        asm!("tilerelease", options(nomem, nostack, preserves_flags));
    }
}

/// Sums of 16 rows and four panels.
#[target_feature(enable = "avx512f")]
unsafe fn one_by_four(task: &PairTask, row: usize, panel: usize, sums: &mut Sums) {
    // SAFETY: every tile lies in the rows and panels; the caller's contract.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x} + {x_row}]",
            "tileloadd tmm5, [{b0} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm5",
            "tileloadd tmm6, [{b1} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm6",
            "tileloadd tmm7, [{b2} + {line}]",
            "tdpbf16ps tmm2, tmm4, tmm7",
            "tileloadd tmm5, [{b3} + {line}]",
            "tdpbf16ps tmm3, tmm4, tmm5",
            "add {x}, 64",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "add {b2}, 1024",
            "add {b3}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            x = inout(reg) task.x.add(row * task.k) => _,
            b0 = inout(reg) task.panel(panel) => _,
            b1 = inout(reg) task.panel(panel + 1) => _,
            b2 = inout(reg) task.panel(panel + 2) => _,
            b3 = inout(reg) task.panel(panel + 3) => _,
            x_row = in(reg) 2 * task.k,
            line = in(reg) 64usize,
            steps = inout(reg) task.k / INPUTS => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            options(nostack)
        );
    }
}

/// Sums of 32 rows and two panels.
#[target_feature(enable = "avx512f")]
unsafe fn two_by_two(task: &PairTask, row: usize, panel: usize, sums: &mut Sums) {
    // SAFETY: every tile lies in the rows and panels; the caller's contract.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x0} + {x_row}]",
            "tileloadd tmm6, [{b0} + {line}]",
            "tileloadd tmm7, [{b1} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{x1} + {x_row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 64",
            "add {x1}, 64",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            x0 = inout(reg) task.x.add(row * task.k) => _,
            x1 = inout(reg) task.x.add((row + TILE) * task.k) => _,
            b0 = inout(reg) task.panel(panel) => _,
            b1 = inout(reg) task.panel(panel + 1) => _,
            x_row = in(reg) 2 * task.k,
            line = in(reg) 64usize,
            steps = inout(reg) task.k / INPUTS => _,
            sums = in(reg) sums.0.as_mut_ptr(),
            options(nostack)
        );
    }
}

/// Stores what is wanted of one tile's sums.
#[target_feature(enable = "avx512f")]
unsafe fn store(task: &PairTask, row: usize, panel: usize, panels: usize, sums: &[f32]) {
    if panel >= panels {
        return;
    }
    let (output, rows) = (panel * PANEL, task.rows.saturating_sub(row).min(TILE));
    for (r, sums) in sums.chunks_exact(PANEL).take(rows).enumerate() {
        // SAFETY: rows below `task.rows` and outputs below `task.outputs`; the caller's contract.
        unsafe {
            let y = task.y.add(task.y_rows.offset(row + r) + output);
            finish::<Avx512>(y, Avx512::load(sums.as_ptr()), task.outputs - output, task.accumulate);
        }
    }
}
