//! Cache blocks: who has them, which may be shared, and which are given up first.
//!
//! A block that is full is named by a hash of its tokens and all before them, so that another sequence with the same
//! beginning can take it instead of computing it again. Nobody writes to a block that others have: [`BlockPool::own`]
//! gives a writer a copy. Blocks that nobody has keep their content until their place is needed, the one released
//! longest ago first.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

/// Names the content of a block: a hash of its tokens, all tokens before and the salt. With 256 bits nobody can make
/// up a prompt that collides with somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prefix([u8; 32]);

impl Prefix {
    /// Before the first token. Sequences share blocks only if they have the same salt.
    pub fn start(salt: &str) -> Self {
        Self(Sha256::digest(salt.as_bytes()).into())
    }

    /// After the tokens of one more block.
    pub fn after(&self, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// A block whose content has to be copied before the next step writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockCopy {
    pub from: u32,
    pub to: u32,
}

/// There is no block left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Clone, Debug, Default)]
struct Block {
    holders: u32,
    name: Option<Prefix>,
    /// When the last holder let go.
    released: u64,
}

/// A fixed number of blocks.
#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// Nobody's and without a name; the one freed last is used next, so that a small load touches little memory.
    empty: Vec<u32>,
    /// Nobody's but named, by the time of their release.
    kept: BTreeMap<u64, u32>,
    named: HashMap<Prefix, u32>,
    clock: u64,
}

impl BlockPool {
    pub fn new(total: usize) -> Self {
        Self {
            blocks: vec![Block::default(); total],
            empty: (0..total as u32).rev().collect(),
            kept: BTreeMap::new(),
            named: HashMap::new(),
            clock: 0,
        }
    }

    /// Blocks to be had, those with content to give up among them.
    pub fn free(&self) -> usize {
        self.empty.len() + self.kept.len()
    }

    /// Blocks that sequences have.
    pub fn used(&self) -> usize {
        self.blocks.len() - self.free()
    }

    /// Blocks whose content somebody has or may find.
    pub fn live(&self) -> Vec<u32> {
        let lives = |(_, block): &(u32, &Block)| block.holders > 0 || block.name.is_some();
        (0..).zip(&self.blocks).filter(lives).map(|(index, _)| index).collect()
    }

    /// Extends `blocks` to `wanted`; all or nothing.
    pub fn grow(&mut self, blocks: &mut Vec<u32>, wanted: usize) -> Result<(), Full> {
        let missing = wanted.saturating_sub(blocks.len());
        if missing > self.free() {
            return Err(Full);
        }
        for _ in 0..missing {
            blocks.push(self.take()?);
        }
        Ok(())
    }

    /// Takes all of a sequence's blocks back, the last first, so that a beginning outlives what follows it.
    pub fn release(&mut self, blocks: &mut Vec<u32>) {
        self.shrink(blocks, 0);
    }

    /// Takes back what `blocks` has beyond `wanted`.
    pub fn shrink(&mut self, blocks: &mut Vec<u32>, wanted: usize) {
        for block in blocks.drain(wanted.min(blocks.len())..).rev() {
            self.let_go(block);
        }
    }

    /// The block with this content, for one more holder.
    pub fn share(&mut self, name: &Prefix) -> Option<u32> {
        let block = *self.named.get(name)?;
        let state = &mut self.blocks[block as usize];
        if state.holders == 0 {
            self.kept.remove(&state.released);
        }
        state.holders += 1;
        Some(block)
    }

    /// Names a full block. Where another has the same content already, that one stays the one to be found.
    pub fn name(&mut self, block: u32, name: Prefix) {
        if !self.named.contains_key(&name) {
            self.forget(block);
            self.named.insert(name, block);
            self.blocks[block as usize].name = Some(name);
        }
    }

    /// Makes `block` one that its holder may write to: itself if nobody else has it, or else a copy.
    pub fn own(&mut self, block: &mut u32) -> Result<Option<BlockCopy>, Full> {
        if self.blocks[*block as usize].holders == 1 {
            // Its content is about to change.
            self.forget(*block);
            return Ok(None);
        }
        let copy = BlockCopy { from: *block, to: self.take()? };
        self.let_go(copy.from);
        *block = copy.to;
        Ok(Some(copy))
    }

    fn take(&mut self) -> Result<u32, Full> {
        let block = match self.empty.pop() {
            Some(block) => block,
            None => self.kept.pop_first().map(|(_, block)| block).ok_or(Full)?,
        };
        self.forget(block);
        self.blocks[block as usize].holders = 1;
        Ok(block)
    }

    fn let_go(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        if state.name.is_some() {
            self.clock += 1;
            state.released = self.clock;
            self.kept.insert(self.clock, block);
        } else {
            self.empty.push(block);
        }
    }

    fn forget(&mut self, block: u32) {
        if let Some(name) = self.blocks[block as usize].name.take() {
            self.named.remove(&name);
        }
    }
}
