//! Which endpoint holds how much of a prompt: an index of prompt prefixes, least recently used out first.
//!
//! A prompt is a chain of block hashes ([`block_hashes`](crate::block_hashes)). The obvious index is a table from
//! each hash to its holders: one random access for each block. But prompts part ways seldom, so this one keeps *runs*
//! of blocks that exactly the same endpoints hold, and a match costs one access for each place where prompts
//! part. The last hash of a run proves the whole run, because hashes are chained.
//!
//! ```text
//!  [system prompt: 32 blocks | a b c] ──┬── [document 1: 60 blocks | a] ─── [question: 4 | a]
//!                                       └── [document 2: 91 blocks | b c]
//! ```
//!
//! Invariants, walked by the tests after every step:
//! - prefix-closed: who holds a run holds all runs before it;
//! - an endpoint's runs add up to its count of blocks, which is at most the capacity after each record;
//! - a record stamps its whole path, so along a path stamps only get older, and the runs under one stamp are a
//!   segment of one path;
//! - an endpoint's queue is sorted by stamp, and the entry of a stamp names the deepest run of its segment for as long
//!   as there is one. Eviction takes the oldest entry and climbs from its run: least recent first, deepest first.
//!   Where the segment is gone no run bears the stamp, so a reused node id cannot bring an entry back to life;
//! - memory is bounded: nodes by blocks held, a queue by four times the runs held (see [`Holding::push`]).

mod first_hashes;
mod forest;
mod node;
mod slab;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use endpoints::{EndpointId, Slot};

use self::forest::Forest;
use self::node::{Holder, NO_NODE, NodeId};

/// Prompt prefixes by endpoint. Slots may be reused: what is held under one is its owner's alone.
#[derive(Debug)]
pub struct PrefixIndex {
    forest: Forest,
    holdings: Vec<Holding>,
    capacity_blocks: usize,
}

/// What [`PrefixIndex::record`] gives: enough to take the record back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "keep it to take the record back if the request never reaches the endpoint"]
pub struct Receipt {
    slot: Slot,
    owner: EndpointId,
    stamp: u32,
    blocks_before: usize,
}

/// One endpoint's part of the index.
#[derive(Debug, Default)]
struct Holding {
    /// Nobody: what is still held waits for eviction.
    owner: Option<EndpointId>,
    blocks: usize,
    stamp: u32,
    queue: VecDeque<Touch>,
}

/// The record of this stamp touched a path; what still bears the stamp ends with `node`.
#[derive(Debug, Clone, Copy)]
struct Touch {
    node: NodeId,
    stamp: u32,
}

impl PrefixIndex {
    /// An empty index that remembers `capacity_blocks` blocks for each endpoint.
    #[must_use]
    pub fn new(capacity_blocks: usize) -> Self {
        Self { forest: Forest::new(), holdings: Vec::new(), capacity_blocks }
    }

    /// Writes to `matched` how many leading `blocks` the endpoint in each slot holds; slots that are not
    /// in it hold none. Whose slot it is tells [`owner`](Self::owner).
    pub fn matches(&self, blocks: &[u64], matched: &mut Vec<u32>) {
        matched.clear();
        matched.resize(self.holdings.len(), 0);
        let mut depth = 0;
        while let Some(step) = self.forest.step(&blocks[depth..]) {
            depth += step.shared;
            for holder in self.forest.holders(step.node) {
                matched[holder.slot()] = depth as u32;
            }
            if !step.whole {
                break;
            }
        }
    }

    /// The endpoint whose prefixes are held under `slot`.
    #[must_use]
    pub fn owner(&self, slot: Slot) -> Option<EndpointId> {
        self.holdings.get(slot.index())?.owner
    }

    /// Remembers that the endpoint now holds `blocks`; what is over its capacity goes, least recently used
    /// first, and of a longer prompt only the first blocks stay. What the slot held for another endpoint goes first.
    pub fn record(&mut self, slot: Slot, endpoint: EndpointId, blocks: &[u64]) -> Receipt {
        let holding = self.claim(slot, endpoint);
        holding.stamp += 1;
        let stamp = holding.stamp;
        let holder = Holder::new(slot.index(), stamp);
        let blocks = &blocks[..blocks.len().min(self.capacity_blocks)];

        let (mut depth, mut leaf, mut blocks_added, mut blocks_before) = (0, NO_NODE, 0, 0);
        while let Some(step) = self.forest.step(&blocks[depth..]) {
            leaf = if step.whole { step.node } else { self.forest.split(step.node, step.shared) };
            depth += step.shared;
            match self.forest.hold(leaf, holder) {
                0 => blocks_before = depth,
                added => blocks_added += added,
            }
        }
        if depth < blocks.len() {
            leaf = self.forest.grow(&blocks[depth..], leaf, holder);
            blocks_added += blocks.len() - depth;
        }

        let holding = &mut self.holdings[slot.index()];
        holding.blocks += blocks_added;
        holding.push(&self.forest, slot.index(), Touch { node: leaf, stamp });
        self.evict(slot.index(), usize::MAX);
        Receipt { slot, owner: endpoint, stamp, blocks_before }
    }

    /// Takes back what only that record added, `blocks` being the same: its request never got there. What a later
    /// request touched stays, and so does what the endpoint held before.
    pub fn unrecord(&mut self, receipt: &Receipt, blocks: &[u64]) {
        let &Receipt { slot, owner, stamp, blocks_before } = receipt;
        if self.owner(slot) != Some(owner) {
            return;
        }
        let holding = &mut self.holdings[slot.index()];
        let (mut depth, mut released, mut leaf) = (0, 0, NO_NODE);
        while let Some(step) = self.forest.step(&blocks[depth..]) {
            if self.forest.stamp_of(step.node, slot.index()) == Some(stamp) {
                if depth < blocks_before {
                    leaf = step.node;
                } else {
                    released += self.forest.release(step.node, slot.index());
                }
            }
            depth += step.shared;
        }
        holding.blocks -= released;
        if released > 0
            && let Ok(entry) = holding.queue.binary_search_by_key(&stamp, |touch| touch.stamp)
        {
            // What the record only touched still bears its stamp, up to here.
            holding.queue[entry].node = leaf;
        }
    }

    /// Nobody owns the slot any more: it matches nothing. Its blocks go with [`evict_step`](Self::evict_step).
    pub fn forget(&mut self, slot: Slot) {
        if let Some(holding) = self.holdings.get_mut(slot.index()) {
            holding.owner = None;
        }
    }

    /// Forgets the slots whose endpoint is not `live`.
    pub fn retain(&mut self, mut live: impl FnMut(Slot, EndpointId) -> bool) {
        for (slot, holding) in self.holdings.iter_mut().enumerate() {
            holding.owner = holding.owner.filter(|&owner| live(Slot::new(slot as u32), owner));
        }
    }

    /// Sets how many blocks are remembered for each endpoint. When it is lower than before, call
    /// [`evict_step`](Self::evict_step) until it is done.
    pub fn set_capacity(&mut self, capacity_blocks: usize) {
        self.capacity_blocks = capacity_blocks;
    }

    /// Lets go of what is over the capacity or nobody's, at most `steps_max` runs at a time, so that a caller under a
    /// lock can let others in between. False once there is nothing more to do.
    pub fn evict_step(&mut self, steps_max: usize) -> bool {
        let mut steps = steps_max;
        for slot in 0..self.holdings.len() {
            steps -= self.evict(slot, steps);
        }
        steps == 0
    }

    /// Blocks remembered, summed over endpoints.
    #[must_use]
    pub fn blocks_held(&self) -> usize {
        self.holdings.iter().map(|holding| holding.blocks).sum()
    }

    /// Blocks remembered for the slot's endpoint.
    #[must_use]
    pub fn blocks_held_by(&self, slot: Slot) -> usize {
        self.holdings.get(slot.index()).map_or(0, |holding| holding.blocks)
    }

    /// About how many bytes of memory the index takes; cheap enough for every scrape.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let queues: usize = self.holdings.iter().map(|holding| holding.queue.capacity()).sum();
        self.forest.memory_bytes()
            + queues * size_of::<Touch>()
            + self.holdings.capacity() * size_of::<Holding>()
    }

    /// Makes the slot the endpoint's; what another left there goes. Once in 2^32 records, so that stamps only ever
    /// rise, what it holds itself goes as well.
    fn claim(&mut self, slot: Slot, endpoint: EndpointId) -> &mut Holding {
        let slot = slot.index();
        if slot >= self.holdings.len() {
            self.holdings.resize_with(slot + 1, Holding::default);
        }
        let worn_out = self.holdings[slot].stamp == u32::MAX;
        if self.holdings[slot].owner != Some(endpoint) || worn_out {
            self.holdings[slot].owner = None;
            self.evict(slot, usize::MAX);
            self.holdings[slot].owner = Some(endpoint);
        }
        if worn_out {
            self.holdings[slot].stamp = 0;
        }
        &mut self.holdings[slot]
    }

    /// Brings one endpoint down to what it may hold, in at most `steps_max` steps; the steps taken.
    fn evict(&mut self, slot: usize, steps_max: usize) -> usize {
        let Self { forest, holdings, capacity_blocks } = self;
        let holding = &mut holdings[slot];
        let allowed = if holding.owner.is_some() { *capacity_blocks } else { 0 };
        let mut steps = 0;
        while holding.blocks > allowed && steps < steps_max {
            let Some(oldest) = holding.queue.front_mut() else { break };
            steps += 1;
            if forest.stamp_of(oldest.node, slot) != Some(oldest.stamp) {
                holding.queue.pop_front();
                continue;
            }
            let (run, surplus) = (forest.nodes[oldest.node].len(), holding.blocks - allowed);
            if run > surplus {
                oldest.node = forest.shorten(oldest.node, slot, run - surplus);
                holding.blocks = allowed;
            } else {
                let parent = forest.nodes[oldest.node].parent;
                holding.blocks -= forest.release(oldest.node, slot);
                // The entry stands for the whole segment: it climbs, and goes once another's stamp is reached.
                oldest.node = parent;
            }
        }
        if holding.blocks == 0 {
            holding.queue = VecDeque::new();
        }
        steps
    }
}

impl Holding {
    /// Appends an entry. A full queue first drops the entries whose segment is gone, and grows (to twice its size) only
    /// if half of it still stands: memory stays within four times the runs held, at a constant cost a push.
    fn push(&mut self, forest: &Forest, slot: usize, touch: Touch) {
        if touch.node == NO_NODE {
            return;
        }
        if self.queue.len() == self.queue.capacity() {
            self.queue.retain(|touch| forest.stamp_of(touch.node, slot) == Some(touch.stamp));
            if self.queue.len() >= self.queue.capacity() / 2 {
                self.queue.reserve(self.queue.capacity());
            }
        }
        self.queue.push_back(touch);
    }
}
