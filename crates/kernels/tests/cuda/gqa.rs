//! Decode along the GQA path: right, and with no more traffic than it takes.

use serde_json::json;

use crate::{
    case::Case,
    device::{Device, error_of, source},
    on_stand_in,
};

/// Bound on the relative error, which bf16 weights and outputs make about 2e-3.
pub const MAX_ERROR: f64 = 6e-3;

const DEEPSEEK: [usize; 3] = [128, 64, 128];

fn check(case: &Case) -> f64 {
    let outcome = Device::new(0, &source(), case).run(case);
    let error = error_of(&outcome.out.unwrap(), case);
    assert!(error <= MAX_ERROR, "{case:?}: relative error {error:.2e}");
    assert_eq!(outcome.read, case.least_bytes(), "{case:?}: every key and value is read once");
    let counters = &outcome.reports[0]["counters"];
    assert_eq!(counters["mma"], case.least_mma(), "{case:?}");
    for way in ["ldmatrix_shared", "cp_async_shared"] {
        assert_eq!(counters[way]["actual"], counters[way]["ideal"], "{case:?}: {way} has bank conflicts");
    }
    assert!(outcome.reports.iter().all(|report| report["faults"]["counts"] == json!({})), "{case:?}");
    error
}

/// Batches of all combinations of heads per group and queries.
fn cases(dims: [usize; 3], heads: &[[usize; 2]], s_q: std::ops::RangeInclusive<usize>) -> Vec<Case> {
    let mut all = Vec::new();
    for [heads, groups] in heads.iter().copied() {
        for s_q in s_q.clone() {
            for (lengths, pages_per_split) in
                [(vec![s_q, 63, 65], 1), (vec![1000, 64, 128 + s_q], 4), (vec![200, s_q + 1], 16)]
            {
                all.push(Case { heads, groups, dims, s_q, lengths, pages_per_split });
            }
        }
    }
    all
}

fn check_all(cases: &[Case]) {
    let errors: Vec<f64> = cases.iter().map(check).collect();
    let sequences: usize = cases.iter().map(|case| case.lengths.len()).sum();
    let (least, most) =
        errors.iter().fold((f64::INFINITY, 0.0f64), |(least, most), x| (least.min(*x), most.max(*x)));
    println!("{sequences} sequences in {} steps: relative error {least:.2e} to {most:.2e}", cases.len());
}

#[test]
fn deepseek_dimensions() {
    on_stand_in("gqa::deepseek_dimensions", "own-first", 1, || {
        check_all(&cases(DEEPSEEK, &[[2, 2], [10, 2], [20, 2], [16, 1], [9, 3]], 1..=4));
    });
}

#[test]
fn other_dimensions() {
    on_stand_in("gqa::other_dimensions", "own-first", 1, || {
        check_all(&cases([64, 64, 64], &[[9, 3]], 1..=4));
        check_all(&cases([192, 64, 256], &[[20, 4]], 1..=2));
    });
}

#[test]
fn any_order_of_warps() {
    for order in ["others-first", "1", "2"] {
        on_stand_in("gqa::any_order_of_warps", order, 1, || check_all(&cases(DEEPSEEK, &[[20, 2]], 2..=3)));
    }
}

/// Sequences get the same bits alone and beside others.
#[test]
fn a_batch_changes_no_result() {
    on_stand_in("gqa::a_batch_changes_no_result", "own-first", 1, || {
        let case = |lengths: &[usize]| Case {
            heads: 10,
            groups: 2,
            dims: DEEPSEEK,
            s_q: 2,
            lengths: lengths.to_vec(),
            pages_per_split: 2,
        };
        let run = |lengths: &[usize]| {
            let case = case(lengths);
            Device::new(0, &source(), &case).run(&case).out.unwrap()
        };
        assert_eq!(run(&[300])[0], run(&[300, 1000, 7])[0]);
    });
}
