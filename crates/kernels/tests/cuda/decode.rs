//! Decode along both paths: right, and with no more traffic than it takes.

use std::collections::BTreeSet;

use gqla_kernels::device::{DeviceError, Program, Splits};
use gqla_model::DecodePath::{self, Gqa, MqaAbsorb};
use serde_json::json;

use crate::{
    case::{Case, pages_each},
    device::{Bench, error_of, program, reports},
    on_cards, on_stand_in, on_two_multiprocessors,
};

/// Bound on the relative error, which bf16 weights and outputs make about 2e-3.
pub const MAX_ERROR: f64 = 6e-3;

/// A deviation of scores whose powers of two have no f32.
pub const FAR_APART: f32 = 256.0;

const DEEPSEEK: [usize; 3] = [128, 64, 128];
const GLM: [usize; 3] = [192, 64, 256];
/// DeepSeek's and the other large models' latents.
const LATENT: [usize; 3] = [512, 64, 512];
const SMOLLM_LATENT: [usize; 3] = [320, 64, 320];

fn check(bench: &Bench, case: &Case) -> f64 {
    let outcome = bench.run(case);
    let error = error_of(&outcome.out.unwrap(), case);
    assert!(error <= MAX_ERROR, "{case:?}: relative error {error:.2e}");
    assert_eq!(
        outcome.read,
        case.least_bytes(&outcome.plan),
        "{case:?}: every key and value, or latent row, is read once per block"
    );
    let counters = &outcome.reports[0]["counters"];
    assert_eq!(counters["mma"], case.least_mma(&outcome.plan), "{case:?}");
    let mut ways = vec!["ldmatrix_shared"];
    // Narrow heads share rows of shared memory with the rope key, so that copies of either leave gaps.
    if case.path == MqaAbsorb || case.dims.iter().all(|dim| dim % 64 == 0) {
        ways.push("cp_async_shared");
    }
    for way in ways {
        assert_eq!(counters[way]["actual"], counters[way]["ideal"], "{case:?}: {way} has bank conflicts");
    }
    assert!(outcome.reports.iter().all(|report| report["faults"]["counts"] == json!({})), "{case:?}");
    error
}

/// Batches of all combinations of heads per group and queries.
fn cases(
    path: DecodePath,
    dims: [usize; 3],
    heads: &[[usize; 2]],
    s_q: std::ops::RangeInclusive<usize>,
) -> Vec<Case> {
    let mut all = Vec::new();
    for [heads, groups] in heads.iter().copied() {
        for s_q in s_q.clone() {
            for (lengths, splits) in [
                (vec![s_q, 63, 65], pages_each(1)),
                (vec![1000, 64, 128 + s_q], pages_each(4)),
                // Splits of one page and of two.
                (vec![200, 128, s_q + 1], Splits { least_pages: 1, most: 2 }),
            ] {
                all.push(Case { path, heads, groups, dims, s_q, lengths, splits, spread: 1.0 });
            }
        }
    }
    all
}

/// Cases of one path and one set of dimensions, so that kernels are compiled once.
fn check_all(cases: &[Case]) {
    check_all_on(0, cases);
}

fn check_all_on(ordinal: usize, cases: &[Case]) {
    let bench = Bench::on(ordinal, &cases[0]);
    let errors: Vec<f64> = cases.iter().map(|case| check(&bench, case)).collect();
    let sequences: usize = cases.iter().map(|case| case.lengths.len()).sum();
    let (least, most) =
        errors.iter().fold((f64::INFINITY, 0.0f64), |(least, most), x| (least.min(*x), most.max(*x)));
    println!("{sequences} sequences in {} steps: relative error {least:.2e} to {most:.2e}", cases.len());
}

#[test]
fn deepseek_dimensions() {
    on_stand_in("decode::deepseek_dimensions", "own-first", 1, || {
        check_all(&cases(Gqa, DEEPSEEK, &[[2, 2], [10, 2], [20, 2], [16, 1], [9, 3]], 1..=4));
    });
}

#[test]
fn other_dimensions() {
    on_stand_in("decode::other_dimensions", "own-first", 1, || {
        check_all(&cases(Gqa, [64, 64, 64], &[[9, 3]], 1..=4));
        check_all(&cases(Gqa, GLM, &[[20, 4]], 1..=2));
        check_all(&cases(Gqa, [16, 16, 16], &[[8, 2]], 1..=2));
        check_all(&cases(Gqa, [48, 32, 80], &[[6, 2]], 1..=1));
    });
}

/// Tiles of 32 and of 64 rows, whole and not, and more than one.
#[test]
fn absorbed_latents() {
    on_stand_in("decode::absorbed_latents", "own-first", 1, || {
        check_all(&cases(MqaAbsorb, LATENT, &[[20, 1], [16, 1]], 1..=4));
        check_all(&cases(MqaAbsorb, LATENT, &[[128, 1]], 1..=1));
    });
}

#[test]
fn other_latents() {
    on_stand_in("decode::other_latents", "own-first", 1, || {
        check_all(&cases(MqaAbsorb, [64, 16, 64], &[[8, 1], [5, 1]], 1..=4));
        check_all(&cases(MqaAbsorb, [256, 32, 256], &[[40, 1]], 1..=2));
    });
}

/// What a block may have of shared memory decides which kernel attends: an H20's 227 KiB, an A100's 163, an L40S's 99. Between
/// them, cards take every kernel that there is.
#[test]
fn every_kernel_on_a_card_that_takes_it() {
    on_cards("decode::every_kernel_on_a_card_that_takes_it", &["H20", "A100", "L40S"], || {
        let [h20, a100, l40s] = [0, 1, 2];
        let (smollm, latents) = ([64, 64, 64], SMOLLM_LATENT);
        for (card, path, dims, heads, s_q) in [
            (h20, Gqa, smollm, [20, 2], 1..=4),
            (h20, MqaAbsorb, latents, [9, 1], 1..=4),
            // Wide heads leave no room for a third page.
            (a100, Gqa, GLM, [20, 4], 4..=4),
            (a100, Gqa, GLM, [40, 4], 4..=4),
            (a100, MqaAbsorb, LATENT, [20, 1], 1..=4),
            (l40s, Gqa, DEEPSEEK, [20, 2], 1..=4),
            (l40s, Gqa, GLM, [20, 4], 3..=4),
            // Four queries' rows are two blocks, the first of which need not see the last token.
            (l40s, MqaAbsorb, LATENT, [20, 1], 1..=4),
            // Columns that two parts do not share evenly: 33 steps of 16, and 35.
            (l40s, MqaAbsorb, [512, 16, 512], [20, 1], 1..=2),
            (l40s, MqaAbsorb, [512, 48, 512], [20, 1], 1..=2),
            (l40s, MqaAbsorb, latents, [9, 1], 1..=4),
        ] {
            check_all_on(card, &cases(path, dims, &[heads], s_q));
        }
        let there: BTreeSet<String> = [Program::gqa_decode(64, 64, 64), Program::absorb_decode(320, 64)]
            .iter()
            .flat_map(|program| program.resources((9, 0)).unwrap().into_keys())
            .collect();
        let launched: BTreeSet<String> =
            reports().iter().map(|report| report["kernel"].as_str().unwrap().to_owned()).collect();
        assert_eq!(launched, there, "kernels that are launched, and those of the programs");
    });
}

#[test]
fn any_order_of_warps() {
    for order in ["others-first", "1", "2"] {
        on_two_multiprocessors("decode::any_order_of_warps", order, 1, || {
            check_all(&cases(Gqa, DEEPSEEK, &[[20, 2]], 2..=3));
            check_all(&cases(MqaAbsorb, LATENT, &[[20, 1]], 2..=3));
        });
    }
}

/// What an engine asks of a device first: it passes, and does not where values are not transposed.
#[test]
fn devices_are_tried_before_they_serve() {
    on_stand_in("decode::devices_are_tried_before_they_serve", "own-first", 2, || {
        for (path, heads, groups, dims) in [(Gqa, 10, 2, DEEPSEEK), (MqaAbsorb, 10, 1, LATENT)] {
            let (lengths, splits) = (vec![1], pages_each(1));
            let case = Case { path, heads, groups, dims, s_q: 1, lengths, splits, spread: 1.0 };
            let error = Bench::of(&case).self_test(&case).unwrap();
            assert!(error > 1e-4 && error <= MAX_ERROR, "{path}: {error:.2e}");
            let right = program(&case);
            let wrong = right.text().replace("load_matrices_transposed(value", "load_matrices(value");
            let refused = Bench::new(1, &right.with_text(wrong)).self_test(&case).unwrap_err();
            assert!(matches!(refused, DeviceError::SelfTest { .. }), "{refused}");
        }
    });
}

/// Queries of one sequence on either side of a position where splits grow.
#[test]
fn splits_grow_between_the_queries_of_a_sequence() {
    on_stand_in("decode::splits_grow_between_the_queries_of_a_sequence", "own-first", 1, || {
        for (path, groups, dims) in [(Gqa, 2, DEEPSEEK), (MqaAbsorb, 1, LATENT)] {
            let splits = Splits { least_pages: 1, most: 2 };
            let lengths = vec![130, 257, 3];
            let case = Case { path, heads: 10, groups, dims, s_q: 3, lengths, splits, spread: 1.0 };
            let outcome = Bench::of(&case).run(&case);
            assert!(outcome.reports.iter().all(|report| report["faults"]["counts"] == json!({})), "{path}");
            let error = error_of(&outcome.out.unwrap(), &case);
            assert!(error <= MAX_ERROR, "{path}: {error:.2e}");
        }
    });
}

/// Scores so far apart that powers of them have no number: what is left of a row is its maximum, which must be the row's.
#[test]
fn scores_far_apart() {
    on_stand_in("decode::scores_far_apart", "own-first", 1, || {
        for (path, groups, dims) in [(Gqa, 2, DEEPSEEK), (MqaAbsorb, 1, SMOLLM_LATENT)] {
            let (lengths, splits) = (vec![300, 70, 5], pages_each(2));
            let case = Case { path, heads: 10, groups, dims, s_q: 2, lengths, splits, spread: FAR_APART };
            check_all(&[case]);
        }
    });
}

/// Sequences get the same bits alone and beside others.
#[test]
fn a_batch_changes_no_result() {
    on_stand_in("decode::a_batch_changes_no_result", "own-first", 1, || {
        for (path, groups, dims) in [(Gqa, 2, DEEPSEEK), (MqaAbsorb, 1, LATENT)] {
            let case = |lengths: &[usize]| Case {
                path,
                heads: 10,
                groups,
                dims,
                s_q: 2,
                lengths: lengths.to_vec(),
                splits: Splits { least_pages: 1, most: 3 },
                spread: 1.0,
            };
            let run = |lengths: &[usize]| {
                let case = case(lengths);
                Bench::of(&case).run(&case).out.unwrap()
            };
            assert_eq!(run(&[300])[0], run(&[300, 1000, 7])[0], "{path}");
        }
    });
}
