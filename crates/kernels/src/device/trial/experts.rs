//! A mixture of experts, each row against the same in float64.

use gqla_model::Routing;
use half::bf16;

use super::{Extent, held, noise, relative_rms, wide};
use crate::{
    choose_experts,
    device::{
        Buffer, Choices, Destination, Device, DeviceError, ExpertKernels, ExpertRows, Router, RouterShape,
        Weights,
        experts::{CHOOSE_THREADS, SORT_THREADS, kernel_for},
        gemm,
        rows::THREADS,
    },
};

/// `rows` rows that choose experts, go into them and out again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertTrial {
    /// Rows, which say which kernels.
    pub rows: usize,
    /// Width of a row.
    pub hidden: usize,
    /// Width of an expert.
    pub inner: usize,
    /// Experts, and how rows find them.
    pub router: RouterShape,
}

impl ExpertTrial {
    /// Few rows and many.
    pub(super) fn all(extent: Extent) -> [Self; 2] {
        let (rows, [hidden, inner], [experts, per_token]) = match extent {
            Extent::Ragged => ([13, 70], [200, 72], [10, 3]),
            Extent::Whole => ([16, 128], [256, 128], [8, 2]),
        };
        let routing = Routing { n_group: 2, topk_group: 1, norm_topk_prob: true, routed_scaling_factor: 1.8 };
        let router = RouterShape { experts, per_token, routing };
        rows.map(|rows| Self { rows, hidden, inner, router })
    }

    /// The kernels that it takes, in the order of their launches, with threads and dynamic shared memory of a block.
    pub(super) fn kernels(self) -> [(String, u32, u32); 6] {
        let product = |to| {
            let (name, shared) = kernel_for(self.rows, to);
            (name, gemm::THREADS, shared)
        };
        let scores = (2 * self.router.experts * size_of::<f32>()) as u32;
        let row = THREADS as u32;
        [
            ("router_logits".to_owned(), row, 0),
            ("choose_experts".to_owned(), CHOOSE_THREADS, scores),
            ("sort_choices".to_owned(), SORT_THREADS, 0),
            product("bf16"),
            product("f32"),
            ("combine".to_owned(), row, 0),
        ]
    }

    /// Rounding to bf16 between two products is off by 2^-9 at most, and sums in f32 by far less.
    pub(super) const BOUND: f64 = 2.5e-3;

    pub(super) fn run(self, device: &Device, kernels: &ExpertKernels) -> Result<f64, DeviceError> {
        let Self { rows, hidden, inner, router: shape } = self;
        let [x, into, out_of] =
            [rows * hidden, shape.experts * inner * hidden, shape.experts * hidden * inner];
        let (x, into, out_of) = (noise(1, x), noise(2, into), noise(3, out_of));
        // Scores are far from 1, where many would be equal.
        let weights: Vec<f32> = noise(4, shape.experts * hidden).iter().map(|x| x.to_f32() / 16.0).collect();
        let bias: Vec<f32> = noise(5, shape.experts).iter().map(|x| x.to_f32() / 8.0).collect();
        let router = Router::upload(device, "router", shape, [&weights, &bias])?;
        let inside = Weights::upload(device, "experts", &into, [shape.experts, inner, hidden])?;
        let outside = Weights::upload(device, "experts", &out_of, [shape.experts, hidden, inner])?;
        let total = rows * shape.per_token;
        let rows_x = device.upload("rows", &x)?;
        let mut between: Buffer<bf16> = device.unwritten("activations", total * inner)?;
        let mut answers: Buffer<f32> = device.unwritten("answers", total * hidden)?;
        let mut residual = device.upload("residual", &vec![1f32; rows * hidden])?;
        let mut choices = Choices::new(device, shape, rows)?;
        kernels.route(device, &router, &rows_x, rows, &mut choices)?;
        let from = (&rows_x, ExpertRows::OfStep);
        kernels.multiply(device, &inside, &choices, from, Destination::Bf16(&mut between))?;
        let from = (&between, ExpertRows::Sorted);
        kernels.multiply(device, &outside, &choices, from, Destination::F32(&mut answers))?;
        kernels.combine(device, &choices, (&answers, hidden), &mut residual)?;
        let got: Vec<f64> = device.download(&residual, rows * hidden)?.into_iter().map(f64::from).collect();

        let (x, into, out_of) = (wide(&x), wide(&into), wide(&out_of));
        let router: Vec<f64> = weights.iter().copied().map(f64::from).collect();
        let matrix = |w: &[f64], x: &[f64]| -> Vec<f64> {
            w.chunks(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let of_row = |x: &[f64]| {
            let logits: Vec<f32> = matrix(&router, x).into_iter().map(|x| x as f32).collect();
            let mut sums = vec![1.0; hidden];
            for (expert, weight) in choose_experts(&shape.routing, shape.per_token, &logits, &bias) {
                let [into, out_of] =
                    [&into, &out_of].map(|all| &all[expert * inner * hidden..][..inner * hidden]);
                let answer = matrix(out_of, &matrix(into, x));
                sums.iter_mut().zip(answer).for_each(|(sum, part)| *sum += f64::from(weight) * part);
            }
            sums
        };
        Ok(relative_rms(&got, &x.chunks(hidden).flat_map(of_row).collect::<Vec<_>>()))
    }
}

impl ExpertKernels {
    /// As [`Decode::self_test`](crate::device::Decode::self_test), for few rows and for many.
    ///
    /// # Errors
    /// As there.
    pub fn self_test(&self, device: &Device) -> Result<(), DeviceError> {
        ExpertTrial::all(Extent::Ragged).into_iter().try_for_each(|trial| {
            held(device, &trial.kernels()[3].0, trial.run(device, self)?, ExpertTrial::BOUND).map(drop)
        })
    }
}
