use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// What a test knows of its sequences: blocks, and what each block holds.
struct World {
    pool: BlockPool,
    sequences: Vec<Vec<u32>>,
    /// Content of every block as its last writer left it.
    content: Vec<u64>,
    names: HashMap<Prefix, u64>,
    writes: u64,
}

impl World {
    fn new(total: usize) -> Self {
        Self {
            pool: BlockPool::new(total),
            sequences: vec![Vec::new(); 6],
            content: vec![0; total],
            names: HashMap::new(),
            writes: 0,
        }
    }

    fn holders(&self, block: u32) -> usize {
        self.sequences.iter().flatten().filter(|held| **held == block).count()
    }

    fn step(&mut self, operation: u8, owner: usize, number: usize) {
        match operation {
            0..=2 => self.grow(owner, number),
            3..=5 => self.write(owner, number),
            6..=7 => self.share(owner, number),
            8 => self.pool.shrink(&mut self.sequences[owner], number % 3),
            _ => self.name(owner, number),
        }
        self.check();
    }

    fn grow(&mut self, owner: usize, wanted: usize) {
        let (before, free) = (self.sequences[owner].len(), self.pool.free());
        let fits = wanted.saturating_sub(before) <= free;
        assert_eq!(self.pool.grow(&mut self.sequences[owner], wanted).is_ok(), fits);
        let expected = if fits { before.max(wanted) } else { before };
        assert_eq!(self.sequences[owner].len(), expected);
        for index in before..self.sequences[owner].len() {
            assert_eq!(self.holders(self.sequences[owner][index]), 1, "a new block is nobody else's");
            self.put(self.sequences[owner][index]);
        }
    }

    /// Every write has a content of its own, so a write to somebody else's block shows.
    fn put(&mut self, block: u32) {
        self.writes += 1;
        self.content[block as usize] = self.writes;
    }

    fn write(&mut self, owner: usize, index: usize) {
        let Some(block) = self.sequences[owner].get(index).copied() else { return };
        let (shared, free) = (self.holders(block) > 1, self.pool.free());
        match self.pool.own(&mut self.sequences[owner][index]) {
            Ok(None) => assert!(!shared),
            Ok(Some(copy)) => {
                assert!(shared && copy.from == block && self.holders(copy.to) == 1);
                self.content[copy.to as usize] = self.content[copy.from as usize];
            }
            Err(Full) => return assert!(shared && free == 0),
        }
        self.put(self.sequences[owner][index]);
    }

    fn name(&mut self, owner: usize, index: usize) {
        let Some(block) = self.sequences[owner].get(index).copied() else { return };
        let content = self.content[block as usize];
        let name = Prefix::start(&content.to_string());
        self.pool.name(block, name);
        self.names.insert(name, content);
    }

    fn share(&mut self, owner: usize, number: usize) {
        let name = Prefix::start(&(self.writes.saturating_sub(number as u64)).to_string());
        if let Some(block) = self.pool.share(&name) {
            assert_eq!(self.content[block as usize], self.names[&name], "a name tells what is in the block");
            self.sequences[owner].push(block);
        }
    }

    /// No block is lost, none is both free and held, and holders are counted.
    fn check(&self) {
        let held: HashSet<u32> = self.sequences.iter().flatten().copied().collect();
        assert_eq!(held.len(), self.pool.used());
        assert_eq!(self.pool.used() + self.pool.free(), self.content.len());
        let free: HashSet<u32> = self.pool.empty.iter().chain(self.pool.kept.values()).copied().collect();
        assert_eq!(free.len(), self.pool.free(), "no block is free twice");
        assert!(free.is_disjoint(&held));
        for (block, state) in (0..).zip(&self.pool.blocks) {
            assert_eq!(state.holders as usize, self.holders(block));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// 100 cases of 1000 operations.
    #[test]
    fn blocks_are_never_lost_freed_twice_or_written_under_another(
        total in 1usize..40,
        steps in prop::collection::vec((0u8..12, 0usize..6, 0usize..12), 1000),
    ) {
        let mut world = World::new(total);
        for (operation, owner, number) in steps {
            world.step(operation, owner, number);
        }
        for owner in 0..6 {
            world.step(8, owner, 0);
        }
        prop_assert_eq!(world.pool.used(), 0);
    }
}

#[test]
fn names_depend_on_every_token_before_and_on_the_salt() {
    let chain = |salt: &str, blocks: &[&[u32]]| {
        blocks.iter().fold(Prefix::start(salt), |prefix, tokens| prefix.after(tokens))
    };
    assert_eq!(chain("", &[&[1, 2], &[3, 4]]), chain("", &[&[1, 2], &[3, 4]]));
    assert_ne!(chain("", &[&[1, 2], &[3, 4]]), chain("", &[&[9, 2], &[3, 4]]));
    assert_ne!(chain("", &[&[1, 2]]), chain("tenant", &[&[1, 2]]));
}

#[test]
fn the_end_that_was_released_longest_ago_goes_first() {
    let mut pool = BlockPool::new(3);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    pool.grow(&mut first, 2).unwrap();
    pool.grow(&mut second, 1).unwrap();
    let name = |n: u32| Prefix::start("").after(&[n]);
    pool.name(first[0], name(0));
    pool.name(first[1], name(1));
    pool.name(second[0], name(2));
    pool.release(&mut first);
    pool.release(&mut second);
    assert_eq!((pool.used(), pool.free()), (0, 3));
    let mut next = Vec::new();
    pool.grow(&mut next, 1).unwrap();
    assert!(pool.share(&name(1)).is_none(), "the end of the first sequence");
    assert!(pool.share(&name(0)).is_some() && pool.share(&name(2)).is_some());
}
