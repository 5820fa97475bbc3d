//! What a kernel was tried on, for programs and for people.

use std::{collections::BTreeMap, fmt};

use gqla_kernels::device::{DecodePlan, Program, RowTrial, SampleTrial, Splits, Tiling, Trial};
use serde::Serialize;

/// Dimensions of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Shape {
    Decode {
        heads: u32,
        groups: u32,
        d_nope: u32,
        d_v: u32,
        d_rope: u32,
        r: u32,
        s_q: usize,
        tokens: usize,
        /// Units that read each token, per group whose heads share keys; none where there is no kernel.
        row_tiles: Option<usize>,
    },
    Product {
        rows: usize,
        outputs: usize,
        inputs: usize,
    },
    Experts {
        rows: usize,
        hidden: usize,
        inner: usize,
        experts: usize,
        per_token: usize,
    },
    Row {
        rows: usize,
        width: usize,
    },
    /// What a program is compiled for.
    Program(BTreeMap<String, u32>),
}

impl Shape {
    pub(super) fn of_program(program: &Program) -> Self {
        let name = |name: &str| if name == "RANK" { "r".to_owned() } else { name.to_lowercase() };
        Self::Program(program.numbers().iter().map(|(text, number)| (name(text), *number)).collect())
    }

    pub(super) fn of(trial: &Trial, plan: Option<&DecodePlan>) -> Self {
        match trial {
            Trial::Decode(trial) => Self::Decode {
                heads: trial.shape.heads,
                groups: trial.shape.groups,
                d_nope: trial.shape.nope,
                d_v: trial.shape.value,
                d_rope: trial.shape.rope,
                r: trial.shape.rank,
                s_q: trial.queries,
                tokens: trial.tokens,
                row_tiles: plan
                    .map(|plan| Tiling::of(plan, &trial.shape, Splits::ENGINE).tiles(trial.queries)),
            },
            Trial::Product(trial) => {
                Self::Product { rows: trial.rows, outputs: trial.outputs, inputs: trial.inputs }
            }
            Trial::Experts(trial) => Self::Experts {
                rows: trial.rows,
                hidden: trial.hidden,
                inner: trial.inner,
                experts: trial.router.experts,
                per_token: trial.router.per_token,
            },
            Trial::Row(_) => Self::Row { rows: RowTrial::ROWS, width: RowTrial::WIDTH },
            Trial::Sample(_) => Self::Row { rows: SampleTrial::ROWS, width: SampleTrial::WIDTH },
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode { heads, groups, d_nope, d_v, d_rope, r, s_q, tokens, .. } => write!(
                f,
                "{heads} heads, {groups} groups of {d_nope}+{d_rope} and {d_v}, r {r}, s_q {s_q}, {tokens} tokens"
            ),
            Self::Product { rows, outputs, inputs } => write!(f, "{rows} rows, {outputs} x {inputs}"),
            Self::Experts { rows, hidden, inner, experts, per_token } => {
                write!(f, "{rows} rows of {hidden}, {per_token} of {experts} experts of {inner}")
            }
            Self::Row { rows, width } => write!(f, "{rows} rows of {width}"),
            Self::Program(numbers) => {
                let numbers: Vec<String> =
                    numbers.iter().map(|(name, number)| format!("{name} {number}")).collect();
                f.write_str(&numbers.join(", "))
            }
        }
    }
}
