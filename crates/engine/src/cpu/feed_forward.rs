//! Feed-forward blocks, dense or a mixture of experts.

use gqla_kernels::{Matrix, Pool, choose_experts, multiply_runs, ops::swiglu};
use gqla_model::Routing;

use super::forward::sized;

/// What a layer does with its normed rows after attention.
pub(super) enum FeedForward {
    /// The same for every token.
    Dense(Mlp),
    /// What each token's experts do.
    Mixture(Mixture),
}

/// `down (silu(gate x) · up x)`
pub(super) struct Mlp {
    /// Gate rows, then up rows.
    pub gate_up: Matrix,
    pub down: Matrix,
}

/// Experts, and how tokens find them.
pub(super) struct Mixture {
    /// `[experts, hidden]`, always f32: a rounded logit can choose another expert.
    pub router: Matrix,
    /// Added to the scores for the choice alone.
    pub bias: Vec<f32>,
    pub routing: Routing,
    pub experts_per_token: usize,
    pub experts: Vec<Mlp>,
    /// All shared experts in one; every token's.
    pub shared: Option<Mlp>,
}

/// What a block writes on its way; nothing of it outlives a step.
#[derive(Default)]
pub(super) struct Buffers {
    gate_up: Vec<f32>,
    activated: Vec<f32>,
    router_logits: Vec<f32>,
    /// A row for each choice, in the order of experts.
    gathered: Vec<f32>,
    mixed: Vec<f32>,
}

/// That a row goes through an expert, and what the expert's answer counts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    expert: usize,
    row: usize,
    weight: f32,
}

impl FeedForward {
    /// Adds the block's answer to `x` `[rows, hidden]` to `residual`.
    pub fn forward(&self, pool: &Pool, x: &[f32], buffers: &mut Buffers, residual: &mut [f32]) {
        match self {
            Self::Dense(mlp) => mlp.forward(pool, x, buffers, residual),
            Self::Mixture(mixture) => mixture.forward(pool, x, buffers, residual),
        }
    }

    /// Numbers a call keeps in its [`Buffers`] for each row.
    pub fn scratch_elements(&self) -> usize {
        match self {
            Self::Dense(mlp) => 3 * mlp.down.inputs(),
            Self::Mixture(mixture) => mixture.scratch_elements(),
        }
    }
}

impl Mlp {
    fn forward(&self, pool: &Pool, x: &[f32], buffers: &mut Buffers, residual: &mut [f32]) {
        let rows = x.len() / self.gate_up.inputs();
        let width = self.down.inputs();
        let gate_up = sized(&mut buffers.gate_up, rows * 2 * width);
        self.gate_up.multiply(pool, x, gate_up);
        let activated = sized(&mut buffers.activated, rows * width);
        swiglu(pool, gate_up, width, activated);
        self.down.multiply_add(pool, activated, residual);
    }
}

impl Mixture {
    fn scratch_elements(&self) -> usize {
        let hidden = self.router.inputs();
        let expert = self.experts.first().map_or(0, |expert| expert.down.inputs());
        let shared = self.shared.as_ref().map_or(0, |shared| shared.down.inputs());
        let routed = self.experts_per_token * (2 * hidden + 3 * expert);
        self.router.outputs() + routed.max(3 * shared)
    }

    /// The weights of an expert that any row chose are read once for all its rows. A row adds its experts' answers in
    /// the order of the experts, so its bits do not depend on the other rows.
    fn forward(&self, pool: &Pool, x: &[f32], buffers: &mut Buffers, residual: &mut [f32]) {
        let hidden = self.router.inputs();
        let choices = self.choose(pool, x, &mut buffers.router_logits);
        let gathered = sized(&mut buffers.gathered, choices.len() * hidden);
        for (choice, row) in choices.iter().zip(gathered.chunks_exact_mut(hidden)) {
            row.copy_from_slice(&x[choice.row * hidden..][..hidden]);
        }
        self.run_experts(pool, &choices, buffers);
        for (choice, answer) in choices.iter().zip(buffers.mixed.chunks_exact(hidden)) {
            let row = &mut residual[choice.row * hidden..][..hidden];
            row.iter_mut().zip(answer).for_each(|(sum, part)| *sum += choice.weight * part);
        }
        if let Some(shared) = &self.shared {
            shared.forward(pool, x, buffers, residual);
        }
    }

    /// Every row's choices, ordered by expert, then by row.
    fn choose(&self, pool: &Pool, x: &[f32], logits: &mut Vec<f32>) -> Vec<Choice> {
        let (rows, count) = (x.len() / self.router.inputs(), self.router.outputs());
        let logits = sized(logits, rows * count);
        self.router.multiply(pool, x, logits);
        let mut choices: Vec<_> = logits
            .chunks_exact(count)
            .enumerate()
            .flat_map(|(row, logits)| {
                let chosen = choose_experts(&self.routing, self.experts_per_token, logits, &self.bias);
                chosen.into_iter().map(move |(expert, weight)| Choice { expert, row, weight })
            })
            .collect();
        choices.sort_by_key(|choice| choice.expert);
        choices
    }

    /// From `gathered` to `mixed`, all experts side by side.
    fn run_experts(&self, pool: &Pool, choices: &[Choice], buffers: &mut Buffers) {
        let runs: Vec<_> = choices
            .chunk_by(|a, b| a.expert == b.expert)
            .map(|run| (&self.experts[run[0].expert], run.len()))
            .collect();
        let width = self.experts.first().map_or(0, |expert| expert.down.inputs());
        let gate_up = sized(&mut buffers.gate_up, choices.len() * 2 * width);
        let into: Vec<_> = runs.iter().map(|(expert, rows)| (&expert.gate_up, *rows)).collect();
        multiply_runs(pool, &into, &buffers.gathered, gate_up);
        let activated = sized(&mut buffers.activated, choices.len() * width);
        swiglu(pool, gate_up, width, activated);
        let out_of: Vec<_> = runs.iter().map(|(expert, rows)| (&expert.down, *rows)).collect();
        multiply_runs(pool, &out_of, activated, sized(&mut buffers.mixed, buffers.gathered.len()));
    }
}

#[cfg(test)]
impl Buffers {
    pub fn poison(&mut self) {
        let Self { gate_up, activated, router_logits, gathered, mixed } = self;
        [gate_up, activated, router_logits, gathered, mixed]
            .into_iter()
            .for_each(|buffer| buffer.fill(f32::NAN));
    }
}
