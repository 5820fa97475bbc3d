//! Products of matrices, each row against sums in float64.

use half::bf16;

use super::{Extent, held, noise, relative_rms, wide};
use crate::{
    attention::{BLOCK_TOKENS, Segment},
    device::{
        Buffer, Destination, Device, DeviceError, Gemm, PromptGemm, Rows, Tables, Weights, gemm::kernel_for,
    },
};

/// Where a product goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Rounded.
    Bf16,
    /// As it was summed.
    F32,
    /// Added to what is there.
    Add,
}

/// `rows` rows of `inputs` times a matrix of `outputs` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductTrial {
    /// Rows, which say which kernel.
    pub rows: usize,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Its columns.
    pub inputs: usize,
    /// Where the product goes.
    pub to: Sum,
    /// Who multiplies.
    pub by: PromptGemm,
}

impl ProductTrial {
    /// All kernels, with each destination.
    pub(super) fn all(extent: Extent) -> Vec<Self> {
        let (rows, outputs, inputs) = match extent {
            Extent::Ragged => ([13, 40, 70], 66, 200),
            Extent::Whole => ([16, 64, 128], 128, 256),
        };
        let to = [Sum::Bf16, Sum::F32, Sum::Add];
        let of_rows = |rows| to.map(|to| Self { rows, outputs, inputs, to, by: PromptGemm::Own });
        rows.into_iter().flat_map(of_rows).collect()
    }

    /// A prompt by cuBLASLt, to each destination.
    pub(super) fn by_cublaslt() -> [Self; 3] {
        let by = PromptGemm::CublasLt;
        [Sum::Bf16, Sum::F32, Sum::Add].map(|to| Self { rows: 200, outputs: 128, inputs: 256, to, by })
    }

    /// The kernel's name and the shared memory it is launched with, bytes.
    pub(super) fn kernel(self) -> (String, u32) {
        let to = match self.to {
            Sum::Bf16 => "bf16",
            Sum::F32 => "f32",
            Sum::Add => "add",
        };
        match self.by {
            PromptGemm::Own => kernel_for(self.rows, self.outputs, to),
            PromptGemm::CublasLt => (format!("cublasLtMatmul_{to}"), 0),
        }
    }

    /// Rounding to bf16 is off by 2^-9 at most, and sums in f32 by far less.
    pub(super) fn bound(self) -> f64 {
        if self.to == Sum::Bf16 { 2.5e-3 } else { 1e-5 }
    }

    pub(super) fn run(self, device: &Device, gemm: &Gemm) -> Result<f64, DeviceError> {
        let Self { rows, outputs, inputs, to, by } = self;
        let (x, w, count) = (noise(1, rows * inputs), noise(2, outputs * inputs), rows * outputs);
        let weights = Weights::upload(device, "weights", &w, [1, outputs, inputs])?;
        let rows_x = device.upload("rows", &x)?;
        let pages: Vec<u32> = (0..rows.div_ceil(BLOCK_TOKENS) as u32).collect();
        let prompt = [Segment { first_row: 0, rows, start: 0, blocks: &pages }];
        let mut tables = Tables::new(device, &prompt, pages.len(), None)?;
        tables.give_library(by.library_rows(&prompt, 1));
        let launch = |y: Destination<'_>| {
            let (from, to) = (Rows::even(0, inputs)?, Rows::even(0, outputs)?);
            gemm.launch_step(device, &weights, &tables, (&rows_x, from), (y, to))?;
            // Our kernels' answer would say nothing of the library.
            let refused = |status| DeviceError::CublasLt { doing: "choosing an algorithm", status };
            gemm.take_refusal().map_or(Ok(()), |reason| Err(refused(reason)))
        };
        let got = if to == Sum::Bf16 {
            let mut y: Buffer<bf16> = device.unwritten("product", count)?;
            launch(Destination::Bf16(&mut y))?;
            wide(&device.download(&y, count)?)
        } else {
            let mut y = device.upload("product", &vec![1f32; count])?;
            launch(if to == Sum::F32 { Destination::F32(&mut y) } else { Destination::Add(&mut y) })?;
            device.download(&y, count)?.into_iter().map(f64::from).collect()
        };
        let (x, w, was) = (wide(&x), wide(&w), if to == Sum::Add { 1.0 } else { 0.0 });
        let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
        let of_row = |x: &[f64]| w.chunks(inputs).map(|w| was + dot(x, w)).collect::<Vec<_>>();
        Ok(relative_rms(&got, &x.chunks(inputs).flat_map(of_row).collect::<Vec<_>>()))
    }
}

impl Gemm {
    /// As [`Decode::self_test`](crate::device::Decode::self_test), our kernels with each destination.
    ///
    /// # Errors
    /// As there.
    pub fn self_test(&self, device: &Device) -> Result<(), DeviceError> {
        ProductTrial::all(Extent::Ragged).into_iter().try_for_each(|trial| {
            held(device, &trial.kernel().0, trial.run(device, self)?, trial.bound()).map(drop)
        })
    }
}
