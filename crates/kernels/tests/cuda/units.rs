//! A grid that no step decides walks a step's units.

use gqla_kernels::device::{DeviceError, Splits};
use gqla_model::DecodePath::{Gqa, MqaAbsorb};
use serde_json::json;

use crate::{
    case::{Case, pages_each},
    decode::MAX_ERROR,
    device::{Bench, Outcome, error_of},
    on_stand_in, on_two_multiprocessors,
};

fn cases(s_q: usize, lengths: &[usize], splits: Splits) -> [Case; 2] {
    [(Gqa, 2, [128, 64, 128]), (MqaAbsorb, 1, [512, 64, 512])].map(|(path, groups, dims)| Case {
        path,
        heads: 10,
        groups,
        dims,
        s_q,
        lengths: lengths.to_vec(),
        splits,
        spread: 1.0,
    })
}

/// Blocks of both launches, of a step whose numbers are right.
fn blocks(outcome: Outcome, case: &Case) -> [u64; 2] {
    assert!(outcome.reports.iter().all(|report| report["faults"]["counts"] == json!({})), "{case:?}");
    let blocks = |index: usize| -> u64 {
        let grid = outcome.reports[index]["grid"].as_array().unwrap();
        grid.iter().map(|blocks| blocks.as_u64().unwrap()).product()
    };
    let blocks = [blocks(0), blocks(1)];
    let error = error_of(&outcome.out.unwrap(), case);
    assert!(error <= MAX_ERROR, "{case:?}: relative error {error:.2e}");
    blocks
}

/// Units are fewer than blocks, more, and many of one sequence among few of others: what is launched is the same.
#[test]
fn every_step_has_the_same_grid() {
    on_two_multiprocessors("units::every_step_has_the_same_grid", "own-first", 1, || {
        // Two blocks of 80 KiB share 228 KiB along GQA; along absorb, rows of 1152 bytes leave room for one.
        for (path, expected) in [(0, [4, 16]), (1, [2, 16])] {
            for lengths in [&[5][..], &[1000, 3, 64, 65], &[40, 1, 700, 130, 129, 2, 90]] {
                let case = &cases(1, lengths, pages_each(1))[path];
                assert_eq!(blocks(Bench::of(case).run(case), case), expected, "{case:?}");
            }
        }
    });
}

/// On a whole card, as many blocks as run at once.
#[test]
fn a_grid_is_what_runs_at_once() {
    on_stand_in("units::a_grid_is_what_runs_at_once", "own-first", 1, || {
        for (case, blocks_of) in cases(1, &[70, 3], pages_each(1)).iter().zip([2 * 78, 78]) {
            assert_eq!(blocks(Bench::of(case).run(case), case), [blocks_of, 8 * 78], "{case:?}");
        }
    });
}

/// An engine's tables hold steps of all sizes: a step has the bits that it has in tables of its own, whatever was there before,
/// and what there is no room for is refused.
#[test]
fn steps_share_tables() {
    on_two_multiprocessors("units::steps_share_tables", "own-first", 1, || {
        for case in cases(1, &[70, 3], pages_each(1)) {
            let bench = Bench::of(&case);
            let shared = bench.run_in(&case, Some([8, 1000])).unwrap();
            let own = bench.run(&case);
            assert_eq!(shared.out.as_ref().unwrap(), own.out.as_ref().unwrap(), "{case:?}");
            blocks(shared, &case);
            for room in [[1, 1000], [8, 64]] {
                let refused = bench.run_in(&case, Some(room)).map(|_| ()).unwrap_err();
                let DeviceError::Arguments { kernel: "tables", reason } = &refused else {
                    panic!("{refused}")
                };
                assert!(reason.contains("a step needs"), "{reason}");
            }
        }
    });
}
