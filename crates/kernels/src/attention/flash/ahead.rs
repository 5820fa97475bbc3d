//! Asking for an int8 cache's next memory while something else is computed.
//!
//! Keys or values of a group's block are a page or less of int8: they end before a processor's own prefetcher is up to speed,
//! so attention would wait and compute in turn. Asking by hand was measured to make attention over int8 up to a half faster
//! (AVX-512, two threads, 32 heads of 128 channels); over wider numbers it gained nothing, so they go without.

use std::ops::Range;

use super::Stored;
use crate::simd::prefetch;

const LINE: usize = 64;

/// Up to two stretches of memory that are read next.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    now: [*const u8; 2],
    then: [*const u8; 2],
    /// Cache lines of a step.
    lines: usize,
}

impl Ahead {
    /// Nothing is read next.
    pub const NOTHING: Self = Self { now: [std::ptr::null(); 2], then: [std::ptr::null(); 2], lines: 0 };

    /// Both stretches, to be asked for in so many equal steps.
    #[inline(always)]
    pub fn of<E: Stored>([now, then]: [Range<*const E>; 2], steps: usize) -> Self {
        if !E::SCALED {
            return Self::NOTHING;
        }
        let stretch = |range: Range<*const E>| [range.start.cast::<u8>(), range.end.cast::<u8>()];
        let lines = |range: [*const u8; 2]| (range[1].addr() - range[0].addr()).div_ceil(LINE);
        let (now, then) = (stretch(now), stretch(then));
        Self { now, then, lines: (lines(now) + lines(then)).div_ceil(steps.max(1)) }
    }

    /// Takes one step.
    #[inline(always)]
    pub fn step<E: Stored>(&mut self) {
        if !E::SCALED {
            return;
        }
        for _ in 0..self.lines {
            if self.now[0] >= self.now[1] {
                self.now = self.then;
                self.then = [std::ptr::null(); 2];
                if self.now[0] >= self.now[1] {
                    self.lines = 0;
                    return;
                }
            }
            prefetch(self.now[0]);
            self.now[0] = self.now[0].wrapping_add(LINE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_stretches_are_asked_for_in_so_many_steps_and_no_more() {
        let numbers = [0i8; 640];
        let of = |range: Range<usize>| numbers[range].as_ptr_range();
        let mut ahead = Ahead::of([of(0..256), of(256..640)], 3);
        assert_eq!(ahead.lines, 4);
        for end in [256, 512] {
            ahead.step::<i8>();
            assert_eq!(ahead.now[0], numbers[end..].as_ptr().cast());
        }
        ahead.step::<i8>();
        ahead.step::<i8>();
        assert_eq!((ahead.lines, ahead.now), (0, [std::ptr::null(); 2]));
        Ahead::of([of(0..0), of(0..0)], 0).step::<i8>();
    }
}
