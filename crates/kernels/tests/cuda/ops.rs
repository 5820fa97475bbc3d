//! Products and row-wise operations: right to the bits that bf16 has, and with no more traffic than they take.

use gqla_kernels::{
    attention::{BLOCK_TOKENS, Segment},
    device::{
        Append, Buffer, Destination, Device, DeviceError, Gemm, Heads, Images, Norm, NormInput, Program,
        RowKernels, RowMap, Rows, Tables, Weights,
    },
    ops::{Rope, RopeStyle},
};
use half::bf16;
use serde_json::{Value, json};

use crate::{case::Noise, device::reports, on_stand_in};

/// Half a unit in the last place of bf16.
const HALF_ULP: f64 = 1.0 / 256.0;

fn wide(x: &[bf16]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Every number within `bound` of the expected one, relative to the largest of both.
fn assert_close(got: &[f64], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (x, y)) in got.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= bound * y.abs().max(5e-2), "{what}: number {i} is {x}, expected {y}");
    }
}

/// `groups` products of `rows` rows; rows of a group are `inner` heads of a token.
struct Product {
    groups: usize,
    inner: usize,
    tokens: usize,
    outputs: usize,
    inputs: usize,
}

/// What a product gave, by row, group and output, as bf16, as f32, and added to ones.
struct Products {
    bf16: Vec<f64>,
    f32: Vec<f64>,
    added: Vec<f64>,
    weight_bytes_read: u64,
    reports: Vec<Value>,
}

impl Product {
    fn rows(&self) -> usize {
        self.tokens * self.inner
    }

    fn x(&self) -> Vec<bf16> {
        Noise::new(3).take(self.tokens * self.groups * self.inner * self.inputs)
    }

    fn w(&self) -> Vec<bf16> {
        Noise::new(4).take(self.groups * self.outputs * self.inputs)
    }

    fn map(&self, width: usize) -> Rows {
        let map = RowMap::nested(self.inner, width, self.groups * self.inner * width).unwrap();
        Rows { offset: 0, map, apart: self.inner * width }
    }

    fn run(&self, device: &Device, gemm: &Gemm) -> Result<Products, DeviceError> {
        let weights = Weights::upload(device, "w", &self.w(), [self.groups, self.outputs, self.inputs])?;
        let x = device.upload("x", &self.x())?;
        let count = self.rows() * self.groups * self.outputs;
        let mut rounded: Buffer<bf16> = device.unwritten("y", count)?;
        let mut whole: Buffer<f32> = device.unwritten("y", count)?;
        let mut added = device.upload("y", &vec![1.0f32; count])?;
        let already = reports().len();
        for to in
            [Destination::Bf16(&mut rounded), Destination::F32(&mut whole), Destination::Add(&mut added)]
        {
            let (x, y) = ((&x, self.map(self.inputs)), (to, self.map(self.outputs)));
            gemm.launch(device, &weights, self.rows(), x, y)?;
        }
        let float = |y: Vec<f32>| y.into_iter().map(f64::from).collect();
        let (bf16, f32, added) = (
            wide(&device.download(&rounded, count)?),
            float(device.download(&whole, count)?),
            float(device.download(&added, count)?),
        );
        let reports = reports().split_off(already);
        let address = weights.numbers().address().to_string();
        let weight_bytes_read = reports[0]["buffers"][address]["read"].as_u64().unwrap();
        Ok(Products { bf16, f32, added, weight_bytes_read, reports })
    }

    fn expected(&self) -> Vec<f64> {
        let (x, w) = (wide(&self.x()), wide(&self.w()));
        let rows = x.chunks(self.inputs).enumerate().flat_map(|(row, x)| {
            let group = row / self.inner % self.groups;
            let of_group = &w[group * self.outputs * self.inputs..][..self.outputs * self.inputs];
            of_group
                .chunks(self.inputs)
                .map(move |w| x.iter().zip(w).map(|(x, w)| x * w).sum())
                .collect::<Vec<f64>>()
        });
        rows.collect()
    }
}

fn gemm(program: &Program) -> (Device, Gemm) {
    gemm_on(0, program)
}

fn gemm_on(ordinal: usize, program: &Program) -> (Device, Gemm) {
    let device = Device::open(ordinal).unwrap();
    let gemm = Gemm::new(&Images::default().load(&device, program).unwrap()).unwrap();
    (device, gemm)
}

#[test]
fn products() {
    on_stand_in("ops::products", "own-first", 1, || {
        let (device, gemm) = gemm(&Program::gemm());
        for [groups, inner, tokens, outputs, inputs] in [
            [1, 1, 1, 2, 8],
            [1, 1, 5, 66, 72],
            [1, 1, 16, 64, 64],
            [1, 1, 17, 130, 200],
            [1, 1, 64, 64, 128],
            [1, 1, 130, 96, 264],
            [2, 4, 3, 64, 16],
            [3, 5, 9, 48, 136],
        ] {
            let product = Product { groups, inner, tokens, outputs, inputs };
            let (got, expected) = (product.run(&device, &gemm).unwrap(), product.expected());
            let name = format!("{groups} x {inner} x {tokens}, {outputs} x {inputs}");
            let largest = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
            assert_close(&got.bf16, &expected, HALF_ULP * 1.02, &name);
            for (x, y) in got.f32.iter().zip(&expected) {
                assert!((x - y).abs() <= 1e-5 * largest, "{name}: {x}, expected {y}");
            }
            for (x, y) in got.added.iter().zip(&got.f32) {
                assert!((x - 1.0 - y).abs() <= 1e-6 * largest.max(1.0), "{name}: {x}, expected 1 + {y}");
            }
            let (rows, of_block) = match product.rows() {
                0..=16 => (16, 32),
                17..=64 => (64, 32),
                _ => (64, 64),
            };
            let (blocks, bytes) = (product.rows().div_ceil(rows), groups * outputs * inputs * 2);
            assert_eq!(
                got.weight_bytes_read,
                (blocks * bytes) as u64,
                "{name}: weights are read once per block"
            );
            let counters = &got.reports[0]["counters"];
            let least = blocks
                * groups
                * outputs.div_ceil(of_block)
                * (rows / 16)
                * (of_block / 8)
                * inputs.div_ceil(64)
                * 4;
            assert_eq!(counters["mma"], json!(least), "{name}");
            for way in ["ldmatrix_shared", "cp_async_shared"] {
                assert_eq!(
                    counters[way]["actual"], counters[way]["ideal"],
                    "{name}: {way} has bank conflicts"
                );
            }
        }
    });
}

/// Three and a half of the halves of page-locked memory that weights go through, between many that share one, on a driver that
/// copies as late as it may.
#[test]
fn weights_arrive_whole() {
    on_stand_in("ops::weights_arrive_whole", "others-first", 1, || {
        let device = Device::open(0).unwrap();
        let numbers: Vec<i32> = (0..14 << 20).collect();
        let small = |first: usize| -> Vec<_> {
            let parts = numbers[first..].chunks(30_001).take(40);
            parts.map(|part| (device.upload_weights("a small one", part).unwrap(), part)).collect()
        };
        let before = small(0);
        let large = device.upload_weights("numbers", &numbers).unwrap();
        let after = small(1 << 20);
        device.release_staging();
        assert_eq!(device.download(&large, numbers.len()).unwrap(), numbers);
        for (buffer, part) in before.iter().chain(&after) {
            assert_eq!(device.download(buffer, part.len()).unwrap(), *part);
        }
        let mut buffer = device.upload_weights("four", &numbers[..4]).unwrap();
        device.write_weights(&mut buffer, 1, &[7, 8]).unwrap();
        assert_eq!(device.download(&buffer, 4).unwrap(), [0, 7, 8, 3]);
        let error = device.write_weights(&mut buffer, 3, &[7, 8]).unwrap_err().to_string();
        assert_eq!(error, "write: 2 numbers at 3 do not fit into 4");
    });
}

/// Few rows, some and many go to different kernels.
#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    on_stand_in("ops::a_row_has_the_same_bits_in_any_batch", "own-first", 1, || {
        let (device, gemm) = gemm(&Program::gemm());
        let of = |tokens| Product { groups: 1, inner: 1, tokens, outputs: 66, inputs: 1000 };
        let [few, some, many] = [3, 40, 70].map(|tokens| of(tokens).run(&device, &gemm).unwrap().f32);
        assert_eq!(few, some[..few.len()]);
        assert_eq!(some, many[..some.len()]);
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    on_stand_in("ops::what_does_not_fit_is_refused", "own-first", 1, || {
        let (device, gemm) = gemm(&Program::gemm());
        let weights = Weights::upload(&device, "w", &Noise::new(1).take(16 * 8), [1, 16, 8]).unwrap();
        let x = device.upload("x", &Noise::new(2).take(3 * 8)).unwrap();
        let mut y: Buffer<f32> = device.unwritten("y", 3 * 16).unwrap();
        for (rows, offset, stride) in [(4, 0, 8), (3, 8, 8), (3, 0, 16), (2, 4, 8), (0, 0, 8)] {
            let from = Rows::even(offset, stride).unwrap();
            let to = (Destination::F32(&mut y), Rows::even(0, 16).unwrap());
            let error = gemm.launch(&device, &weights, rows, (&x, from), to).unwrap_err().to_string();
            assert!(error.starts_with(&format!("gemm: {rows} rows of 8")), "{error}");
        }
        assert!(Weights::upload(&device, "w", &Noise::new(1).take(15), [1, 3, 5]).is_err());
        let error = device.unwritten::<f32>("a wish", 1 << 40).err().unwrap().to_string();
        assert!(
            error.starts_with("a wish take 4398046511104 bytes of device memory, ")
                && error.contains(" are free: "),
            "{error}"
        );
        let missing = Device::open(7).err().unwrap().to_string();
        assert!(
            missing.starts_with("CUDA device 7 cannot be opened: CUDA_ERROR_INVALID_DEVICE"),
            "{missing}"
        );
    });
}

/// Mistakes in products of so many tokens, what is replaced by what, and the fault that tells; none where numbers must.
const MUTANTS: [(&str, usize, &str, &str, Option<&str>); 10] = [
    ("no barrier", 9, "next one takes.\n        __syncthreads();", "next one takes.", Some("Shared")),
    ("no barrier among many rows", 40, "// As above.\n        __syncthreads();", "", Some("Shared")),
    (
        "no barrier before parts take the stages' place",
        9,
        "the sums take.\n    wait_copies<0>();\n    __syncthreads();",
        "the sums take.\n    wait_copies<0>();",
        Some("Shared"),
    ),
    (
        "no barrier between parts and those who read them",
        9,
        "    __syncthreads();\n    for (int i = threadIdx.x",
        "    for (int i = threadIdx.x",
        Some("Shared"),
    ),
    (
        "waits for a group too few",
        9,
        "wait_copies<STAGES - 2>();\n        // This step",
        "wait_copies<STAGES - 1>();\n        // This step",
        Some("SharedInFlight"),
    ),
    ("inputs beyond the last", 9, "&& chunk0 + chunk < chunks", "", Some("Global")),
    ("outputs beyond the last", 9, "first + row < rows &&", "", Some("Global")),
    ("wrong matrix for a lane", 9, "lane % 8, k, matrix % 2)", "lane % 8, k, matrix / 2)", None),
    (
        "another group's weights",
        9,
        "weights(p.weights + (u64)blockIdx.z * p.outputs * p.inputs)",
        "weights(p.weights)",
        None,
    ),
    ("a part forgotten", 9, "other < PARTS; other++", "other < PARTS - 1; other++", None),
];

#[test]
fn mistakes_in_products_are_noticed() {
    on_stand_in("ops::mistakes_in_products_are_noticed", "own-first", MUTANTS.len(), || {
        for (ordinal, (name, tokens, from, to, fault)) in MUTANTS.into_iter().enumerate() {
            let product = Product { groups: 2, inner: 2, tokens, outputs: 66, inputs: 200 };
            let expected = product.expected();
            let text = Program::gemm().text().to_owned();
            assert_eq!(text.matches(from).count(), 1, "{name}: its place is gone");
            let (device, gemm) = gemm_on(ordinal, &Program::gemm().with_text(text.replace(from, to)));
            let already = reports().len();
            let got = product.run(&device, &gemm);
            match (fault, got) {
                (Some(fault), Err(_)) => {
                    let counts = &reports().split_off(already)[0]["faults"]["counts"];
                    assert!(
                        counts.as_object().unwrap().keys().any(|kind| kind.starts_with(fault)),
                        "{name}: {counts}"
                    );
                }
                (None, Ok(got)) => {
                    let off = got.f32.iter().zip(&expected).filter(|(x, y)| (*x - *y).abs() > 0.1).count();
                    assert!(off > expected.len() / 4, "{name}: only {off} numbers are off");
                }
                (_, got) => panic!("{name}: {:?}", got.err()),
            }
        }
    });
}

/// Numbers that are none of bf16.
fn unrounded(seed: u64, count: usize) -> Vec<f32> {
    Noise::new(seed).take(count).iter().map(|x| x.to_f32() * 1.01).collect()
}

fn row_kernels() -> (Device, RowKernels) {
    let device = Device::open(0).unwrap();
    let rows = RowKernels::new(&Images::default().load(&device, &Program::rows()).unwrap()).unwrap();
    (device, rows)
}

#[test]
fn embeddings_and_norms() {
    on_stand_in("ops::embeddings_and_norms", "own-first", 1, || {
        let (device, kernels) = row_kernels();
        let (rows, width, tokens) = (5, 328, [6u32, 0, 3, 3, 8]);
        let table = Noise::new(1).take(10 * width);
        let weights = Weights::upload(&device, "embedding", &table, [1, 10, width]).unwrap();
        let mut x: Buffer<f32> = device.unwritten("x", rows * width).unwrap();
        kernels.embed(&device, &weights, &tokens, &mut x).unwrap();
        let embedded = device.download(&x, rows * width).unwrap();
        for (row, token) in embedded.chunks(width).zip(tokens) {
            let expected = wide(&table[token as usize * width..][..width]);
            assert_eq!(row.iter().copied().map(f64::from).collect::<Vec<_>>(), expected);
        }
        assert!(kernels.embed(&device, &weights, &[10], &mut x).is_err(), "token 10 of 10");

        let weight: Vec<f32> = Noise::new(2).take(width).iter().map(|x| x.to_f32()).collect();
        let norm = Norm { weight: device.upload("norm", &weight).unwrap(), eps: 1e-5 };
        let expected = |x: &[f64], weight: &[f32]| -> Vec<f64> {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            x.iter().zip(weight).map(|(x, w)| x / (mean + 1e-5).sqrt() * f64::from(*w)).collect()
        };
        let mut out: Buffer<bf16> = device.unwritten("out", rows * width).unwrap();
        let row =
            |row: usize| embedded[row * width..][..width].iter().copied().map(f64::from).collect::<Vec<_>>();
        kernels.norm(&device, &norm, &x, Ok(rows), &mut out).unwrap();
        let all: Vec<f64> = (0..rows).flat_map(|i| expected(&row(i), &weight)).collect();
        assert_close(&wide(&device.download(&out, rows * width).unwrap()), &all, HALF_ULP, "all rows");
        kernels.norm(&device, &norm, &x, Err(&[4, 1]), &mut out).unwrap();
        let wanted: Vec<f64> = [4, 1].into_iter().flat_map(|i| expected(&row(i), &weight)).collect();
        assert_close(&wide(&device.download(&out, 2 * width).unwrap()), &wanted, HALF_ULP, "two rows");

        // Rows of either format side by side, as a prediction layer takes them.
        let ones = vec![bf16::ONE; 4 * width];
        let mut joined = device.upload("joined", &ones).unwrap();
        let half = |offset| Heads { offset, stride: 2 * width, head_stride: 0 };
        let (from, to) = (NormInput::Bf16(weights.numbers()), Err(&[6, 0][..]));
        kernels.norm_into(&device, &norm, from, to, (&mut joined, half(0))).unwrap();
        let left = device.download(&joined, 4 * width).unwrap();
        assert_eq!(left[width..2 * width], ones[..width], "what is around it stays");
        let (from, to) = (NormInput::F32(&x), Err(&[3, 4][..]));
        kernels.norm_into(&device, &norm, from, to, (&mut joined, half(width))).unwrap();
        let all: Vec<f64> = [0, 3, 1, 4].into_iter().flat_map(|i| expected(&row(i), &weight)).collect();
        assert_close(&wide(&device.download(&joined, 4 * width).unwrap()), &all, HALF_ULP, "halves");
        for (rows, place) in [(Err(&[10][..]), half(0)), (Err(&[6, 0]), half(width + 1))] {
            let from = NormInput::Bf16(weights.numbers());
            assert!(kernels.norm_into(&device, &norm, from, rows, (&mut joined, place)).is_err());
        }

        // Part of each row, in place; what is around it stays.
        let (stride, offset, part) = (64, 8, 36);
        let numbers = unrounded(5, 3 * stride);
        let mut buffer = device.upload("rows", &numbers).unwrap();
        let norm = Norm { weight: device.upload("norm", &weight[..part]).unwrap(), eps: 1e-5 };
        let at = Heads { offset, stride, head_stride: 0 };
        kernels.norm_in_place(&device, &norm, &mut buffer, at, 3).unwrap();
        let doubles = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<f64>>();
        let mut all = doubles(numbers);
        for row in all.chunks_mut(stride) {
            let normed = expected(&row[offset..offset + part], &weight);
            row[offset..offset + part].copy_from_slice(&normed);
        }
        let normed = doubles(device.download(&buffer, all.len()).unwrap());
        assert_close(&normed, &all, 1e-6, "in place, unrounded");
    });
}

#[test]
fn rotations_activations_and_cache_writes() {
    on_stand_in("ops::rotations_activations_and_cache_writes", "own-first", 1, || {
        let (device, kernels) = row_kernels();
        let segments = [
            Segment { first_row: 0, rows: 3, start: 62, blocks: &[3, 1] },
            Segment { first_row: 3, rows: 1, start: 5, blocks: &[0] },
        ];
        let positions = [62, 63, 64, 5];
        let places = [(3, 62), (3, 63), (1, 0), (0, 5)];
        let tables = Tables::new(&device, &segments, 4, None).unwrap();

        let (dim, heads, plain, stride) = (16usize, 3, 6, 80);
        let frequencies: Vec<f64> =
            (0..dim / 2).map(|t| 100f64.powf(-((2 * t) as f64) / dim as f64)).collect();
        let turns: Vec<f32> = (0..70)
            .flat_map(|p| {
                frequencies
                    .iter()
                    .flat_map(move |f| [(p as f64 * f).cos() as f32, (p as f64 * f).sin() as f32])
            })
            .collect();
        let turns = device.upload("angles", &turns).unwrap();
        let projected = unrounded(7, 4 * stride);
        let numbers: Vec<bf16> = projected.iter().copied().map(bf16::from_f32).collect();
        for style in [RopeStyle::Interleaved, RopeStyle::HalfSplit] {
            let rope = Rope::new(&frequencies, 1.0, 70, style);
            let x = device.upload("x", &projected).unwrap();
            let at = Heads { offset: 2, stride, head_stride: 26 };
            let (turn, widths) = ((&turns, dim / 2, style), [heads, plain]);
            let mut apart: Buffer<bf16> = device.upload("to", &vec![bf16::ZERO; 4 * heads * dim]).unwrap();
            let to = Heads { offset: 0, stride: heads * dim, head_stride: dim };
            // What is around the heads stays.
            let around = vec![bf16::ONE; 4 * stride];
            let [mut expected, mut plainly] = [wide(&around), wide(&around)];
            for (i, (row, position)) in projected.chunks(stride).zip(positions).enumerate() {
                for head in 0..heads {
                    let place = at.offset + head * at.head_stride;
                    let mut numbers = row[place..][..plain + dim].to_vec();
                    rope.apply(&mut numbers[plain..], position);
                    let numbers: Vec<f64> = numbers.into_iter().map(f64::from).collect();
                    expected[i * stride + place..][..plain + dim].copy_from_slice(&numbers);
                    plainly[i * stride + place..][..plain].copy_from_slice(&numbers[..plain]);
                }
            }
            let mut out = device.upload("out", &around).unwrap();
            kernels
                .rope(&device, &tables, turn, widths, (&x, at), (&mut out, Some((&mut apart, to))))
                .unwrap();
            let rounded = wide(&device.download(&out, 4 * stride).unwrap());
            assert_close(&rounded, &plainly, HALF_ULP * 1.02, "what is not turned");
            kernels.rope(&device, &tables, turn, widths, (&x, at), (&mut out, None)).unwrap();
            let rounded = wide(&device.download(&out, 4 * stride).unwrap());
            assert_close(&rounded, &expected, HALF_ULP * 1.02, "in one place");
            let turned: Vec<f64> = expected
                .chunks(stride)
                .flat_map(|row| (0..heads).flat_map(move |head| row[2 + head * 26 + plain..][..dim].to_vec()))
                .collect();
            let apart = wide(&device.download(&apart, turned.len()).unwrap());
            assert_close(&apart, &turned, HALF_ULP * 1.02, "apart");
        }

        let (parts, width) = (3, 16);
        let x = device.upload("x", &numbers).unwrap();
        let append = Append { from: Heads { offset: 16, stride, head_stride: 24 }, parts, width };
        let size = 4 * parts * BLOCK_TOKENS * width;
        let mut cache = device.upload("cache", &vec![bf16::ZERO; size]).unwrap();
        kernels.append(&device, &tables, &x, append, &mut cache).unwrap();
        let mut expected = vec![bf16::ZERO; size];
        for (row, (page, place)) in places.into_iter().enumerate() {
            for part in 0..parts {
                let to = ((page * parts + part) * BLOCK_TOKENS + place) * width;
                expected[to..to + width].copy_from_slice(&numbers[row * stride + 16 + part * 24..][..width]);
            }
        }
        assert_eq!(device.download(&cache, size).unwrap(), expected);

        let (rows, width) = (7, 46);
        let gate_up = unrounded(9, rows * 2 * width);
        let from = device.upload("gate and up", &gate_up).unwrap();
        let mut out: Buffer<bf16> = device.unwritten("out", rows * width).unwrap();
        kernels.swiglu(&device, &from, rows, width, &mut out).unwrap();
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let of_row = |row: &[f32], i| silu(f64::from(row[i])) * f64::from(row[width + i]);
        let expected: Vec<f64> = gate_up
            .chunks(2 * width)
            .flat_map(|row| (0..width).map(|i| of_row(row, i)).collect::<Vec<_>>())
            .collect();
        assert_close(
            &wide(&device.download(&out, rows * width).unwrap()),
            &expected,
            HALF_ULP * 1.02,
            "swiglu",
        );
    });
}
