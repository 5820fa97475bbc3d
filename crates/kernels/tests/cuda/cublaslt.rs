//! Prompts' products by cuBLASLt, on its stand-in: which rows it is given, what it may refuse, and what it leaves alone.

use gqla_kernels::{
    attention::{BLOCK_TOKENS, Segment},
    device::{
        Bench, Buffer, Destination, Device, DeviceError, Gemm, Images, Program, PromptGemm, Rows, Tables,
        Trial, Weights,
    },
};
use half::bf16;

use crate::{alone, case::Noise, device::reports, on_stand_in};

/// A token and three drafts that may follow it.
const DECODING: usize = 4;

/// Sequences of so many rows in one step.
struct Step<'a> {
    rows: &'a [usize],
    outputs: usize,
    inputs: usize,
    /// Of results; further apart than they are long.
    stride: usize,
}

/// To bf16, to f32, and added to ones.
type Results = (Vec<bf16>, Vec<f32>, Vec<f32>);

impl Step<'_> {
    fn all_rows(&self) -> usize {
        self.rows.iter().sum()
    }

    fn tables(&self, device: &Device, by: PromptGemm) -> Tables {
        let blocks: Vec<u32> = (0..self.all_rows().div_ceil(BLOCK_TOKENS) as u32).collect();
        let mut first_row = 0;
        let segment = |rows: &usize| {
            let segment = Segment { first_row, rows: *rows, start: 0, blocks: &blocks };
            first_row += rows;
            segment
        };
        let segments: Vec<_> = self.rows.iter().map(segment).collect();
        let mut tables = Tables::new(device, &segments, blocks.len(), None).unwrap();
        tables.give_library(by.library_rows(&segments, DECODING));
        tables
    }

    /// Results from the third number of each row's place on.
    fn run(&self, device: &Device, gemm: &Gemm, by: PromptGemm) -> Result<Results, DeviceError> {
        let Self { outputs, inputs, stride, .. } = *self;
        let tables = self.tables(device, by);
        let w = Noise::new(4).take(outputs * inputs);
        let weights = Weights::upload(device, "w", &w, [1, outputs, inputs])?;
        let x = device.upload("x", &Noise::new(3).take(self.all_rows() * inputs))?;
        let (offset, count) = (8, self.all_rows() * stride + 8);
        let mut rounded: Buffer<bf16> = device.upload("y", &vec![bf16::ONE; count])?;
        let mut whole = device.upload("y", &vec![1f32; count])?;
        let mut added = device.upload("y", &vec![1f32; count])?;
        for to in
            [Destination::Bf16(&mut rounded), Destination::F32(&mut whole), Destination::Add(&mut added)]
        {
            let to = (to, Rows::even(offset, stride)?);
            gemm.launch_step(device, &weights, &tables, (&x, Rows::even(0, inputs)?), to)?;
        }
        let read = |x: &Buffer<f32>| device.download(x, count);
        Ok((device.download(&rounded, count)?, read(&whole)?, read(&added)?))
    }
}

fn gemm(device: &Device) -> Gemm {
    Gemm::new(&Images::default().load(device, &Program::gemm()).unwrap()).unwrap()
}

/// Rows of each product by the library since `already` lines of the report.
fn library_rows(already: usize) -> Vec<u64> {
    let products = reports().split_off(already);
    let products = products.iter().filter(|report| report["kernel"] == "cublasLtMatmul");
    products.map(|report| report["rows"].as_u64().unwrap()).collect()
}

fn with_library(name: &str, body: impl FnOnce()) {
    alone(name, "own-first", 1).with_cublaslt().run(body);
}

/// The library's rows are as near as ours and have other bits, for it adds in another order; ours have the bits they always
/// have.
#[test]
fn prompts_are_the_librarys_and_other_rows_ours() {
    with_library("cublaslt::prompts_are_the_librarys_and_other_rows_ours", || {
        let device = Device::open(0).unwrap();
        let (own, library) = (gemm(&device), gemm(&device).with_cublaslt(&device).unwrap());
        assert_eq!((own.library_version(), library.library_version()), (None, Some(120_901)));
        for (rows, runs) in [
            (&[1, 4, 70, 1, 40, 45, 2][..], &[5..75, 76..161][..]),
            (&[70, 1, 65], &[0..70, 71..136]),
            (&[1, 64, 3], &[]),
        ] {
            let step = Step { rows, outputs: 96, inputs: 264, stride: 112 };
            let already = reports().len();
            let (rounded, whole, added) = step.run(&device, &library, PromptGemm::CublasLt).unwrap();
            let counts: Vec<u64> = runs.iter().map(|run| run.len() as u64).collect();
            assert_eq!(library_rows(already), counts.repeat(3), "{rows:?}");
            let already = reports().len();
            let (our_rounded, our_whole, our_added) = step.run(&device, &library, PromptGemm::Own).unwrap();
            assert!(library_rows(already).is_empty());
            let largest = our_whole.iter().fold(0f32, |most, x| most.max(x.abs()));
            let mut others = 0;
            for i in 0..whole.len() {
                let row = i.checked_sub(8).map(|i| (i / step.stride, i % step.stride));
                let by_library = row.is_some_and(|(row, column)| {
                    column < step.outputs && runs.iter().any(|run| run.contains(&row))
                });
                if by_library {
                    assert!((whole[i] - our_whole[i]).abs() <= 1e-5 * largest, "{rows:?} {i}");
                    assert!((added[i] - our_added[i]).abs() <= 1e-5 * largest.max(1.0), "{rows:?} {i}");
                    let (ours, theirs) = (our_rounded[i].to_f32(), rounded[i].to_f32());
                    assert!((theirs - ours).abs() <= ours.abs().max(5e-2) / 128.0, "{rows:?} {i}");
                    others += usize::from(whole[i].to_bits() != our_whole[i].to_bits());
                } else {
                    let same =
                        (rounded[i], whole[i], added[i]) == (our_rounded[i], our_whole[i], our_added[i]);
                    assert!(same, "{rows:?}: number {i} is not the library's");
                }
            }
            assert_eq!(others > 0, !runs.is_empty(), "{rows:?}");
            assert_eq!(library.take_refusal(), None);
        }
    });
}

/// Rows of 130 numbers begin at no multiple of 16 bytes: the stand-in's only algorithm does not take them, nor do some of
/// NVIDIA's. Ours multiply them, and somebody is told once.
#[test]
fn what_the_library_has_no_algorithm_for_is_ours() {
    with_library("cublaslt::what_the_library_has_no_algorithm_for_is_ours", || {
        let device = Device::open(0).unwrap();
        let library = gemm(&device).with_cublaslt(&device).unwrap();
        let step = Step { rows: &[70], outputs: 130, inputs: 64, stride: 130 };
        let already = reports().len();
        let results = step.run(&device, &library, PromptGemm::CublasLt).unwrap();
        assert!(library_rows(already).is_empty());
        assert!(results == step.run(&device, &library, PromptGemm::Own).unwrap());
        let reason = library.take_refusal().unwrap();
        assert!(reason.starts_with("70 rows of 64 to 130: ") && reason.contains("NOT_SUPPORTED"), "{reason}");
        assert_eq!(library.take_refusal(), None);
        step.run(&device, &library, PromptGemm::CublasLt).unwrap();
        assert_eq!(library.take_refusal(), None, "it is told once");
    });
}

#[test]
fn its_trials_pass() {
    with_library("cublaslt::its_trials_pass", || {
        let device = Device::open(0).unwrap();
        let already = reports().len();
        let images = Images::default();
        let mut bench = Bench::new(&device, &images);
        for trial in Trial::by_cublaslt() {
            let outcome = bench.run(&trial).unwrap();
            assert!(outcome.is_right() && outcome.bound < 1e-2, "{trial:?}: {outcome:?}");
        }
        assert_eq!(library_rows(already), [200; 3]);
    });
}

/// Whoever asks for a library that is not there is told what to install and where it is looked for.
#[test]
fn without_it_there_is_a_sentence() {
    on_stand_in("cublaslt::without_it_there_is_a_sentence", "own-first", 1, || {
        let device = Device::open(0).unwrap();
        let Err(error) = gemm(&device).with_cublaslt(&device) else { panic!("there is a cuBLASLt") };
        let error = error.to_string();
        for part in ["`libcublasLt.so.12`", "nvidia-cublas-cu12", "LD_LIBRARY_PATH (/", "--prompt-gemm own"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    });
}
