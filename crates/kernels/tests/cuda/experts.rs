//! A mixture of experts: rows find those that the processor finds, each chosen expert's weights are read once, and a row has the
//! bits that it has alone.

use std::collections::BTreeMap;

use gqla_kernels::{
    choose_experts,
    device::{
        Buffer, Choices, Destination, Device, DeviceError, ExpertKernels, ExpertRows, Gemm, Images, Program,
        Router, RouterShape, Rows, Weights,
    },
};
use gqla_model::Routing;
use half::bf16;
use serde_json::Value;

use crate::{case::Noise, device::reports, on_stand_in};

fn kernels(ordinal: usize, program: &Program) -> (Device, ExpertKernels) {
    let device = Device::open(ordinal).unwrap();
    let kernels = ExpertKernels::new(&Images::default().load(&device, program).unwrap()).unwrap();
    (device, kernels)
}

fn narrow(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Logits of every row, exactly: the router's weights are the identity.
fn choose(
    (device, kernels): &(Device, ExpertKernels),
    shape: RouterShape,
    logits: &[bf16],
    bias: &[f32],
) -> Result<Vec<Vec<(usize, f32)>>, DeviceError> {
    let rows = logits.len() / shape.experts;
    let hidden = shape.experts.next_multiple_of(8);
    let mut x = vec![bf16::ZERO; rows * hidden];
    for (to, from) in x.chunks_mut(hidden).zip(logits.chunks(shape.experts)) {
        to[..shape.experts].copy_from_slice(from);
    }
    let identity: Vec<f32> =
        (0..shape.experts * hidden).map(|i| f32::from(u8::from(i / hidden == i % hidden))).collect();
    let router = Router::upload(device, "router", shape, [&identity, bias]).unwrap();
    let mut choices = Choices::new(device, shape, rows).unwrap();
    kernels.route(device, &router, &device.upload("x", &x).unwrap(), rows, &mut choices)?;
    choices.download(device)
}

/// As the processor chooses, by ascending expert.
fn expected(shape: RouterShape, logits: &[bf16], bias: &[f32]) -> Vec<Vec<(usize, f32)>> {
    let of_row = |row: &[bf16]| {
        let mut chosen = choose_experts(&shape.routing, shape.per_token, &narrow(row), bias);
        chosen.sort_by_key(|(expert, _)| *expert);
        chosen
    };
    logits.chunks(shape.experts).map(of_row).collect()
}

/// Whether all choices are the same, and their weights to rounding.
fn agree(ours: &[Vec<(usize, f32)>], expected: &[Vec<(usize, f32)>]) -> bool {
    let same = |((a, x), (b, y)): (&(usize, f32), &(usize, f32))| a == b && (x - y).abs() <= 1e-5 * y.abs();
    ours.len() == expected.len()
        && ours.iter().zip(expected).all(|(a, b)| a.len() == b.len() && a.iter().zip(b).all(same))
}

fn shape(experts: usize, per_token: usize, [n_group, topk_group]: [u32; 2]) -> RouterShape {
    let routing = Routing { n_group, topk_group, norm_topk_prob: true, routed_scaling_factor: 1.8 };
    RouterShape { experts, per_token, routing }
}

/// Random logits, and logits of which many are equal: biases too, so that groups tie as well.
fn tried(shape: RouterShape, rows: usize) -> [(Vec<bf16>, Vec<f32>); 2] {
    let logits = Noise::new(7).take(rows * shape.experts);
    let bias: Vec<f32> = narrow(&Noise::new(8).take(shape.experts)).iter().map(|x| x / 4.0).collect();
    let tied = logits.iter().map(|x| bf16::from_f32((x.to_f32() * 1.5).round())).collect();
    let halves = bias.iter().map(|x| (x * 2.0).round() / 2.0).collect();
    [(logits, bias), (tied, halves)]
}

#[test]
fn rows_choose_what_the_processor_chooses() {
    on_stand_in("experts::rows_choose_what_the_processor_chooses", "own-first", 1, || {
        let loaded = kernels(0, &Program::experts());
        let raw = |shape: RouterShape| RouterShape {
            routing: Routing { norm_topk_prob: false, ..shape.routing },
            ..shape
        };
        for (shape, rows) in [
            (shape(8, 2, [1, 1]), 9),
            (raw(shape(10, 3, [5, 2])), 9),
            (shape(64, 4, [1, 1]), 5),
            (shape(72, 32, [8, 4]), 3),
            (shape(32, 6, [32, 20]), 4),
            (shape(7, 7, [1, 1]), 2),
        ] {
            for (logits, bias) in tried(shape, rows) {
                let ours = choose(&loaded, shape, &logits, &bias).unwrap();
                let expected = expected(shape, &logits, &bias);
                assert!(agree(&ours, &expected), "{shape:?}: {ours:?}, expected {expected:?}");
            }
        }
        let router = Router::upload(&loaded.0, "router", shape(40, 8, [40, 20]), [&[0.0; 1600], &[0.0; 40]]);
        let error = router.err().unwrap().to_string();
        assert!(error.starts_with("experts: 8 of 40 experts in 20 of 40 groups"), "{error}");
    });
}

/// Rows that go into experts and out of them again.
#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    hidden: usize,
    inner: usize,
    shape: RouterShape,
}

struct Outcome {
    choices: Vec<Vec<(usize, f32)>>,
    /// By expert, then row.
    between: Vec<f32>,
    residual: Vec<f32>,
    /// Of either product's launch, bytes of weights.
    read: [u64; 2],
    /// Of the router's.
    router_read: u64,
    reports: Vec<Value>,
}

impl Case {
    fn x(&self) -> Vec<bf16> {
        Noise::new(1).take(self.rows * self.hidden)
    }

    /// Experts' two matrices.
    fn weights(&self) -> [Vec<bf16>; 2] {
        [2, 3].map(|seed| Noise::new(seed).take(self.shape.experts * self.inner * self.hidden))
    }

    fn run(&self, (device, kernels): &(Device, ExpertKernels)) -> Result<Outcome, DeviceError> {
        let Self { rows, hidden, inner, shape } = *self;
        let router: Vec<f32> =
            narrow(&Noise::new(4).take(shape.experts * hidden)).iter().map(|x| x / 16.0).collect();
        let router = Router::upload(device, "router", shape, [&router, &vec![0.0; shape.experts]])?;
        let [into, out_of] = self.weights();
        let into = Weights::upload(device, "into", &into, [shape.experts, inner, hidden])?;
        let out_of = Weights::upload(device, "out of", &out_of, [shape.experts, hidden, inner])?;
        let x = device.upload("x", &self.x())?;
        let total = rows * shape.per_token;
        let mut between: Buffer<bf16> = device.unwritten("between", total * inner)?;
        let mut whole: Buffer<f32> = device.unwritten("between", total * inner)?;
        let mut answers: Buffer<f32> = device.unwritten("answers", total * hidden)?;
        let mut residual = device.upload("residual", &vec![1.0; rows * hidden])?;
        let mut choices = Choices::new(device, shape, rows)?;
        let already = reports().len();
        kernels.route(device, &router, &x, rows, &mut choices)?;
        let from = (&x, ExpertRows::OfStep);
        kernels.multiply(device, &into, &choices, from, Destination::Bf16(&mut between))?;
        kernels.multiply(device, &into, &choices, from, Destination::F32(&mut whole))?;
        let from = (&between, ExpertRows::Sorted);
        kernels.multiply(device, &out_of, &choices, from, Destination::F32(&mut answers))?;
        kernels.combine(device, &choices, (&answers, hidden), &mut residual)?;
        let residual = device.download(&residual, rows * hidden)?;
        let reports = reports().split_off(already);
        let read_at = |launch: usize, address: u64| {
            reports[launch]["buffers"][address.to_string()]["read"].as_u64().unwrap()
        };
        let read = |launch: usize, weights: &Weights| read_at(launch, weights.numbers().address());
        Ok(Outcome {
            choices: choices.download(device)?,
            between: device.download(&whole, total * inner)?,
            residual,
            read: [read(3, &into), read(5, &out_of)],
            router_read: read_at(0, router.weights().address()),
            reports,
        })
    }

    /// How many rows took each expert that any took.
    fn runs(choices: &[Vec<(usize, f32)>]) -> BTreeMap<usize, usize> {
        let mut runs = BTreeMap::new();
        choices.iter().flatten().for_each(|(expert, _)| *runs.entry(*expert).or_default() += 1);
        runs
    }

    /// Relative root mean square error of the residual stream against float64, for the choices that were made.
    fn error(&self, got: &Outcome) -> f64 {
        let wide = |x: &[bf16]| x.iter().map(|x| x.to_f64()).collect::<Vec<_>>();
        let (x, [into, out_of]) = (wide(&self.x()), self.weights().map(|w| wide(&w)));
        let size = self.inner * self.hidden;
        let product = |w: &[f64], x: &[f64]| -> Vec<f64> {
            w.chunks(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let (mut off, mut all) = (0.0, 0.0);
        for ((x, chosen), got) in
            x.chunks(self.hidden).zip(&got.choices).zip(got.residual.chunks(self.hidden))
        {
            let mut sums = vec![1.0; self.hidden];
            for (expert, weight) in chosen {
                let of = |all: &[f64]| all[expert * size..][..size].to_vec();
                let answer = product(&of(&out_of), &product(&of(&into), x));
                sums.iter_mut().zip(answer).for_each(|(sum, part)| *sum += f64::from(*weight) * part);
            }
            off += sums.iter().zip(got).map(|(sum, got)| (sum - f64::from(*got)).powi(2)).sum::<f64>();
            all += sums.iter().map(|sum| sum * sum).sum::<f64>();
        }
        let error = f64::sqrt(off / all);
        if error.is_nan() { f64::INFINITY } else { error }
    }
}

/// What bf16 between the two products explains.
const MAX_ERROR: f64 = 2.5e-3;

#[test]
fn each_chosen_experts_weights_are_read_once() {
    on_stand_in("experts::each_chosen_experts_weights_are_read_once", "own-first", 1, || {
        let loaded = kernels(0, &Program::experts());
        for (rows, hidden, inner, shape) in [
            (1, 64, 24, shape(8, 2, [1, 1])),
            (16, 72, 40, shape(10, 3, [5, 2])),
            (17, 136, 72, shape(6, 2, [1, 1])),
            (64, 64, 64, shape(8, 2, [1, 1])),
            (150, 64, 24, shape(3, 2, [1, 1])),
        ] {
            let case = Case { rows, hidden, inner, shape };
            let got = case.run(&loaded).unwrap();
            let error = case.error(&got);
            assert!(error <= MAX_ERROR, "{rows} rows: {error:.2e}");
            let tiles: usize = Case::runs(&got.choices).values().map(|rows| rows.div_ceil(64)).sum();
            assert_eq!(got.read, [(tiles * hidden * inner * 2) as u64; 2], "{rows} rows");
            let of_router = rows.div_ceil(64) * shape.experts * hidden * size_of::<f32>();
            assert_eq!(got.router_read, of_router as u64, "{rows} rows");
            for (kernel, report) in [("bf16", 3), ("f32", 5)].map(|(to, i)| (to, &got.reports[i])) {
                assert!(report["kernel"].as_str().unwrap().ends_with(kernel), "{report}");
                for way in ["ldmatrix_shared", "cp_async_shared"] {
                    let counted = &report["counters"][way];
                    assert_eq!(counted["actual"], counted["ideal"], "{rows} rows: {way} has bank conflicts");
                }
            }
        }
    });
}

/// Few rows, more, and many of an expert go to different kernels, and all have the bits of a product of the expert alone.
#[test]
fn a_row_has_the_bits_that_it_has_alone() {
    on_stand_in("experts::a_row_has_the_bits_that_it_has_alone", "own-first", 1, || {
        let loaded = kernels(0, &Program::experts());
        let (hidden, inner, shape) = (200, 40, shape(5, 2, [1, 1]));
        let of = |rows| Case { rows, hidden, inner, shape };
        let [one, few, more, many] = [1, 9, 20, 70].map(|rows| of(rows).run(&loaded).unwrap());
        assert_eq!(one.residual, few.residual[..hidden]);
        assert_eq!(few.residual, more.residual[..9 * hidden]);
        assert_eq!(more.residual, many.residual[..20 * hidden]);
        assert_eq!(few.choices, many.choices[..9]);

        let device = &loaded.0;
        let gemm = Gemm::new(&Images::default().load(device, &Program::gemm()).unwrap()).unwrap();
        let (x, [into, _]) = (device.upload("x", &of(70).x()).unwrap(), of(70).weights());
        let mut place = 0;
        for expert in 0..5 {
            let numbers = &into[expert * inner * hidden..][..inner * hidden];
            let weights = Weights::upload(device, "w", numbers, [1, inner, hidden]).unwrap();
            let mut y: Buffer<f32> = device.unwritten("y", 70 * inner).unwrap();
            let [from, to] = [hidden, inner].map(|width| Rows::even(0, width).unwrap());
            gemm.launch(device, &weights, 70, (&x, from), (Destination::F32(&mut y), to)).unwrap();
            let alone = device.download(&y, 70 * inner).unwrap();
            let took = |row: &usize| many.choices[*row].iter().any(|(chosen, _)| *chosen == expert);
            for row in (0..70).filter(took) {
                assert_eq!(many.between[place * inner..][..inner], alone[row * inner..][..inner]);
                place += 1;
            }
        }
        assert_eq!(place, 140, "every choice has a row");
    });
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// A report of this fault.
    Fault(&'static str),
    /// Rows' choices.
    Choices,
    /// Numbers.
    Error,
    /// Bytes of weights.
    Traffic,
}

/// A mistake: its name, what is replaced by what, and what tells.
type Mutant = (&'static str, &'static [(&'static str, &'static str)], By);

const MUTANTS: [Mutant; 11] = [
    ("the first expert's weights", &[("(u64)tile.expert * p.outputs", "(u64)0 * p.outputs")], By::Error),
    ("choices of other rows", &[("p.places[choice] * p.width", "choice * p.width")], By::Error),
    (
        "no barrier after rows are found",
        &[("// Rows are found.\n        __syncthreads();", "")],
        By::Fault("Shared"),
    ),
    (
        "no barrier before the router's next weights",
        &[("// All are done with the piece before.\n        __syncthreads();", "")],
        By::Fault("Shared"),
    ),
    (
        "no barrier after the router's weights",
        &[("// The piece is there.\n        __syncthreads();", "")],
        By::Fault("Shared"),
    ),
    ("no barrier after counts", &[("// Counts are there.\n    __syncthreads();", "")], By::Fault("Shared")),
    (
        "no barrier after places",
        &[("// Runs have their places.\n    __syncthreads();", "")],
        By::Fault("Shared"),
    ),
    (
        "rows beyond a tile's end",
        &[("min(first_row + (int)threadIdx.x, rows - 1)", "first_row + (int)threadIdx.x")],
        By::Fault("Global"),
    ),
    (
        "of equals the last",
        &[("(u32)~index; }", "(u32)index; }"), ("return (int)~(u32)rank;", "return (int)(u32)rank;")],
        By::Choices,
    ),
    ("the bias weighs", &[("sum += scores[chosen];", "sum += biased[chosen];")], By::Choices),
    (
        "weights read once more",
        &[(
            "if (tile.expert < 0) return;",
            "if (tile.expert < 0) return; *(volatile const u16*)(p.weights + (u64)tile.expert * p.outputs * p.inputs);",
        )],
        By::Traffic,
    ),
];

// Errors of kernels stay with their device, so each mistake gets one of its own.
#[test]
fn mistakes_with_experts_are_noticed() {
    on_stand_in("experts::mistakes_with_experts_are_noticed", "own-first", MUTANTS.len(), || {
        for (ordinal, (name, changes, by)) in MUTANTS.into_iter().enumerate() {
            let mut planted = Program::experts().text().to_owned();
            for (from, to) in changes {
                assert_eq!(planted.matches(from).count(), 1, "{name}: its place is gone");
                planted = planted.replace(from, to);
            }
            let loaded = kernels(ordinal, &Program::experts().with_text(planted));
            let shape = shape(10, 3, [5, 2]);
            // Wider than what the router copies at a time.
            let hidden = 2120;
            let case = Case { rows: 9, hidden, inner: 40, shape };
            let noticed = match by {
                By::Choices => {
                    let [_, (logits, bias)] = tried(shape, 9);
                    let ours = choose(&loaded, shape, &logits, &bias).unwrap();
                    !agree(&ours, &expected(shape, &logits, &bias))
                }
                By::Error => case.error(&case.run(&loaded).unwrap()) > 0.1,
                By::Traffic => {
                    let got = case.run(&loaded).unwrap();
                    let least = (Case::runs(&got.choices).len() * hidden * 40 * 2) as u64;
                    case.error(&got) <= MAX_ERROR && got.read.iter().all(|read| *read > least)
                }
                By::Fault(kind) => {
                    let already = reports().len();
                    let failed = case.run(&loaded).is_err();
                    let is_told = |report: &Value| {
                        let counts = report["faults"]["counts"].as_object();
                        counts.is_some_and(|counts| counts.keys().any(|told| told.starts_with(kind)))
                    };
                    failed && reports().split_off(already).iter().any(is_told)
                }
            };
            assert!(noticed, "{name}: not noticed by {by:?}");
        }
    });
}
