//! Tokens chosen from rows of logits, against those that the processor chooses.

use super::{held, noise};
use crate::{
    device::{Device, DeviceError, SampleKernel},
    sample::{Cuts, Draw, Edit, TokenMask, choose_rows},
};

/// The kernel, on [`SampleTrial::ROWS`] rows of [`SampleTrial::WIDTH`] logits: each way of choosing once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleTrial;

/// Cuts by no rule, by each, and by all.
const CUTS: [Cuts; 6] = [
    Cuts { temperature: 0.0, min_p: 0.0, top_k: 0, top_p: 1.0 },
    Cuts { temperature: 1.3, min_p: 0.0, top_k: 0, top_p: 1.0 },
    Cuts { temperature: 0.7, min_p: 0.2, top_k: 0, top_p: 1.0 },
    Cuts { temperature: 0.9, min_p: 0.0, top_k: 40, top_p: 1.0 },
    Cuts { temperature: 1.0, min_p: 0.0, top_k: 0, top_p: 0.6 },
    Cuts { temperature: 1.1, min_p: 0.05, top_k: 300, top_p: 0.9 },
];

impl SampleTrial {
    /// Rows: each of six cuts with and without edits, forbidden tokens and log-probabilities.
    pub const ROWS: usize = 2 * CUTS.len();
    /// Logits of a row.
    pub const WIDTH: usize = 3000;

    /// Whole numbers decide: there is nothing to round.
    pub(super) const BOUND: f64 = 0.0;

    /// Which part of the rows got another token or another log-probability than on the processor.
    pub(super) fn run(self, device: &Device, kernel: &SampleKernel) -> Result<f64, DeviceError> {
        Self::run_rows(device, kernel, 0..Self::ROWS)
    }

    fn run_rows(
        device: &Device,
        kernel: &SampleKernel,
        rows: impl Iterator<Item = usize>,
    ) -> Result<f64, DeviceError> {
        let numbers = noise(8, Self::ROWS * Self::WIDTH);
        // Rounded to bf16 and to quarters: many are equal, so that their order counts.
        let logits: Vec<f32> = numbers.iter().map(|x| (x.to_f32() * 16.0).round() / 4.0).collect();
        let draws: Vec<Draw> = rows.map(draw).collect();
        let mut rows = device.upload("logits", &logits)?;
        let chosen = kernel.choose(device, &mut rows, Self::WIDTH, &draws)?;
        let expected = choose_rows(&logits, Self::WIDTH, &draws);
        let other = chosen.iter().zip(&expected).filter(|(ours, expected)| ours != expected).count();
        let untouched = device.download(&rows, logits.len())? == logits;
        Ok(if untouched { other as f64 / draws.len() as f64 } else { 1.0 })
    }
}

fn draw(row: usize) -> Draw {
    let random = (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let plain = Draw { cuts: CUTS[row / 2], random, ..Draw::greedy(row) };
    if row.is_multiple_of(2) {
        return plain;
    }
    let edit = |id: u32| Edit { bias: 0.75, repetition: 1.3, less: 0.5, ..Edit::new(id) };
    let mut allowed = TokenMask::all(SampleTrial::WIDTH);
    (0..SampleTrial::WIDTH).step_by(3).for_each(|id| allowed.forbid(id));
    let edits = (0..SampleTrial::WIDTH as u32).step_by(7).map(edit).collect();
    Draw { edits, allowed: Some(allowed), logprobs: Some(5), ..plain }
}

impl SampleKernel {
    /// As [`Decode::self_test`](crate::device::Decode::self_test): every cut, with edits, forbidden tokens and log-probabilities,
    /// against the processor's choices.
    ///
    /// # Errors
    /// As there.
    pub fn self_test(&self, device: &Device) -> Result<(), DeviceError> {
        let off = SampleTrial::run_rows(device, self, (1..SampleTrial::ROWS).step_by(2))?;
        held(device, "sample", off, SampleTrial::BOUND).map(drop)
    }
}
