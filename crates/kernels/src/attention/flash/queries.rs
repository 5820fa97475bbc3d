//! Queries as products take them.

use super::{HeadSet, KeyPart, Keys, Part, products::Products};
use crate::simd::Simd;

/// Queries of a part's set.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    part: &'a Part<'a>,
    set: &'a HeadSet,
    /// Rounded rows, where there are any.
    rounded: *mut f32,
}

impl Queries<'_> {
    /// Those of the part's set `number`.
    #[inline(always)]
    pub fn of<'a>(part: &'a Part<'a>, number: usize, room: *mut f32) -> Queries<'a> {
        let set = &part.sets[number];
        Queries { part, set, rounded: room.wrapping_add(number * part.rows * set.rounded_query()) }
    }

    /// A row as it was given.
    #[inline(always)]
    pub unsafe fn exact(&self, row: usize) -> *const f32 {
        // SAFETY: the row exists, the caller's contract.
        unsafe { self.set.q.add(self.set.q_rows.offset(self.part.first(self.set) + row)) }
    }

    /// Where a row's inputs for part `number` of the keys are, and what one of them is worth.
    #[inline(always)]
    pub unsafe fn inputs<S: Simd, A: Products<S>>(
        &self,
        row: usize,
        keys: &[KeyPart; 2],
        number: usize,
    ) -> (*const A::Inputs, f32) {
        // SAFETY: the row exists, and was rounded where `A` rounds; the caller's contract.
        unsafe {
            if !A::ROUNDS {
                return (self.exact(row).add(keys[number].query).cast(), 1.0);
            }
            let rounded = self.rounded.add(row * self.set.rounded_query());
            (rounded.add(2 + number * (keys[0].dim / 2)).cast(), *rounded.add(number))
        }
    }

    /// Rounds every row.
    #[inline(always)]
    pub unsafe fn round<S: Simd, A: Products<S>>(&self) {
        let keys = match self.set.keys {
            Keys::Columns(keys) => keys,
            Keys::Rows(keys, _) => KeyPart::of_rows::<A::Number>(keys),
        };
        for row in 0..self.part.rows {
            for (number, key) in keys.iter().enumerate().filter(|(_, key)| key.dim.is_multiple_of(A::PACK)) {
                // SAFETY: the room has every row; the caller's contract.
                unsafe {
                    let rounded = self.rounded.add(row * self.set.rounded_query());
                    let to = rounded.add(2 + number * (keys[0].dim / 2)).cast();
                    *rounded.add(number) = A::round(self.exact(row).add(key.query), key.dim, to);
                }
            }
        }
    }
}
