//! Asking for the next block's numbers while this one's are multiplied.
//!
//! Products, softmax and sums of a block take turns, and memory rests while numbers already read are worked on: a processor's own
//! prefetcher does not look beyond what was read last. Where arithmetic takes about as long as reading, the two times were
//! measured to add up.

use crate::prefetch::{LINE, prefetch};

/// What is asked for every few steps of a block's products.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    next: *const u8,
    end: *const u8,
    /// Bytes at a time, whole lines.
    step: usize,
}

impl Ahead {
    /// Asks for nothing.
    pub const NOTHING: Self = Self { next: std::ptr::null(), end: std::ptr::null(), step: 0 };

    /// Asks for `bytes` from `next` on in so many times, if `products` reach what `worth` says of a byte.
    #[inline(always)]
    pub fn of(next: *const u8, bytes: usize, products: usize, (steps, worth): (usize, f64)) -> Self {
        if (products as f64) < worth * bytes as f64 {
            return Self::NOTHING;
        }
        let step = bytes.div_ceil(steps.max(1)).next_multiple_of(LINE);
        Self { next, end: next.wrapping_add(bytes), step }
    }

    /// One step.
    #[inline(always)]
    pub fn step(&mut self) {
        if self.next < self.end {
            for byte in (0..self.step).step_by(LINE) {
                prefetch(self.next.wrapping_add(byte));
            }
            self.next = self.next.wrapping_add(self.step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes asked for by so many steps of what was made for `steps`.
    fn asked(bytes: usize, products: usize, steps: usize, taken: usize) -> usize {
        let first = std::ptr::without_provenance(4096);
        let mut ahead = Ahead::of(first, bytes, products, (steps, 1.75));
        (0..taken).for_each(|_| ahead.step());
        ahead.next.addr().saturating_sub(first.addr())
    }

    #[test]
    fn a_block_is_asked_for_once_in_the_steps_there_are() {
        for (bytes, steps, taken, expected) in [
            (24_576, 96, 96, 24_576),
            (24_576, 96, 48, 12_288),
            (24_576, 100, 100, 25_600 - 1_024),
            (24_576, 100_000, 100_000, 24_576),
            (24_576, 7, 7, 24_640),
            (24_576, 0, 1, 24_576),
            (0, 96, 96, 0),
        ] {
            assert_eq!(asked(bytes, 10 * bytes, steps, taken), expected, "{bytes} bytes in {steps}");
        }
    }

    #[test]
    fn nothing_is_asked_for_where_memory_has_no_rest() {
        assert_eq!(asked(1000, 1749, 10, 10), 0);
        assert!(asked(1000, 1750, 10, 10) >= 1000);
    }
}
