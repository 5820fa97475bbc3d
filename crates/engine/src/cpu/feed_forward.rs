//! Feed-forward blocks, dense or a mixture of experts.

use gqla_kernels::{Matrix, Pool, multiply_runs, ops::swiglu};
use gqla_weights::Routing;

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
                let chosen = choose(&self.routing, self.experts_per_token, logits, &self.bias);
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

/// One token's experts and their weights, best first: the scores are the sigmoids of the logits; the `topk_group`
/// groups with the largest sums of their two best biased scores are open, and in them the largest biased scores win.
/// Of equals, the first. The weights are the scores without bias.
fn choose(routing: &Routing, count: usize, logits: &[f32], bias: &[f32]) -> Vec<(usize, f32)> {
    let scores: Vec<f32> = logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect();
    let biased: Vec<f32> = scores.iter().zip(bias).map(|(score, bias)| score + bias).collect();
    let size = biased.len() / routing.n_group as usize;
    let best_two = |group: &[f32]| best(group, 2).into_iter().map(|expert| group[expert]).sum();
    let groups: Vec<f32> = biased.chunks_exact(size).map(best_two).collect();
    let open = best(&groups, routing.topk_group as usize);
    let in_open = |(expert, score): (usize, &f32)| {
        if open.contains(&(expert / size)) { *score } else { f32::NEG_INFINITY }
    };
    let candidates: Vec<f32> = biased.iter().enumerate().map(in_open).collect();
    let chosen = best(&candidates, count);
    let sum: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
    // The published divisor, which cannot be zero.
    let divisor = if routing.norm_topk_prob { sum + 1e-20 } else { 1.0 };
    let weight = |expert| (expert, scores[expert] / divisor * routing.routed_scaling_factor);
    chosen.into_iter().map(weight).collect()
}

/// Indices of the `count` largest values, largest first; of equals, the first.
fn best(values: &[f32], count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    indices.truncate(count);
    indices
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

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_GROUP: Routing =
        Routing { n_group: 1, topk_group: 1, norm_topk_prob: true, routed_scaling_factor: 1.8 };

    fn logit(score: f32) -> f32 {
        (score / (1.0 - score)).ln()
    }

    fn assert_choice(chosen: &[(usize, f32)], expected: &[(usize, f32)]) {
        assert_eq!(chosen.len(), expected.len());
        for ((expert, weight), (other, expected)) in chosen.iter().zip(expected) {
            assert_eq!(expert, other, "{chosen:?}");
            assert!((weight - expected).abs() < 1e-5, "{chosen:?}");
        }
    }

    #[test]
    fn the_bias_chooses_and_does_not_weigh() {
        let logits = [0.8, 0.6, 0.4, 0.2].map(logit);
        let plain = choose(&ONE_GROUP, 2, &logits, &[0.0; 4]);
        assert_choice(&plain, &[(0, 1.8 * 0.8 / 1.4), (1, 1.8 * 0.6 / 1.4)]);
        let biased = choose(&ONE_GROUP, 2, &logits, &[0.0, 0.0, 0.0, 9.0]);
        assert_choice(&biased, &[(3, 1.8 * 0.2), (0, 1.8 * 0.8)]);
        let raw = Routing { norm_topk_prob: false, ..ONE_GROUP };
        assert_choice(&choose(&raw, 1, &logits, &[0.0; 4]), &[(0, 1.8 * 0.8)]);
    }

    /// The best expert is alone in its group: two good ones together beat it, as their sum is larger.
    #[test]
    fn groups_are_chosen_by_their_two_best() {
        let logits = [0.9, 0.1, 0.6, 0.5, 0.3, 0.3].map(logit);
        let grouped = Routing { n_group: 3, norm_topk_prob: false, routed_scaling_factor: 1.0, ..ONE_GROUP };
        assert_choice(&choose(&grouped, 2, &logits, &[0.0; 6]), &[(2, 0.6), (3, 0.5)]);
        let two = Routing { topk_group: 2, ..grouped };
        assert_choice(&choose(&two, 3, &logits, &[0.0; 6]), &[(0, 0.9), (2, 0.6), (3, 0.5)]);
    }

    #[test]
    fn of_equals_the_first_is_chosen() {
        let chosen = choose(&ONE_GROUP, 3, &[0.0; 8], &[0.0; 8]);
        assert_eq!(chosen.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
