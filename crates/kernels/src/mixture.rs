//! Which experts of a mixture a token takes, and their products.

use gqla_model::Routing;

use crate::{
    Matrix, Pool,
    gemm::RowMap,
    matrix::{Operands, multiply_each},
};

/// One token's experts and their weights, best first: the scores are the sigmoids of the logits; the `topk_group`
/// groups with the largest sums of their two best biased scores are open, and in them the largest biased scores win.
/// Of equals, the first. The weights are the scores without bias.
/// `logits` and `bias` are `[experts]`, of which `n_group` is a divisor.
pub fn choose_experts(routing: &Routing, count: usize, logits: &[f32], bias: &[f32]) -> Vec<(usize, f32)> {
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

/// Multiplies consecutive runs of rows by a matrix each, as one parallel loop: run i is the next `runs[i].1` rows of
/// `x` `[rows, in]` and of `y` `[rows, out]`, and every matrix is read once for all rows of its run.
///
/// # Panics
/// When the matrices have different dimensions, or the runs are not all rows of `x` and `y`.
pub fn multiply_runs(pool: &Pool, runs: &[(&Matrix, usize)], x: &[f32], y: &mut [f32]) {
    let Some((first, _)) = runs.first() else { return };
    let (inputs, outputs) = (first.inputs(), first.outputs());
    assert!(
        runs.iter().all(|(matrix, _)| (matrix.inputs(), matrix.outputs()) == (inputs, outputs)),
        "the matrices have equal dimensions"
    );
    let rows: usize = runs.iter().map(|(_, rows)| rows).sum();
    assert_eq!((rows * inputs, rows * outputs), (x.len(), y.len()), "the runs are all rows of x and y");
    let target = y.as_mut_ptr();
    let mut start = 0;
    let products: Vec<_> = runs
        .iter()
        .map(|&(matrix, rows)| {
            let operands = Operands {
                x: x[start * inputs..].as_ptr(),
                x_rows: RowMap::even(inputs),
                y: target.wrapping_add(start * outputs),
                y_rows: RowMap::even(outputs),
                rows,
                accumulate: false,
            };
            start += rows;
            (matrix, operands)
        })
        .collect();
    // SAFETY: the runs were checked to fit `x` and `y`, and they write different rows.
    unsafe { multiply_each(pool, &products) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{WeightRows, reference::counter_noise};

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        counter_noise(seed, len, 1.0).map(|x| x as f32).collect()
    }

    #[test]
    fn every_run_has_the_bits_of_a_product_of_its_own() {
        let pool = Pool::new(Some(2)).unwrap();
        let (outputs, inputs) = (70, 33);
        let matrix =
            |seed| Matrix::stack(&[WeightRows::F32(&noise(seed, outputs * inputs))], inputs).unwrap();
        let matrices: Vec<_> = (1..4).map(matrix).collect();
        let runs: Vec<_> = matrices.iter().zip([1, 7, 2]).collect();
        let x = noise(9, 10 * inputs);
        let mut y = vec![f32::NAN; 10 * outputs];
        multiply_runs(&pool, &runs, &x, &mut y);
        let mut start = 0;
        for (matrix, rows) in runs {
            let mut expected = vec![0.0; rows * outputs];
            matrix.multiply(&pool, &x[start * inputs..(start + rows) * inputs], &mut expected);
            assert_eq!(y[start * outputs..(start + rows) * outputs], expected);
            start += rows;
        }
        multiply_runs(&pool, &[], &[], &mut []);
    }

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
        let plain = choose_experts(&ONE_GROUP, 2, &logits, &[0.0; 4]);
        assert_choice(&plain, &[(0, 1.8 * 0.8 / 1.4), (1, 1.8 * 0.6 / 1.4)]);
        let biased = choose_experts(&ONE_GROUP, 2, &logits, &[0.0, 0.0, 0.0, 9.0]);
        assert_choice(&biased, &[(3, 1.8 * 0.2), (0, 1.8 * 0.8)]);
        let raw = Routing { norm_topk_prob: false, ..ONE_GROUP };
        assert_choice(&choose_experts(&raw, 1, &logits, &[0.0; 4]), &[(0, 1.8 * 0.8)]);
    }

    /// The best expert is alone in its group: two good ones together beat it, as their sum is larger.
    #[test]
    fn groups_are_chosen_by_their_two_best() {
        let logits = [0.9, 0.1, 0.6, 0.5, 0.3, 0.3].map(logit);
        let grouped = Routing { n_group: 3, norm_topk_prob: false, routed_scaling_factor: 1.0, ..ONE_GROUP };
        assert_choice(&choose_experts(&grouped, 2, &logits, &[0.0; 6]), &[(2, 0.6), (3, 0.5)]);
        let two = Routing { topk_group: 2, ..grouped };
        assert_choice(&choose_experts(&two, 3, &logits, &[0.0; 6]), &[(0, 0.9), (2, 0.6), (3, 0.5)]);
    }

    #[test]
    fn of_equals_the_first_is_chosen() {
        let chosen = choose_experts(&ONE_GROUP, 3, &[0.0; 8], &[0.0; 8]);
        assert_eq!(chosen.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
