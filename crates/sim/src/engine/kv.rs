//! The paged KV cache: blocks counted by reference, matched by chained hash, evicted least recently used.
//!
//! Invariants: a block is in the free list exactly when nothing refers to it; a free block may still be cached, and
//! is found by its hash until it is handed out again; `cached` names a block exactly when that block carries the hash.

use std::collections::HashMap;

/// Index of a block in the pool.
pub(super) type BlockId = u32;

/// No neighbour in the free list.
const NONE: BlockId = BlockId::MAX;

/// All blocks of one engine.
#[derive(Debug)]
pub(super) struct BlockPool {
    blocks: Vec<Block>,
    cached: HashMap<u64, BlockId>,
    /// Least recently used end of the free list.
    oldest: BlockId,
    newest: BlockId,
    free: u32,
}

#[derive(Debug, Clone)]
struct Block {
    references: u32,
    hash: Option<u64>,
    older: BlockId,
    newer: BlockId,
}

impl BlockPool {
    /// A pool of `total` empty blocks.
    pub(super) fn new(total: u32) -> Self {
        let empty = Block { references: 0, hash: None, older: NONE, newer: NONE };
        let mut pool = Self {
            blocks: vec![empty; total as usize],
            cached: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            free: 0,
        };
        for id in 0..total {
            pool.append_free(id);
        }
        pool
    }

    /// Blocks in all.
    pub(super) fn total(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks that nothing refers to, cached or not.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// How many of the leading `hashes` are cached, and how many of those blocks are free.
    pub(super) fn matched(&self, hashes: &[u64]) -> Match {
        let mut found = Match { blocks: 0, free: 0 };
        for id in hashes.iter().map_while(|hash| self.cached.get(hash)) {
            found.blocks += 1;
            found.free += u32::from(self.blocks[*id as usize].references == 0);
        }
        found
    }

    /// Refers to the cached blocks of `hashes`, all of which [`BlockPool::matched`] has just found.
    pub(super) fn share(&mut self, hashes: &[u64], into: &mut Vec<BlockId>) {
        for hash in hashes {
            let Some(id) = self.cached.get(hash).copied() else { break };
            if self.blocks[id as usize].references == 0 {
                self.remove_free(id);
            }
            self.blocks[id as usize].references += 1;
            into.push(id);
        }
    }

    /// Hands out `count` blocks, least recently used first, forgetting what they cached. All or none.
    pub(super) fn allocate(&mut self, count: u32, into: &mut Vec<BlockId>) -> bool {
        if count > self.free {
            return false;
        }
        for _ in 0..count {
            let id = self.oldest;
            self.remove_free(id);
            let block = &mut self.blocks[id as usize];
            block.references = 1;
            if let Some(hash) = block.hash.take() {
                self.cached.remove(&hash);
            }
            into.push(id);
        }
        true
    }

    /// Makes a computed block findable. A second block with the same content stays private.
    pub(super) fn publish(&mut self, id: BlockId, hash: u64) {
        let block = &mut self.blocks[id as usize];
        if block.hash.is_none() && !self.cached.contains_key(&hash) {
            block.hash = Some(hash);
            self.cached.insert(hash, id);
        }
    }

    /// Lets go of a sequence's blocks, last first, so that the tail of a prefix is evicted before its head.
    pub(super) fn release(&mut self, ids: &mut Vec<BlockId>) {
        while let Some(id) = ids.pop() {
            let block = &mut self.blocks[id as usize];
            block.references -= 1;
            if block.references == 0 {
                self.append_free(id);
            }
        }
    }

    fn append_free(&mut self, id: BlockId) {
        let newest = self.newest;
        let block = &mut self.blocks[id as usize];
        (block.older, block.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = id,
            _ => self.blocks[newest as usize].newer = id,
        }
        self.newest = id;
        self.free += 1;
    }

    fn remove_free(&mut self, id: BlockId) {
        let (older, newer) = (self.blocks[id as usize].older, self.blocks[id as usize].newer);
        match older {
            NONE => self.oldest = newer,
            _ => self.blocks[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.blocks[newer as usize].older = older,
        }
        self.free -= 1;
    }
}

/// What of a prompt is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// Leading blocks found.
    pub(super) blocks: u32,
    /// Those of them that are in the free list, and leave it when shared.
    pub(super) free: u32,
}

#[cfg(test)]
impl BlockPool {
    /// Counts references and walks the free list, for tests that look for leaks.
    pub(super) fn check(&self) {
        let unreferenced = self.blocks.iter().filter(|block| block.references == 0).count();
        let (mut walked, mut at) = (0, self.oldest);
        while at != NONE {
            walked += 1;
            at = self.blocks[at as usize].newer;
        }
        assert_eq!((unreferenced, walked), (self.free as usize, self.free as usize));
        for (hash, id) in &self.cached {
            assert_eq!(self.blocks[*id as usize].hash, Some(*hash));
        }
        let hashed = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        assert_eq!(hashed, self.cached.len());
    }

    /// References over all blocks.
    pub(super) fn references(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.references)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(pool: &mut BlockPool, hashes: &[u64]) -> Vec<BlockId> {
        let mut ids = Vec::new();
        assert!(pool.allocate(hashes.len() as u32, &mut ids));
        for (id, hash) in ids.iter().zip(hashes) {
            pool.publish(*id, *hash);
        }
        ids
    }

    #[test]
    fn released_blocks_are_found_until_they_are_needed() {
        let mut pool = BlockPool::new(4);
        let mut ids = published(&mut pool, &[1, 2]);
        pool.release(&mut ids);
        assert_eq!(pool.matched(&[1, 2, 3]), Match { blocks: 2, free: 2 });
        assert_eq!(pool.free(), 4);
        assert!(pool.allocate(2, &mut ids), "the two that were never used go first");
        assert_eq!(pool.matched(&[1, 2]).blocks, 2);
        pool.check();
    }

    #[test]
    fn the_least_recently_used_goes_first_and_a_tail_before_its_head() {
        let mut pool = BlockPool::new(4);
        let mut old = published(&mut pool, &[1, 2]);
        let mut young = published(&mut pool, &[3, 4]);
        pool.release(&mut old);
        pool.release(&mut young);
        let mut touched = Vec::new();
        pool.share(&[1, 2], &mut touched);
        pool.release(&mut touched);

        let mut taken = Vec::new();
        assert!(pool.allocate(1, &mut taken));
        assert_eq!((pool.matched(&[3, 4]).blocks, pool.matched(&[1, 2]).blocks), (1, 2));
        assert!(pool.allocate(2, &mut taken));
        assert_eq!((pool.matched(&[3]).blocks, pool.matched(&[1, 2]).blocks), (0, 1));
        pool.check();
    }

    #[test]
    fn sharing_counts_references_and_takes_blocks_out_of_the_free_list() {
        let mut pool = BlockPool::new(3);
        let mut first = published(&mut pool, &[1]);
        let mut second = Vec::new();
        assert_eq!(pool.matched(&[1]), Match { blocks: 1, free: 0 });
        pool.share(&[1], &mut second);
        assert_eq!(first, second);
        pool.release(&mut first);
        assert_eq!(pool.free(), 2);
        pool.release(&mut second);
        assert_eq!(pool.free(), 3);
        pool.check();
    }

    #[test]
    fn allocation_is_all_or_none() {
        let mut pool = BlockPool::new(2);
        let mut ids = Vec::new();
        assert!(!pool.allocate(3, &mut ids));
        assert!(ids.is_empty());
        assert_eq!(pool.free(), 2);
    }

    #[test]
    fn the_same_content_computed_twice_is_cached_once() {
        let mut pool = BlockPool::new(2);
        let first = published(&mut pool, &[7]);
        let mut second = published(&mut pool, &[7]);
        pool.release(&mut second);
        let mut found = Vec::new();
        pool.share(&[7], &mut found);
        assert_eq!(found, first);
        pool.check();
    }
}
