//! Mistakes of the kind that kernels have, planted one at a time: each must be noticed, and by what should notice it.

use std::collections::BTreeSet;

use gqla_model::DecodePath::{Gqa, MqaAbsorb};

use crate::{
    case::{Case, pages_each},
    decode::{FAR_APART, MAX_ERROR},
    device::{Bench, Outcome, error_of, program},
    on_two_multiprocessors, on_two_multiprocessors_of,
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
    /// Matrices of shared memory that take more passes than they need, with numbers that are right.
    Conflicts,
}

struct Mutant {
    name: &'static str,
    /// What is replaced by what.
    changes: &'static [(&'static str, &'static str)],
    by: By,
}

const RACES: By = By::Fault(&["SharedReadAfterWrite", "SharedWriteAfterRead", "SharedWriteAfterWrite"]);
const NOT_OWN: By = By::Fault(&["GlobalUninitialised", "GlobalOutOfBoundsRead"]);

const SKIPPED_UNIT: Mutant = Mutant {
    name: "a block skips its last unit",
    changes: &[("i < p.work->count; i += gridDim.x", "i + gridDim.x < p.work->count; i += gridDim.x")],
    by: By::Fault(&["GlobalUninitialised"]),
};
const SHIFTED_LIST: Mutant = Mutant {
    name: "the list begins with its second unit",
    changes: &[("((const Unit*)(this + 1))[i]", "((const Unit*)(this + 1))[i + 1]")],
    by: By::Fault(&["GlobalOutOfBoundsRead"]),
};
const ONE_TURN_OF_MERGING: Mutant = Mutant {
    name: "a warp merges once",
    changes: &[("part += gridDim.x * WARPS", "part += parts")],
    by: By::Error,
};

/// Those who write and those who read agree where a chunk lies.
const NO_SWIZZLE_AT_ALL: Mutant = Mutant {
    name: "no swizzle, on either side",
    changes: &[("return row / (8 / TURNS) & (TURNS - 1);", "return 0;")],
    by: By::Conflicts,
};
const TWO_LANES_OF_FOUR: Mutant = Mutant {
    name: "maximum over two lanes of four",
    changes: &[("return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));", "return x;")],
    by: By::Error,
};
const HALVES_SWAPPED: Mutant = Mutant {
    name: "halves swapped within the assembly",
    changes: &[("\"f\"(high), \"f\"(low)", "\"f\"(low), \"f\"(high)")],
    by: By::Error,
};

const GQA_MUTANTS: [Mutant; 24] = [
    SKIPPED_UNIT,
    SHIFTED_LIST,
    ONE_TURN_OF_MERGING,
    NO_SWIZZLE_AT_ALL,
    TWO_LANES_OF_FOUR,
    HALVES_SWAPPED,
    Mutant {
        name: "no barrier between units",
        changes: &[("next unit's pages take.\n        __syncthreads();", "next unit's pages take.")],
        by: RACES,
    },
    Mutant {
        name: "no barrier in the loop",
        changes: &[("next one takes.\n        __syncthreads();", "next one takes.")],
        by: RACES,
    },
    Mutant {
        name: "no barrier before shared memory is used again",
        changes: &[(
            "sums take.\n    wait_copies<0>();\n    __syncthreads();",
            "sums take.\n    wait_copies<0>();",
        )],
        by: RACES,
    },
    Mutant {
        name: "no barrier between sums and those who read them",
        changes: &[("stats + warp * 32);\n    __syncthreads();", "stats + warp * 32);")],
        by: RACES,
    },
    Mutant {
        name: "waits for a group too few",
        changes: &[("wait_copies<STAGES == 1 ? 0 : STAGES - 2>();", "wait_copies<STAGES - 1>();")],
        by: By::Fault(&["SharedInFlight"]),
    },
    Mutant {
        name: "wrong matrix for a lane",
        changes: &[("turned(turn, k * 2, matrix % 2)", "turned(turn, k * 2, matrix / 2)")],
        by: By::Error,
    },
    Mutant {
        name: "values not transposed",
        changes: &[("load_matrices_transposed(value,", "load_matrices(value,")],
        by: By::Error,
    },
    Mutant {
        name: "no swizzle",
        changes: &[("turned(turn, n * 2, matrix / 2)", "turned(0, n * 2, matrix / 2)")],
        by: By::Error,
    },
    Mutant {
        name: "queries see those after them",
        changes: &[("? p.positions[t.query(row)] : -1;", "? t.length - 1 : -1;")],
        by: By::Error,
    },
    Mutant {
        name: "next page of the table",
        changes: &[("unit.pages + index]", "unit.pages + index + 1]")],
        by: NOT_OWN,
    },
    Mutant {
        name: "page before of the table, which the first sequence's first has none of",
        changes: &[("unit.pages + index]", "unit.pages + index - 1]")],
        by: By::Fault(&["GlobalOutOfBoundsRead"]),
    },
    Mutant { name: "page of nobody", changes: &[("+ index];", "+ index] + 100;")], by: NOT_OWN },
    Mutant {
        name: "another sequence's pages",
        changes: &[("unit.pages + index]", "(unit.pages + 5) % 8 + index]")],
        by: NOT_OWN,
    },
    Mutant {
        name: "one page too far ahead",
        changes: &[("if (page < pages.end) {", "if (page * PAGE < t.length) {")],
        by: By::Traffic,
    },
    Mutant {
        name: "one page too far ahead, into a place that is used again",
        // The copies that nobody needs must at least have arrived before.
        changes: &[
            ("if (page < pages.end) {", "if (page * PAGE < t.length) {"),
            ("wait_copies<0>();\n    __syncthreads();", "__syncthreads();"),
        ],
        by: By::Fault(&["SharedInFlight"]),
    },
    Mutant {
        name: "tail not clamped",
        changes: &[("min((int)PAGE, unit.length - index * PAGE)", "PAGE")],
        by: By::Fault(&["GlobalUninitialised"]),
    },
    Mutant {
        name: "splits that are not there are merged",
        changes: &[("return s < splits ?", "return s < p.most_splits ?")],
        by: By::Fault(&["GlobalUninitialised"]),
    },
    Mutant {
        name: "tiles of rows begin where the first does",
        changes: &[("unit.group, unit.first_row,", "unit.group, 0,")],
        by: By::Fault(&["GlobalUninitialised"]),
    },
];

const ABSORB_MUTANTS: [Mutant; 25] = [
    SKIPPED_UNIT,
    SHIFTED_LIST,
    ONE_TURN_OF_MERGING,
    NO_SWIZZLE_AT_ALL,
    HALVES_SWAPPED,
    Mutant {
        name: "wrong matrix for a lane",
        changes: &[("turned(turn, k * 2, lane / 8));", "turned(turn, k * 2, lane / 8 ^ 1));")],
        by: By::Error,
    },
    Mutant {
        name: "values not transposed",
        changes: &[("load_matrices_transposed(value[i % 2],", "load_matrices(value[i % 2],")],
        by: By::Error,
    },
    Mutant {
        name: "no swizzle",
        changes: &[("turned(turn, k * 2, lane / 8));", "turned(0, k * 2, lane / 8));")],
        by: By::Error,
    },
    Mutant {
        name: "next page of the table",
        changes: &[("unit.pages + first / PAGE]", "unit.pages + first / PAGE + 1]")],
        by: NOT_OWN,
    },
    Mutant {
        name: "page before of the table, which the first sequence's first has none of",
        changes: &[("unit.pages + first / PAGE]", "unit.pages + first / PAGE - 1]")],
        by: By::Fault(&["GlobalOutOfBoundsRead"]),
    },
    Mutant {
        name: "page of nobody",
        changes: &[("+ first / PAGE];", "+ first / PAGE] + 100;")],
        by: NOT_OWN,
    },
    Mutant {
        name: "the first sequence's pages, which hold numbers",
        changes: &[("unit.pages + first / PAGE]", "first / PAGE]")],
        by: By::Error,
    },
    Mutant {
        name: "no barrier between units, nor between sums and those who read them",
        changes: &[("next unit's barriers.\n    __syncthreads();", "next unit's barriers.")],
        by: RACES,
    },
    Mutant {
        name: "no barrier before tokens are used and their places again",
        changes: &[("next ones take.\n        __syncthreads();", "next ones take.")],
        by: RACES,
    },
    Mutant {
        name: "no barrier between maxima and those who read them",
        changes: &[("maxima are there.\n        __syncthreads();", "maxima are there.")],
        by: RACES,
    },
    Mutant {
        name: "no barrier between weights and those who read them",
        changes: &[("weights are there.\n        __syncthreads();", "weights are there.")],
        by: RACES,
    },
    Mutant {
        name: "waits for a group too few",
        changes: &[("wait_copies<0>();", "wait_copies<1>();")],
        by: By::Fault(&["SharedInFlight"]),
    },
    Mutant {
        name: "the other part's maximum forgotten",
        changes: &[(
            "maxima[part * rows + tile * 16 + row]",
            "maxima[threadIdx.x / WARP % PARTS * rows + tile * 16 + row]",
        )],
        by: By::Error,
    },
    Mutant {
        name: "the other part's sum forgotten",
        changes: &[("other < PARTS; other++) total", "other < 1; other++) total")],
        by: By::Error,
    },
    Mutant {
        name: "both parts sum the same columns",
        changes: &[("first = part * (COLUMNS / 8)", "first = 0")],
        by: By::Error,
    },
    Mutant {
        name: "values from behind the latent",
        changes: &[("first = part * (COLUMNS / 8)", "first = DR / 8 + part * (COLUMNS / 8)")],
        by: By::Error,
    },
    Mutant {
        name: "second step's keys for the first",
        changes: &[("key[n][2 * step], key[n][2 * step + 1]", "key[n][2], key[n][3]")],
        by: By::Error,
    },
    Mutant {
        name: "queries see those after them",
        changes: &[("? p.positions[t.query(row)] : -1;", "? t.length - 1 : -1;")],
        by: By::Error,
    },
    Mutant {
        name: "tail not clamped",
        changes: &[("min(TOKENS, length - first)", "TOKENS")],
        by: By::Fault(&["GlobalUninitialised"]),
    },
    Mutant {
        name: "every row read once more",
        changes: &[(
            "load_queries<ROWS, WIDTH, THREADS>(queries, p, t);",
            "load_queries<ROWS, WIDTH, THREADS>(queries, p, t);\n    load_tokens<TOKENS, THREADS>(stages, p, unit, begin, end);\n    wait_copies<0>();\n    commit_copies();\n    wait_copies<0>();",
        )],
        by: By::Traffic,
    },
];

/// Where queries are in registers, and parts give scores to each other.
const REGISTER_MUTANTS: [Mutant; 8] = [
    Mutant {
        name: "no barrier between scores and the part that they are given to",
        changes: &[("scored is there.\n            __syncthreads();", "scored is there.")],
        by: RACES,
    },
    Mutant {
        name: "the other part's scores forgotten",
        changes: &[("s[1][v]) + of_other[v];", "s[1][v]);")],
        by: By::Error,
    },
    Mutant {
        name: "scores of the part's own tokens given away",
        changes: &[("part == 0 ? s[1][v] : s[0][v];", "part == 0 ? s[0][v] : s[1][v];")],
        by: By::Error,
    },
    Mutant {
        name: "scores taken that the part gave itself",
        changes: &[("exchange[threadIdx.x ^ WARP]", "exchange[threadIdx.x]")],
        by: By::Error,
    },
    Mutant {
        name: "both parts multiply the same columns of keys",
        changes: &[("part * 4 + lane / 8));", "lane / 8));")],
        by: By::Error,
    },
    Mutant {
        name: "both parts have the same columns of queries",
        changes: &[("* WIDTH + part * 32 + lane", "* WIDTH + lane")],
        by: By::Error,
    },
    Mutant {
        name: "second step's queries for the first",
        changes: &[("q[i][1], key[2], key[3]", "q[i][0], key[2], key[3]")],
        by: By::Error,
    },
    Mutant {
        name: "queries that are not there",
        changes: &[("is_column = is_there && (", "is_column = (")],
        by: NOT_OWN,
    },
];

/// Tails as first page and as later ones, and splits that are not there.
fn gqa_case() -> Case {
    let (lengths, splits) = (vec![300, 70, 5], pages_each(2));
    Case { path: Gqa, heads: 80, groups: 2, dims: [128, 64, 128], s_q: 2, lengths, splits, spread: 1.0 }
}

fn absorb_case() -> Case {
    let (lengths, splits) = (vec![300, 70, 5], pages_each(3));
    Case { path: MqaAbsorb, heads: 20, groups: 1, dims: [512, 64, 512], s_q: 2, lengths, splits, spread: 1.0 }
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
            let of_path = case.least_bytes(&outcome.plan).into_iter().filter(|least| *least > 0);
            let more = outcome.read.iter().zip(of_path).all(|(read, least)| *read > least);
            faults.is_empty() && more && error.is_ok_and(|error| error <= MAX_ERROR)
        }
        By::Conflicts => {
            let least = outcome.read == case.least_bytes(&outcome.plan);
            let matrices = &outcome.reports[0]["counters"]["ldmatrix_shared"];
            let passes = |kind: &str| matrices[kind].as_u64().unwrap();
            let more = passes("actual") > passes("ideal");
            faults.is_empty() && least && more && error.is_ok_and(|error| error <= MAX_ERROR)
        }
    }
}

fn check(mutants: &[Mutant], case: &Case) {
    let program = program(case);
    for (device, mutant) in mutants.iter().enumerate() {
        let mut planted = program.text().to_owned();
        for (from, to) in mutant.changes {
            assert_eq!(planted.matches(from).count(), 1, "{}: its place is gone", mutant.name);
            planted = planted.replace(from, to);
        }
        let outcome = Bench::new(device, &program.clone().with_text(planted)).run(case);
        let error = outcome.out.as_ref().map_or(f64::INFINITY, |out| error_of(out, case));
        println!(
            "{}: faults {:?}, relative error {error:.2e}, read {:?}, matrices {}",
            mutant.name,
            faults(&outcome),
            outcome.read,
            outcome.reports[0]["counters"]["ldmatrix_shared"]
        );
        assert!(noticed(mutant.by, &outcome, case), "{}: not noticed by {:?}", mutant.name, mutant.by);
    }
}

// Errors of kernels stay with their device, so each mistake gets one of its own.
#[test]
fn mistakes_along_gqa_are_noticed() {
    on_two_multiprocessors("mutants::mistakes_along_gqa_are_noticed", "own-first", GQA_MUTANTS.len(), || {
        check(&GQA_MUTANTS, &gqa_case());
    });
}

#[test]
fn mistakes_along_absorb_are_noticed() {
    on_two_multiprocessors(
        "mutants::mistakes_along_absorb_are_noticed",
        "own-first",
        ABSORB_MUTANTS.len(),
        || {
            check(&ABSORB_MUTANTS, &absorb_case());
        },
    );
}

#[test]
fn mistakes_along_absorb_in_registers_are_noticed() {
    on_two_multiprocessors_of(
        "L40S",
        "mutants::mistakes_along_absorb_in_registers_are_noticed",
        REGISTER_MUTANTS.len(),
        || {
            check(&REGISTER_MUTANTS, &absorb_case());
        },
    );
}

/// All lanes of a row take its maximum from shared memory, so that a number too small makes weights that are all too large, and
/// no difference before they are too large for an f32.
#[test]
fn a_maximum_along_absorb_that_is_none_is_noticed() {
    on_two_multiprocessors("mutants::a_maximum_along_absorb_that_is_none_is_noticed", "own-first", 1, || {
        check(&[TWO_LANES_OF_FOUR], &Case { spread: FAR_APART, ..absorb_case() });
    });
}
