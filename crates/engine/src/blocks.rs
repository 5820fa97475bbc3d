//! Cache blocks and who has them.

/// Hands out a fixed number of blocks. The block freed last is used next, so a small load touches little memory.
#[derive(Debug)]
pub(crate) struct BlockPool {
    free: Vec<u32>,
    total: usize,
}

impl BlockPool {
    pub fn new(total: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), total }
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }

    /// Extends `blocks` to `wanted`; all or nothing.
    pub fn grow(&mut self, blocks: &mut Vec<u32>, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(blocks.len());
        if missing > self.free.len() {
            return false;
        }
        blocks.extend(self.free.drain(self.free.len() - missing..).rev());
        true
    }

    /// Takes all of a sequence's blocks back.
    pub fn release(&mut self, blocks: &mut Vec<u32>) {
        self.free.extend(blocks.drain(..).rev());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_block_has_one_owner_and_none_is_lost(
            total in 1usize..40,
            steps in prop::collection::vec((0usize..6, 0usize..12), 0..80),
        ) {
            let mut pool = BlockPool::new(total);
            let mut owners = vec![Vec::new(); 6];
            for (owner, wanted) in steps {
                let (before, free) = (owners[owner].len(), pool.free());
                if wanted == 0 {
                    pool.release(&mut owners[owner]);
                } else {
                    let fits = wanted.saturating_sub(before) <= free;
                    prop_assert_eq!(pool.grow(&mut owners[owner], wanted), fits);
                    prop_assert_eq!(owners[owner].len(), if fits { before.max(wanted) } else { before });
                }
                let held: Vec<u32> = owners.iter().flatten().copied().collect();
                prop_assert_eq!(held.len(), pool.used());
                prop_assert_eq!(held.iter().collect::<HashSet<_>>().len(), held.len());
                prop_assert!(held.iter().all(|block| (*block as usize) < total));
                prop_assert_eq!(pool.used() + pool.free(), total);
            }
        }
    }
}
