//! Sharing replicas over pools. Pure.

use gqla_api::PlacementStrategy;

/// A pool that replicas may go to, best first in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Replicas it gets before the rest is shared out.
    pub min: u32,
    /// Replicas it never exceeds.
    pub max: u32,
    /// Replicas its nodes hold when otherwise empty.
    pub capacity: u32,
}

/// Replicas per slot. Every slot first gets its minimum while `total` lasts. [`PlacementStrategy::Spread`] deals the
/// rest out one by one; the other strategies fill slots in order up to their capacity, and put what fits nowhere on
/// the first slot that may have it, so that an autoscaler sees which nodes are wanted.
pub fn share(total: u32, strategy: PlacementStrategy, slots: &[Slot]) -> Vec<u32> {
    let mut left = total;
    let mut shares: Vec<u32> = slots.iter().map(|slot| take(&mut left, slot.min.min(slot.max))).collect();
    if strategy == PlacementStrategy::Spread {
        deal(&mut left, slots, &mut shares);
        return shares;
    }
    for (share, slot) in shares.iter_mut().zip(slots) {
        *share += take(&mut left, slot.max.min(slot.capacity).saturating_sub(*share));
    }
    for (share, slot) in shares.iter_mut().zip(slots) {
        *share += take(&mut left, slot.max.saturating_sub(*share));
    }
    shares
}

fn take(left: &mut u32, wanted: u32) -> u32 {
    let taken = wanted.min(*left);
    *left -= taken;
    taken
}

/// One by one to whoever has fewest, the first of them on a tie.
fn deal(left: &mut u32, slots: &[Slot], shares: &mut [u32]) {
    while *left > 0 {
        let open = (0..slots.len()).filter(|&i| shares[i] < slots[i].max);
        let Some(next) = open.min_by_key(|&i| shares[i]) else { return };
        shares[next] += take(left, 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slot(min: u32, max: u32, capacity: u32) -> Slot {
        Slot { min, max, capacity }
    }

    #[test]
    fn tables() {
        use PlacementStrategy::{Cost, Spread, Throughput};
        let open = slot(0, u32::MAX, u32::MAX);
        let cases: [(u32, PlacementStrategy, &[Slot], &[u32]); 9] = [
            (3, Spread, &[open, open, open], &[1, 1, 1]),
            (4, Spread, &[open, open, open], &[2, 1, 1]),
            (2, Spread, &[open, open, open], &[1, 1, 0]),
            (3, Throughput, &[open, open], &[3, 0]),
            (5, Cost, &[slot(0, u32::MAX, 2), slot(0, u32::MAX, 2)], &[3, 2]),
            (4, Throughput, &[slot(0, 1, 9), slot(1, 9, 9)], &[1, 3]),
            (4, Spread, &[slot(3, 9, 9), open], &[3, 1]),
            (1, Throughput, &[slot(2, 9, 9), slot(2, 9, 9)], &[1, 0]),
            (9, Throughput, &[slot(0, 2, 9), slot(0, 3, 9)], &[2, 3]),
        ];
        for (total, strategy, slots, expected) in cases {
            assert_eq!(share(total, strategy, slots), expected, "{total} {strategy:?} {slots:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_made_up(
            total in 0u32..50,
            strategy in prop::sample::select(vec![PlacementStrategy::Spread, PlacementStrategy::Throughput]),
            slots in prop::collection::vec((0u32..5, 0u32..20, 0u32..20), 1..6),
        ) {
            let slots: Vec<_> = slots.into_iter().map(|(min, max, capacity)| slot(min, max, capacity)).collect();
            let shares = share(total, strategy, &slots);
            let most: u32 = slots.iter().map(|slot| slot.max).sum();
            prop_assert_eq!(shares.iter().sum::<u32>(), total.min(most));
            prop_assert!(shares.iter().zip(&slots).all(|(share, slot)| *share <= slot.max));
        }
    }
}
