//! Which lane holds which elements of a matrix.
//!
//! With g = lane / 4 and t = lane % 4, the layouts of `mma.m16n8k16` with 16-bit inputs (PTX ISA, "Matrix fragments for
//! mma.m16n8k16"): register v, half h of a lane holds A[g + 8 (v % 2)][2t + h + 8 (v / 2)] and B[2t + h + 8v][g]
//! (k × n); f32 register v holds C[g + 8 (v / 2)][2t + v % 2].

use crate::alu::f32_of_bf16;

/// Registers of 32 lanes.
pub(crate) type Lanes = [u64; 32];

/// D = A B + C. The products are exact in f32, and are added in the order of k; a tensor core's order and rounding differ.
pub(crate) fn mma(a: &[Lanes; 4], b: &[Lanes; 2], c: &[Lanes; 4]) -> [Lanes; 4] {
    let (mut left, mut right, mut sum) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
    for lane in 0..32 {
        for v in 0..4 {
            let ((row, column), bits) = (a_place(lane, v), a[v][lane]);
            left[row][column] = f32_of_bf16(bits);
            left[row][column + 1] = f32_of_bf16(bits >> 16);
            let (row, column) = c_place(lane, v);
            sum[row][column] = f32::from_bits(c[v][lane] as u32);
        }
        for (v, register) in b.iter().enumerate() {
            let ((k, n), bits) = (b_place(lane, v), register[lane]);
            right[k][n] = f32_of_bf16(bits);
            right[k + 1][n] = f32_of_bf16(bits >> 16);
        }
    }
    for (row, sums) in left.iter().zip(&mut sum) {
        for (x, others) in row.iter().zip(&right) {
            sums.iter_mut().zip(others).for_each(|(sum, y)| *sum += x * y);
        }
    }
    let mut d = [[0; 32]; 4];
    for (v, register) in d.iter_mut().enumerate() {
        for (lane, bits) in register.iter_mut().enumerate() {
            let (row, column) = c_place(lane, v);
            *bits = sum[row][column].to_bits().into();
        }
    }
    d
}

/// Row and column of the first of a register's two elements of A.
fn a_place(lane: usize, v: usize) -> (usize, usize) {
    (lane / 4 + 8 * (v % 2), 2 * (lane % 4) + 8 * (v / 2))
}

/// Row (k) and column (n) of the first of a register's two elements of B; the second lies in the next row.
fn b_place(lane: usize, v: usize) -> (usize, usize) {
    (2 * (lane % 4) + 8 * v, lane / 4)
}

fn c_place(lane: usize, v: usize) -> (usize, usize) {
    (lane / 4 + 8 * (v / 2), 2 * (lane % 4) + v % 2)
}

/// What `ldmatrix` gives each lane of one 8 × 8 matrix: elements 2t and 2t + 1 of row g, or of column g if transposed.
pub(crate) fn fragment(matrix: &[[u16; 8]; 8], transposed: bool) -> Lanes {
    std::array::from_fn(|lane| {
        let (g, t) = (lane / 4, 2 * (lane % 4));
        let (low, high) =
            if transposed { (matrix[t][g], matrix[t + 1][g]) } else { (matrix[g][t], matrix[g][t + 1]) };
        u64::from(low) | u64::from(high) << 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alu::bf16_of;

    /// NVIDIA's CuTe headers give the layouts as strides (`SM80_16x8x16_F32BF16BF16F32_TN`): A as m + 16k = 32t + g +
    /// 16 v0 + 8 v1 + 128 v2, B as n + 8k = 16t + g + 8 v0 + 64 v1, C as m + 16n = 32t + g + 16 v0 + 8 v1.
    #[test]
    fn places_are_those_of_the_published_layouts() {
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for v in 0..4 {
                let (m, k) = a_place(lane, v);
                for half in 0..2 {
                    assert_eq!(
                        m + 16 * (k + half),
                        32 * t + g + 16 * half + 8 * (v % 2) + 128 * (v / 2),
                        "A {lane} {v}"
                    );
                }
                let (m, n) = c_place(lane, v);
                assert_eq!(m + 16 * n, 32 * t + g + 16 * (v % 2) + 8 * (v / 2), "C {lane} {v}");
            }
            for v in 0..2 {
                let (k, n) = b_place(lane, v);
                for half in 0..2 {
                    assert_eq!(n + 8 * (k + half), 16 * t + g + 8 * half + 64 * v, "B {lane} {v}");
                }
            }
        }
    }

    #[test]
    fn mma_multiplies_matrices() {
        let noise = |i: usize| ((i * 37 + 11) % 19) as f32 - 9.0;
        let (a, b, c) = (
            |m: usize, k: usize| noise(m * 16 + k),
            |k: usize, n: usize| noise(k * 8 + n + 5),
            |m: usize, n: usize| noise(m + 3 * n),
        );
        let pair = |low: f32, high: f32| bf16_of(low) | bf16_of(high) << 16;
        let lanes = |f: &dyn Fn(usize, usize) -> u64, v: usize| std::array::from_fn(|lane| f(lane, v));
        let a_bits = |lane: usize, v: usize| {
            let (g, t) = (lane / 4, lane % 4);
            let (m, k) = (g + 8 * (v % 2), 2 * t + 8 * (v / 2));
            pair(a(m, k), a(m, k + 1))
        };
        let b_bits = |lane: usize, v: usize| {
            let (g, t) = (lane / 4, lane % 4);
            pair(b(2 * t + 8 * v, g), b(2 * t + 8 * v + 1, g))
        };
        let c_bits =
            |lane: usize, v: usize| u64::from(c(lane / 4 + 8 * (v / 2), 2 * (lane % 4) + v % 2).to_bits());
        let d = mma(
            &std::array::from_fn(|v| lanes(&a_bits, v)),
            &std::array::from_fn(|v| lanes(&b_bits, v)),
            &std::array::from_fn(|v| lanes(&c_bits, v)),
        );
        for lane in 0..32 {
            for (v, register) in d.iter().enumerate() {
                let (m, n) = (lane / 4 + 8 * (v / 2), 2 * (lane % 4) + v % 2);
                let expected: f32 = c(m, n) + (0..16).map(|k| a(m, k) * b(k, n)).sum::<f32>();
                assert_eq!(f32::from_bits(register[lane] as u32), expected, "[{m}][{n}]");
            }
        }
    }

    #[test]
    fn fragments_hold_two_neighbours_of_a_row_or_column() {
        let matrix: [[u16; 8]; 8] =
            std::array::from_fn(|row| std::array::from_fn(|column| (10 * row + column) as u16));
        let (plain, transposed) = (fragment(&matrix, false), fragment(&matrix, true));
        // Lane 13: g = 3, t = 1.
        assert_eq!(plain[13], 32 | 33 << 16);
        assert_eq!(transposed[13], 23 | 33 << 16);
    }
}
