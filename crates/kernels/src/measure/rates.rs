//! The two rates of the roofline.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::Figure;
use crate::{
    Matrix, Pool,
    gemm::{TASK_OUTPUTS, TILE_ROWS},
    matrix::WeightFormat,
    memory::Lines,
    shared::SharedMut,
    simd::{InstructionSet, Simd, dispatch},
};

/// Weights per output of what is streamed: a panel then is 64 KiB in one piece, as in a model of that width.
const STREAMED_INPUTS: usize = 1024;
/// Rows of a task of bare inner products.
const STREAMED_ROWS: usize = 128;
/// Tasks of one sample at least, and per thread: enough that none waits long for the last one.
const STREAMED_TASKS: [usize; 2] = [64, 2];
/// Shape of what is multiplied: a task's weights stay in a core's own cache while all its rows pass over them.
const MULTIPLIED_INPUTS: usize = 256;
const MULTIPLIED_ROWS: usize = 16 * TILE_ROWS;
const MULTIPLIED_TASKS_PER_THREAD: usize = 8;
/// Samples that are taken even when time is up.
const LEAST_SAMPLES: usize = 3;

/// How fast memory is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadRate {
    /// Bytes per second.
    pub rate: Figure,
    /// Bytes that were read over and over. Only a buffer far beyond the last-level cache shows the memory's own rate.
    pub buffer_bytes: usize,
}

/// Bytes per second that products of one row read: what a step of one sequence does with its weights. At most `bytes`
/// are allocated, but at least one sample's worth (16 MiB, or half a MiB per thread if that is more), and fewer when
/// filling them takes half of `time`.
pub fn read_rate(pool: &Pool, bytes: usize, time: Duration) -> ReadRate {
    let began = Instant::now();
    let outputs = TASK_OUTPUTS * STREAMED_TASKS[0].max(STREAMED_TASKS[1] * pool.threads());
    let segment_bytes = outputs * STREAMED_INPUTS * size_of::<f32>();
    let segment = || Matrix::ones(outputs, STREAMED_INPUTS, WeightFormat::F32);
    let mut segments = vec![segment()];
    while (segments.len() + 1) * segment_bytes <= bytes && began.elapsed() < time / 2 {
        segments.push(segment());
    }
    let (x, mut y) = (vec![1.0; STREAMED_INPUTS], vec![0.0; outputs]);
    let mut segments_in_turn = segments.iter().cycle();
    let seconds = sample(LEAST_SAMPLES, began, time, || {
        if let Some(segment) = segments_in_turn.next() {
            segment.multiply(pool, &x, &mut y);
        }
        black_box(&y);
    });
    let rates = seconds.into_iter().map(|seconds| segment_bytes as f64 / seconds).collect();
    ReadRate { rate: Figure::of(rates), buffer_bytes: segments.len() * segment_bytes }
}

/// Bytes per second at which bare inner products read bf16 rows, one after the other as a checkpoint stores them: what a
/// plain kernel reaches over the weights a step streams, to hold [`Matrix::multiply`] against. Memory as for
/// [`read_rate`].
pub fn dot_rate(pool: &Pool, bytes: usize, time: Duration) -> ReadRate {
    let began = Instant::now();
    let rows = STREAMED_ROWS * STREAMED_TASKS[0].max(STREAMED_TASKS[1] * pool.threads());
    let segment_bytes = rows * STREAMED_INPUTS * size_of::<u16>();
    let segment = || {
        let mut numbers = Lines::zeroed(rows * STREAMED_INPUTS);
        numbers.fill(half::bf16::ONE.to_bits());
        numbers
    };
    let mut segments = vec![segment()];
    while (segments.len() + 1) * segment_bytes <= bytes && began.elapsed() < time / 2 {
        segments.push(segment());
    }
    let (x, mut y) = (vec![1.0; STREAMED_INPUTS], vec![0.0; rows]);
    let mut segments_in_turn = segments.iter().cycle();
    let seconds = sample(LEAST_SAMPLES, began, time, || {
        if let Some(segment) = segments_in_turn.next() {
            dot_rows(pool, segment, &x, &mut y);
        }
        black_box(&y);
    });
    let rates = seconds.into_iter().map(|seconds| segment_bytes as f64 / seconds).collect();
    ReadRate { rate: Figure::of(rates), buffer_bytes: segments.len() * segment_bytes }
}

/// `y = W x` for `W` `[y.len(), x.len()]` row by row.
fn dot_rows(pool: &Pool, weights: &[u16], x: &[f32], y: &mut [f32]) {
    let y = SharedMut::new(y);
    pool.run(weights.len() / x.len() / STREAMED_ROWS, &|task| {
        let first = task * STREAMED_ROWS;
        // SAFETY: every task has rows of its own; the dispatcher runs what the machine has.
        unsafe { dots(&weights[first * x.len()..], x, y.slice(first, STREAMED_ROWS)) }
    });
}

dispatch! {
    /// # Safety
    /// None beyond the instruction set, which the dispatcher checks.
    unsafe fn dots(weights: &[u16], x: &[f32], y: &mut [f32]) = dots_in; [] [] []
}

#[inline(always)]
unsafe fn dots_in<S: Simd>(weights: &[u16], x: &[f32], y: &mut [f32]) {
    const SUMS: usize = 4;
    for (row, y) in weights.chunks_exact(x.len()).zip(y) {
        // SAFETY: whole steps of vectors inside the row.
        unsafe {
            let mut sums = [S::splat(0.0); SUMS];
            for i in (0..x.len() / (SUMS * S::LANES) * SUMS * S::LANES).step_by(SUMS * S::LANES) {
                for (s, sum) in sums.iter_mut().enumerate() {
                    let at = i + s * S::LANES;
                    *sum = S::mul_add(S::load_bf16(row.as_ptr().add(at)), S::load(x.as_ptr().add(at)), *sum);
                }
            }
            *y = S::sum_each(&sums).iter().sum();
        }
    }
}

/// FLOPs per second of the micro-kernel that every product ends in, on `set`, with weights in `format` and both
/// operands in the cores' own caches. Arithmetic is f32 in either format.
pub fn multiply_rate(pool: &Pool, set: InstructionSet, format: WeightFormat, time: Duration) -> Figure {
    let began = Instant::now();
    let outputs = TASK_OUTPUTS * MULTIPLIED_TASKS_PER_THREAD * pool.threads();
    let matrix = Matrix::ones(outputs, MULTIPLIED_INPUTS, format);
    let x = vec![0.5; MULTIPLIED_ROWS * MULTIPLIED_INPUTS];
    let mut y = vec![0.0; MULTIPLIED_ROWS * outputs];
    let seconds = sample(LEAST_SAMPLES, began, time, || {
        matrix.multiply_on(set, pool, &x, &mut y);
        black_box(&y);
    });
    let flops = 2.0 * (MULTIPLIED_ROWS * outputs * MULTIPLIED_INPUTS) as f64;
    Figure::of(seconds.into_iter().map(|seconds| flops / seconds).collect())
}

/// Seconds of each run of `work`, of `least` runs and as many more as begin before `time` has passed since `began`. The
/// first run wakes the threads and is not counted.
pub(super) fn sample(least: usize, began: Instant, time: Duration, mut work: impl FnMut()) -> Vec<f64> {
    work();
    let mut seconds = Vec::new();
    while seconds.len() < least || began.elapsed() < time {
        let start = Instant::now();
        work();
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes or FLOPs per second of any machine, busy or not.
    const POSSIBLE: std::ops::Range<f64> = 1e6..1e17;

    #[test]
    fn rates_are_possible_ones_and_memory_stays_within_its_bound() {
        let pool = Pool::new(Some(2)).unwrap();
        let read = read_rate(&pool, 40 << 20, Duration::from_millis(1));
        assert!(POSSIBLE.contains(&read.rate.median) && read.rate.samples >= 3, "{read:?}");
        assert!((16 << 20..=32 << 20).contains(&read.buffer_bytes), "{read:?}");
        let dot = dot_rate(&pool, 40 << 20, Duration::from_millis(1));
        assert!(POSSIBLE.contains(&dot.rate.median) && dot.rate.samples >= 3, "{dot:?}");
        assert!((16 << 20..=40 << 20).contains(&dot.buffer_bytes), "{dot:?}");
        for set in InstructionSet::available() {
            for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
                let rate = multiply_rate(&pool, set, format, Duration::from_millis(1));
                assert!(POSSIBLE.contains(&rate.median), "{} {format:?}: {rate:?}", set.name());
            }
        }
    }

    #[test]
    fn bare_inner_products_are_computed() {
        let pool = Pool::new(Some(2)).unwrap();
        let weights: Vec<u16> = (0..2 * STREAMED_ROWS * 128)
            .map(|i| half::bf16::from_f32((i / 128 % 7 + i % 3) as f32).to_bits())
            .collect();
        let (x, mut y): (Vec<f32>, _) =
            ((0..128).map(|i| (i % 5) as f32).collect(), vec![0.0; 2 * STREAMED_ROWS]);
        dot_rows(&pool, &weights, &x, &mut y);
        for (row, y) in y.iter().enumerate() {
            let terms = (0..128).map(|i| ((row % 7 + (row * 128 + i) % 3) * (i % 5)) as f32);
            assert_eq!(*y, terms.sum::<f32>(), "{row}");
        }
    }

    #[test]
    fn sampling_ends_with_its_time_and_never_with_nothing() {
        let mut runs = 0;
        let seconds = sample(3, Instant::now(), Duration::ZERO, || runs += 1);
        assert_eq!((seconds.len(), runs), (3, 4));
    }
}
