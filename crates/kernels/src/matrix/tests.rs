use super::*;

fn noise(seed: u64, len: usize) -> Vec<f32> {
    crate::reference::counter_noise(seed, len, 1.0).map(|x| x as f32).collect()
}

fn product(w: &[f32], x: &[f32], inputs: usize) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(move |w| dot(x, w))).collect()
}

#[test]
fn products_match_float64_at_every_edge_of_a_tile() {
    let pool = Pool::new(Some(2)).unwrap();
    for (outputs, inputs) in [(1, 1), (16, 8), (52, 36), (64, 128), (100, 33), (193, 17)] {
        let w = noise(7, outputs * inputs);
        let bytes: Vec<u8> =
            w.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
        for rows in [WeightRows::F32(&w), WeightRows::Bf16(&bytes)] {
            let matrix = Matrix::stack(&[rows], inputs).unwrap();
            for rows in (1..=8).chain([13, 31]) {
                let x = noise(rows as u64, rows * inputs);
                let mut y = vec![1.0; rows * outputs];
                matrix.multiply_add(&pool, &x, &mut y);
                for (y, expected) in y.iter().zip(product(&w, &x, inputs)) {
                    assert!(
                        (f64::from(*y) - 1.0 - expected).abs() < 1e-4,
                        "{outputs}x{inputs}: {y} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let pool = Pool::new(Some(2)).unwrap();
    let (outputs, inputs) = (200, 128);
    let w = noise(1, outputs * inputs);
    let bytes: Vec<u8> = w.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
    let matrices = [
        Matrix::stack(&[WeightRows::F32(&w)], inputs).unwrap(),
        Matrix::stack(&[WeightRows::Bf16(&bytes)], inputs).unwrap(),
        Matrix::stack_int8(&[WeightRows::Bf16(&bytes)], inputs).unwrap(),
    ];
    let part = [WeightRows::Bf16(&bytes)];
    let bf16 = Unit::available(Narrow::Bf16)
        .into_iter()
        .map(|unit| Matrix::stack_bf16_on(Some(unit), &part, inputs).unwrap());
    let int8 = Unit::available(Narrow::Int8)
        .into_iter()
        .map(|unit| Matrix::stack_int8_on(Some(unit), &part, inputs).unwrap());
    let narrow: Vec<_> = bf16.chain(int8).collect();
    for (matrix, rows) in matrices.iter().chain(&narrow).flat_map(|matrix| [9, 40].map(|rows| (matrix, rows)))
    {
        let x = noise(2, rows * inputs);
        let mut all = vec![0.0; rows * outputs];
        matrix.multiply(&pool, &x, &mut all);
        for (x, expected) in x.chunks(inputs).zip(all.chunks(outputs)) {
            let mut y = vec![0.0; outputs];
            matrix.multiply(&pool, x, &mut y);
            assert_eq!(y, expected, "{:?}", matrix.format());
        }
    }
}

/// An input is off by a 512th of itself at most, and so is each product.
#[test]
fn products_of_pairs_stay_within_their_bound_of_float64() {
    let pool = Pool::new(Some(2)).unwrap();
    for (outputs, inputs) in [(1, 32), (16, 64), (52, 96), (100, 320), (193, 576)] {
        let w: Vec<f32> =
            noise(5, outputs * inputs).iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        let bytes: Vec<u8> =
            w.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_le_bytes()).collect();
        for unit in Unit::available(Narrow::Bf16) {
            let matrix = Matrix::stack_bf16_on(Some(unit), &[WeightRows::Bf16(&bytes)], inputs).unwrap();
            assert!(matches!(matrix.panels, Panels::Unit { .. }));
            let mut row = vec![0.0; inputs];
            matrix.read_row(outputs / 2, &mut row);
            assert_eq!(row, w[outputs / 2 * inputs..][..inputs]);
            for rows in [1, 5, 16, 17, 32, 33, 50, 64, 70] {
                let x = noise(6, rows * inputs);
                let mut y = vec![1.0; rows * outputs];
                matrix.multiply_add(&pool, &x, &mut y);
                for (i, (y, expected)) in y.iter().zip(product(&w, &x, inputs)).enumerate() {
                    let (x, w) = (&x[i / outputs * inputs..], &w[i % outputs * inputs..]);
                    let sizes = x.iter().zip(w).take(inputs).map(|(x, w)| f64::from((x * w).abs()));
                    let bound = sizes.sum::<f64>() / 512.0 + 1e-4;
                    let error = (f64::from(*y) - 1.0 - expected).abs();
                    assert!(error <= bound, "{unit:?} {outputs}x{inputs} {rows}: {error} above {bound}");
                }
            }
        }
    }
}

#[test]
fn what_a_unit_cannot_take_is_multiplied_as_it_is() {
    let bytes = vec![0; 2 * 3 * 33];
    for unit in Unit::ALL.map(Some) {
        for (part, inputs) in [(WeightRows::Bf16(&bytes), 33), (WeightRows::F32(&[0.0; 64]), 32)] {
            let matrix = Matrix::stack_bf16_on(unit, &[part], inputs).unwrap();
            assert!(matches!(matrix.panels, Panels::Bf16(_) | Panels::F32(_)));
            let matrix = Matrix::stack_int8_on(unit, &[part], inputs).unwrap();
            assert!(matches!(matrix.panels, Panels::Int8 { .. }));
        }
    }
}

/// A rounded weight is off by half a step, so an output by no more than half a step times the inputs' sum; a unit's
/// inputs are off by half of theirs besides.
#[test]
fn int8_weights_stay_within_their_bound_of_float64() {
    let pool = Pool::new(Some(2)).unwrap();
    let units: Vec<_> = Unit::available(Narrow::Int8).into_iter().map(Some).chain([None]).collect();
    for (outputs, inputs) in [(1, 1), (52, 36), (64, 128), (100, 64), (193, 577), (193, 576)] {
        let mut w = noise(3, outputs * inputs);
        w[..inputs].fill(0.0);
        let scale = |o: usize| {
            w[o * inputs..][..inputs].iter().fold(0.0f64, |max, x| max.max(f64::from(x.abs()))) / 127.0
        };
        let mut exact = Vec::new();
        for unit in &units {
            let matrix = Matrix::stack_int8_on(*unit, &[WeightRows::F32(&w)], inputs).unwrap();
            assert_eq!(matrix.format(), WeightFormat::Int8);
            let mut row = vec![0.0; inputs];
            for o in 0..outputs {
                matrix.read_row(o, &mut row);
                let off = |(a, b): (&f32, &f32)| f64::from((a - b).abs());
                let worst = row.iter().zip(&w[o * inputs..]).map(off).fold(0.0, f64::max);
                assert!(worst <= scale(o) * 0.5001, "{o}: {worst}");
            }
            for rows in [1, 7, 8, 9, 16, 30] {
                let x = noise(4, rows * inputs);
                let mut y = vec![1.0; rows * outputs];
                matrix.multiply_add(&pool, &x, &mut y);
                for (i, (y, expected)) in y.iter().zip(product(&w, &x, inputs)).enumerate() {
                    let x = &x[i / outputs * inputs..][..inputs];
                    let sum = x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
                    let step = x.iter().fold(0.0f64, |max, x| max.max(f64::from(x.abs()))) / 32385.0;
                    let weights = 127.0 * scale(i % outputs) * inputs as f64;
                    let bound = scale(i % outputs) * 0.5 * sum + step * 0.5 * weights + 1e-4;
                    let error = (f64::from(*y) - 1.0 - expected).abs();
                    assert!(error <= bound, "{unit:?} {outputs}x{inputs}: {error} above {bound}");
                }
                if matches!(matrix.panels, Panels::Unit { .. }) {
                    exact.push((rows, y));
                }
            }
        }
        // Whole numbers have one sum, whatever unit made it.
        for (rows, y) in &exact {
            assert!(exact.iter().filter(|(others, _)| others == rows).all(|(_, other)| other == y));
        }
    }
}

#[test]
fn few_tasks_are_halved() {
    for (tasks, threads, outputs) in [(9, 2, 32), (15, 2, 32), (16, 2, 64), (16, 4, 32), (768, 2, 64)] {
        assert_eq!(task_outputs(tasks, threads), outputs, "{tasks} tasks, {threads} threads");
    }
}

/// What the rates of [`crate::measure`] rest on: whatever is timed computes.
#[test]
fn every_instruction_set_of_the_machine_multiplies_either_format() {
    let pool = Pool::new(Some(2)).unwrap();
    for set in InstructionSet::available() {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
            let matrix = Matrix::ones(70, 33, format);
            let mut y = vec![0.0; 2 * 70];
            matrix.multiply_on(set, &pool, &[[0.5; 33], [2.0; 33]].concat(), &mut y);
            let expected: Vec<f32> = [[16.5; 70], [66.0; 70]].concat();
            assert_eq!(y, expected, "{} {format:?}", set.name());
        }
    }
}

#[test]
fn rows_come_back_and_stack_in_order() {
    let (a, b) = (noise(1, 20 * 5), noise(2, 3 * 5));
    let matrix = Matrix::stack(&[WeightRows::F32(&a), WeightRows::F32(&b)], 5).unwrap();
    assert_eq!((matrix.outputs(), matrix.inputs()), (23, 5));
    let mut row = [0.0; 5];
    matrix.read_row(21, &mut row);
    assert_eq!(row, b[5..10]);
    let error = Matrix::stack(&[WeightRows::F32(&a)], 7).err();
    assert_eq!(error, Some(MatrixError::Ragged { len: 100, inputs: 7 }));
}

#[test]
fn a_row_with_a_nan_gives_nan_and_spares_the_others() {
    let pool = Pool::new(Some(2)).unwrap();
    let (outputs, inputs) = (20, 64);
    let w = noise(8, outputs * inputs);
    let mut x = noise(9, 3 * inputs);
    x[inputs + 5] = f32::NAN;
    x[2 * inputs - 1] = f32::INFINITY;
    let bits: Vec<u8> = w.iter().flat_map(|w| half::bf16::from_f32(*w).to_le_bytes()).collect();
    let units = |numbers| Unit::available(numbers).into_iter().map(Some).chain([None]);
    let int8 = |unit| Matrix::stack_int8_on(unit, &[WeightRows::F32(&w)], inputs).unwrap();
    let bf16 = |unit| Matrix::stack_bf16_on(unit, &[WeightRows::Bf16(&bits)], inputs).unwrap();
    for matrix in units(Narrow::Int8).map(int8).chain(units(Narrow::Bf16).map(bf16)) {
        let mut y = vec![0.0; 3 * outputs];
        matrix.multiply(&pool, &x, &mut y);
        for (row, y) in y.chunks(outputs).enumerate() {
            assert!(y.iter().all(|y| y.is_nan() == (row == 1)), "{:?} row {row}: {y:?}", matrix.format());
        }
    }
}

#[test]
fn rows_whose_sums_could_overflow_are_multiplied_in_f32() {
    let inputs = INT8_INPUTS.next_multiple_of(STEP);
    let w = vec![1.0; inputs];
    for unit in Unit::ALL.map(Some) {
        let matrix = Matrix::stack_int8_on(unit, &[WeightRows::F32(&w)], inputs).unwrap();
        assert!(matches!(matrix.panels, Panels::Int8 { .. }));
    }
}
