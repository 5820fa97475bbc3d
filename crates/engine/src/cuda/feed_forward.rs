//! Feed-forward blocks, dense or a mixture of experts.

use gqla_kernels::device::{
    Buffer, Choices, Destination, Device, DeviceError, ExpertKernels, ExpertRows, Router, RouterShape,
    Tables, Weights,
};
use half::bf16;

use super::{forward::Activations, model::CudaModel};

/// What a layer does with its normed rows after attention.
pub(super) enum FeedForward {
    /// The same for every token.
    Dense(Mlp),
    /// What each token's experts do.
    Mixture(Box<Mixture>),
}

/// `down (silu(gate x) · up x)`, of one block or of every expert.
pub(super) struct Mlp {
    /// Gate rows, then up rows.
    pub gate_up: Weights,
    pub down: Weights,
}

/// Experts, and how tokens find them.
pub(super) struct Mixture {
    pub router: Router,
    pub experts: Mlp,
    /// All shared experts in one; every token's.
    pub shared: Option<Mlp>,
}

impl FeedForward {
    /// Numbers between its two products per row.
    pub fn inner(&self) -> usize {
        match self {
            Self::Dense(mlp) => mlp.down.inputs(),
            Self::Mixture(mixture) => {
                let routed = mixture.router.shape().per_token * mixture.experts.down.inputs();
                mixture.shared.as_ref().map_or(0, |shared| shared.down.inputs()).max(routed)
            }
        }
    }

    /// How rows find its experts.
    pub fn router(&self) -> Option<&RouterShape> {
        match self {
            Self::Dense(_) => None,
            Self::Mixture(mixture) => Some(mixture.router.shape()),
        }
    }
}

/// What routed rows need besides the activations of any block.
pub(super) struct Routed {
    /// Of the last layer that had any.
    pub choices: Choices,
    /// Each choice's answer, `[choices, hidden]`.
    answers: Buffer<f32>,
}

impl Routed {
    /// For steps of up to `rows` rows of `hidden`.
    pub fn new(device: &Device, shape: RouterShape, rows: usize, hidden: usize) -> Result<Self, DeviceError> {
        let answers = device.unwritten("answers of experts", rows * shape.per_token * hidden)?;
        Ok(Self { choices: Choices::new(device, shape, rows)?, answers })
    }

    /// Bytes of that.
    pub fn bytes(shape: &RouterShape, rows: usize, hidden: usize) -> usize {
        Choices::bytes(shape, rows) + rows * shape.per_token * hidden * size_of::<f32>()
    }
}

impl CudaModel {
    /// Adds the block's answer to the normed rows of a step to the residual stream.
    pub(super) fn feed_forward(
        &self,
        block: &FeedForward,
        tables: &Tables,
        a: &mut Activations,
    ) -> Result<(), DeviceError> {
        let mixture = match block {
            FeedForward::Dense(mlp) => return self.dense(mlp, tables, a),
            FeedForward::Mixture(mixture) => mixture,
        };
        let (Some(kernels), Some(routed)) = (&self.experts, &mut a.routed) else {
            let reason = "neither kernels nor room for a model without experts".to_owned();
            return Err(DeviceError::Arguments { kernel: "experts", reason });
        };
        self.routed(kernels, mixture, tables.rows(), (&a.normed, &mut a.gate_up, &mut a.activated), routed)?;
        let answers = (&routed.answers, mixture.experts.down.outputs());
        kernels.combine(&self.device, &routed.choices, answers, &mut a.residual)?;
        mixture.shared.as_ref().map_or(Ok(()), |shared| self.dense(shared, tables, a))
    }

    /// Every choice's answer.
    fn routed(
        &self,
        kernels: &ExpertKernels,
        Mixture { router, experts, .. }: &Mixture,
        rows: usize,
        (x, gate_up, activated): (&Buffer<bf16>, &mut Buffer<f32>, &mut Buffer<bf16>),
        Routed { choices, answers }: &mut Routed,
    ) -> Result<(), DeviceError> {
        let (device, width) = (&self.device, experts.down.inputs());
        kernels.route(device, router, x, rows, choices)?;
        let from = (x, ExpertRows::OfStep);
        kernels.multiply(device, &experts.gate_up, choices, from, Destination::F32(gate_up))?;
        let chosen = rows * router.shape().per_token;
        self.attention.rows.swiglu(device, gate_up, chosen, width, activated)?;
        let from = (&*activated, ExpertRows::Sorted);
        kernels.multiply(device, &experts.down, choices, from, Destination::F32(answers))
    }

    fn dense(&self, mlp: &Mlp, tables: &Tables, a: &mut Activations) -> Result<(), DeviceError> {
        self.multiply_step(&mlp.gate_up, tables, &a.normed, Destination::F32(&mut a.gate_up))?;
        self.attention.rows.swiglu(
            &self.device,
            &a.gate_up,
            tables.rows(),
            mlp.down.inputs(),
            &mut a.activated,
        )?;
        self.multiply_step(&mlp.down, tables, &a.activated, Destination::Add(&mut a.residual))
    }
}
