//! Rotary position embedding of whole samples, which always start at position 0.

/// Cosines and sines of `theta^(-2t/dim)` at each position.
#[derive(Clone, Debug)]
pub struct RopeTable {
    pairs: usize,
    /// `(cos, sin)` at `position * pairs + pair`.
    turns: Vec<(f32, f32)>,
}

impl RopeTable {
    /// Turns for `positions` positions of `dim` channels with base `theta`.
    pub fn new(positions: usize, dim: usize, theta: f64) -> Self {
        let pairs = dim / 2;
        let turn = |position: usize, pair: usize| {
            let angle = position as f64 * theta.powf(-2.0 * pair as f64 / dim as f64);
            (angle.cos() as f32, angle.sin() as f32)
        };
        let turns = (0..positions * pairs).map(|i| turn(i / pairs, i % pairs)).collect();
        Self { pairs, turns }
    }

    /// Turns one head whose pairs are channels `t` and `t + dim/2` (LLaMA in Hugging Face order).
    pub fn turn_halves(&self, position: usize, head: &mut [f32]) {
        let (real, imaginary) = head.split_at_mut(self.pairs);
        for ((x, y), turn) in real.iter_mut().zip(imaginary).zip(self.at(position)) {
            (*x, *y) = turned(*x, *y, *turn);
        }
    }

    /// Turns one head whose pairs are channels `2t` and `2t + 1` (MLA and GQLA).
    pub fn turn_pairs(&self, position: usize, head: &mut [f32]) {
        for (pair, turn) in head.chunks_exact_mut(2).zip(self.at(position)) {
            (pair[0], pair[1]) = turned(pair[0], pair[1], *turn);
        }
    }

    fn at(&self, position: usize) -> &[(f32, f32)] {
        &self.turns[position * self.pairs..(position + 1) * self.pairs]
    }
}

fn turned(x: f32, y: f32, (cos, sin): (f32, f32)) -> (f32, f32) {
    (x * cos - y * sin, x * sin + y * cos)
}
