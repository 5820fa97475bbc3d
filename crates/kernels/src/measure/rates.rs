//! The two rates of the roofline.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::Figure;
use crate::{Matrix, Pool, gemm::TASK_OUTPUTS, gemm::TILE_ROWS, matrix::WeightFormat, simd::InstructionSet};

/// Weights per output of what is streamed: a panel then is 64 KiB in one piece, as in a model of that width.
const STREAMED_INPUTS: usize = 1024;
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
        for set in InstructionSet::available() {
            for format in [WeightFormat::F32, WeightFormat::Bf16] {
                let rate = multiply_rate(&pool, set, format, Duration::from_millis(1));
                assert!(POSSIBLE.contains(&rate.median), "{} {format:?}: {rate:?}", set.name());
            }
        }
    }

    #[test]
    fn sampling_ends_with_its_time_and_never_with_nothing() {
        let mut runs = 0;
        let seconds = sample(3, Instant::now(), Duration::ZERO, || runs += 1);
        assert_eq!((seconds.len(), runs), (3, 4));
    }
}
