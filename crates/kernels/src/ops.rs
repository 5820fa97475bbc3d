//! Row-wise operations: normalisation, rotary embedding, activation.

use crate::{
    math::exp,
    pool::Pool,
    shared::SharedMut,
    simd::{Simd, dispatch},
};

/// Rows below which a parallel loop costs more than it saves.
const ROWS_WORTH_SHARING: usize = 8;

dispatch! {
    /// # Safety
    /// None beyond the instruction set, which the dispatcher checks.
    unsafe fn sum_of_squares(x: &[f32]) -> f32 = sum_of_squares_in; [] [] []
}

#[inline(always)]
unsafe fn sum_of_squares_in<S: Simd>(x: &[f32]) -> f32 {
    let whole = x.len() / S::LANES * S::LANES;
    // SAFETY: every load is inside `x`.
    unsafe {
        let mut sum = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let v = S::load(x.as_ptr().add(i));
            sum = S::mul_add(v, v, sum);
        }
        if whole < x.len() {
            let v = S::load_partial(x.as_ptr().add(whole), x.len() - whole);
            sum = S::mul_add(v, v, sum);
        }
        S::sum(sum)
    }
}

/// Root-mean-square normalisation of one row: `out = x / sqrt(mean(x²) + eps) · weight`.
pub fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    // SAFETY: the dispatcher runs what the machine has.
    let squares = unsafe { sum_of_squares(x) };
    let scale = 1.0 / (squares / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// [`rms_norm_row`] of every row of `x` `[rows, weight.len()]`.
pub fn rms_norm(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width), "x and out are whole rows of {width}");
    for_each_row(pool, out, width, &|row, out| rms_norm_row(&x[row * width..][..width], weight, eps, out));
}

/// Calls `body` with every row of `out`, over the threads when there are enough.
fn for_each_row(pool: &Pool, out: &mut [f32], width: usize, body: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    if out.len() / width < ROWS_WORTH_SHARING {
        return out.chunks_exact_mut(width).enumerate().for_each(|(row, out)| body(row, out));
    }
    let rows = out.len() / width;
    let out = SharedMut::new(out);
    pool.run(rows, &|row| {
        // SAFETY: every row is visited by one task.
        body(row, unsafe { out.slice(row * width, width) });
    });
}

dispatch! {
    /// # Safety
    /// None beyond the instruction set, which the dispatcher checks.
    unsafe fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_row_in; [] [] []
}

#[inline(always)]
unsafe fn swiglu_row_in<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for i in 0..out.len().min(gate.len()).min(up.len()) {
        out[i] = gate[i] / (1.0 + exp(-gate[i])) * up[i];
    }
}

/// `out = silu(gate) · up` for rows `[gate | up]`, each half as wide as a row of `gate_up`.
pub fn swiglu(pool: &Pool, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * out.len(), "gate and up are as wide as the output");
    for_each_row(pool, out, width, &|row, out| {
        let (gate, up) = gate_up[2 * row * width..][..2 * width].split_at(width);
        // SAFETY: the dispatcher runs what the machine has.
        unsafe { swiglu_row(gate, up, out) }
    });
}

/// Which channels of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Channels 2t and 2t+1: MLA and GQLA.
    Interleaved,
    /// Channels t and t + d/2: LLaMA in Hugging Face's order.
    HalfSplit,
}

/// Rotary position embedding: angles of every position, computed once in float64.
pub struct Rope {
    /// `[position, d/2]` of (cos, sin).
    turns: Vec<(f32, f32)>,
    pairs: usize,
    style: RopeStyle,
}

impl Rope {
    /// Angles `position · frequencies[t]` of `positions` positions; what is turned is multiplied by `factor`.
    pub fn new(frequencies: &[f64], factor: f64, positions: usize, style: RopeStyle) -> Self {
        let pairs = frequencies.len();
        let turn = |angle: f64| ((factor * angle.cos()) as f32, (factor * angle.sin()) as f32);
        let turns =
            (0..positions).flat_map(|p| frequencies.iter().map(move |f| turn(p as f64 * f))).collect();
        Self { turns, pairs, style }
    }

    /// Turns one head, `dim` channels, in place. `position` must be below the number given to [`Self::new`].
    pub fn apply(&self, head: &mut [f32], position: usize) {
        let turns = &self.turns[position * self.pairs..][..self.pairs];
        let (first, second, step) = match self.style {
            RopeStyle::Interleaved => (0, 1, 2),
            RopeStyle::HalfSplit => (0, self.pairs, 1),
        };
        for (t, (cos, sin)) in turns.iter().enumerate() {
            let (i, j) = (first + t * step, second + t * step);
            let (a, b) = (head[i], head[j]);
            head[i] = a * cos - b * sin;
            head[j] = b * cos + a * sin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rms_norm_divides_by_the_root_mean_square() {
        let x: Vec<f32> = (1..=37).map(|i| i as f32).collect();
        let mean = x.iter().map(|x| x * x).sum::<f32>() / 37.0;
        let mut out = vec![0.0; 37];
        rms_norm(&Pool::new(Some(1)).unwrap(), &x, &[2.0; 37], 0.0, &mut out);
        for (x, out) in x.iter().zip(out) {
            assert!((out - 2.0 * x / mean.sqrt()).abs() < 1e-5);
        }
    }

    #[test]
    fn swiglu_matches_float64() {
        let gate: Vec<f32> = (-40..40).map(|i| i as f32 / 3.0).collect();
        let gate_up: Vec<f32> = gate.iter().copied().chain([1.5; 80]).collect();
        let mut out = vec![0.0; 80];
        swiglu(&Pool::new(Some(1)).unwrap(), &gate_up, 80, &mut out);
        for (gate, out) in gate.iter().zip(out) {
            let gate = f64::from(*gate);
            let expected = gate / (1.0 + (-gate).exp()) * 1.5;
            assert!((f64::from(out) - expected).abs() < 1e-5, "{gate}: {out} {expected}");
        }
    }

    #[test]
    fn both_styles_turn_the_same_pairs() {
        let rope = |factor, style| Rope::new(&[1.0, 10f64.powf(-0.5)], factor, 8, style);
        let (interleaved, half) = (rope(1.0, RopeStyle::Interleaved), rope(1.0, RopeStyle::HalfSplit));
        let (mut a, mut b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]);
        interleaved.apply(&mut a, 5);
        half.apply(&mut b, 5);
        assert_eq!(a, [b[0], b[2], b[1], b[3]]);
        let angle = 5.0f64;
        assert!((f64::from(a[0]) - (angle.cos() - 2.0 * angle.sin())).abs() < 1e-6);
        let norm = |x: [f32; 4]| x.iter().map(|x| x * x).sum::<f32>();
        assert!((norm(a) - 30.0).abs() < 1e-4);
        let mut longer = [1.0, 2.0, 3.0, 4.0];
        rope(1.5, RopeStyle::Interleaved).apply(&mut longer, 5);
        assert!(longer.iter().zip(a).all(|(longer, a)| (longer - 1.5 * a).abs() < 1e-6));
    }
}
