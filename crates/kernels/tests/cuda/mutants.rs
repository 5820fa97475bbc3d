//! Mistakes of the kind that kernels have, planted one at a time: each must be noticed, and by what should notice it.

use std::collections::BTreeSet;

use crate::{
    case::Case,
    device::{Device, Outcome, error_of, source},
    gqa::MAX_ERROR,
    on_stand_in,
};

/// What notices a mistake.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// A fault of one of these kinds.
    Fault(&'static [&'static str]),
    /// Numbers that are off.
    Error,
    /// More bytes than it takes, with numbers that are right.
    Traffic,
}

struct Mutant {
    name: &'static str,
    /// What is replaced by what.
    changes: &'static [(&'static str, &'static str)],
    by: By,
}

const RACES: By = By::Fault(&["SharedReadAfterWrite", "SharedWriteAfterRead", "SharedWriteAfterWrite"]);
const NOT_OWN: By = By::Fault(&["GlobalUninitialised", "GlobalOutOfBoundsRead"]);

const MUTANTS: [Mutant; 17] = [
    Mutant {
        name: "no barrier in the loop",
        changes: &[("next one takes.\n        __syncthreads();", "next one takes.")],
        by: RACES,
    },
    Mutant {
        name: "no barrier before shared memory is used again",
        changes: &[("sums take.\n    __syncthreads();", "sums take.")],
        by: RACES,
    },
    Mutant {
        name: "no barrier between sums and those who read them",
        changes: &[("stats + warp * 32);\n    __syncthreads();", "stats + warp * 32);")],
        by: RACES,
    },
    Mutant {
        name: "waits for a group too few",
        changes: &[("wait_copies<0>();", "wait_copies<1>();")],
        by: By::Fault(&["SharedInFlight"]),
    },
    Mutant {
        name: "wrong matrix for a lane",
        changes: &[("swizzled(row, k * 2 + matrix % 2)", "swizzled(row, k * 2 + matrix / 2)")],
        by: By::Error,
    },
    Mutant {
        name: "values not transposed",
        changes: &[("load_matrices_transposed(value,", "load_matrices(value,")],
        by: By::Error,
    },
    Mutant {
        name: "no swizzle",
        changes: &[("swizzled(row, n * 2 + matrix / 2)", "(n * 2 + matrix / 2)")],
        by: By::Error,
    },
    Mutant {
        name: "maximum over two lanes of four",
        changes: &[("return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));", "return x;")],
        by: By::Error,
    },
    Mutant {
        name: "queries see those after them",
        changes: &[("last[half] = length - p.s_q + query;", "last[half] = length - 1;")],
        by: By::Error,
    },
    Mutant {
        name: "next page of the table",
        changes: &[("p.table_width + index]", "p.table_width + index + 1]")],
        by: NOT_OWN,
    },
    Mutant { name: "page of nobody", changes: &[("+ index];", "+ index] + 100;")], by: NOT_OWN },
    Mutant {
        name: "another sequence's pages",
        changes: &[(
            "p.page_table[sequence * p.table_width",
            "p.page_table[(sequence + 1) % p.batch * p.table_width",
        )],
        by: By::Fault(&["GlobalUninitialised", "GlobalOutOfBoundsRead"]),
    },
    Mutant {
        name: "one page too far ahead",
        // The copies that nobody needs must at least have arrived before their place is used again.
        changes: &[
            ("if (page + 1 < pages.end) {", "if ((page + 1) * PAGE < length) {"),
            ("sums take.\n    __syncthreads();", "sums take.\n    wait_copies<0>();\n    __syncthreads();"),
        ],
        by: By::Traffic,
    },
    Mutant {
        name: "one page too far ahead, into a place that is used again",
        changes: &[("if (page + 1 < pages.end) {", "if ((page + 1) * PAGE < length) {")],
        by: By::Fault(&["SharedInFlight"]),
    },
    Mutant {
        name: "tail not clamped",
        changes: &[("min((int)PAGE, length - index * PAGE)", "PAGE")],
        by: By::Fault(&["GlobalUninitialised"]),
    },
    Mutant {
        name: "halves swapped within the assembly",
        changes: &[("\"f\"(high), \"f\"(low)", "\"f\"(low), \"f\"(high)")],
        by: By::Error,
    },
    Mutant {
        name: "splits that are not there are merged",
        changes: &[("for (int s = 0; s < splits; s++) most", "for (int s = 0; s < p.splits; s++) most")],
        by: By::Fault(&["GlobalUninitialised"]),
    },
];

/// Tails as first page and as later ones, and splits that are not there.
fn case() -> Case {
    Case { heads: 20, groups: 2, dims: [128, 64, 128], s_q: 2, lengths: vec![300, 70, 5], pages_per_split: 2 }
}

fn faults(outcome: &Outcome) -> BTreeSet<String> {
    let counts = outcome.reports.iter().filter_map(|report| report["faults"]["counts"].as_object());
    counts.flat_map(|counts| counts.keys().cloned()).collect()
}

fn noticed(by: By, outcome: &Outcome, case: &Case) -> bool {
    let faults = faults(outcome);
    let error = outcome.out.as_ref().map(|out| error_of(out, case));
    match by {
        By::Fault(kinds) => outcome.out.is_err() && kinds.iter().any(|kind| faults.contains(*kind)),
        By::Error => faults.is_empty() && error.is_ok_and(|error| error > MAX_ERROR),
        By::Traffic => {
            let more = outcome.read.iter().zip(case.least_bytes()).all(|(read, least)| *read > least);
            faults.is_empty() && more && error.is_ok_and(|error| error <= MAX_ERROR)
        }
    }
}

#[test]
fn planted_mistakes_are_noticed() {
    // Errors of kernels stay with their device, so each mistake gets one of its own.
    on_stand_in("mutants::planted_mistakes_are_noticed", "own-first", MUTANTS.len(), || {
        let (case, source) = (case(), source());
        for (device, mutant) in MUTANTS.iter().enumerate() {
            let mut planted = source.clone();
            for (from, to) in mutant.changes {
                assert_eq!(source.matches(from).count(), 1, "{}: its place is gone", mutant.name);
                planted = planted.replace(from, to);
            }
            let outcome = Device::new(device, &planted, &case).run(&case);
            let error = outcome.out.as_ref().map_or(f64::INFINITY, |out| error_of(out, &case));
            println!(
                "{}: faults {:?}, relative error {error:.2e}, read {:?}",
                mutant.name,
                faults(&outcome),
                outcome.read
            );
            assert!(noticed(mutant.by, &outcome, &case), "{}: not noticed by {:?}", mutant.name, mutant.by);
        }
    });
}
