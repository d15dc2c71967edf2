//! The trees of prompts: runs of chained block hashes, split where prompts part ways.
//!
//! Invariants:
//! - a run is found under its first hash, and the run that continues it under the hash that follows;
//! - a node without holders does not exist;
//! - a split leaves the *end* of the run under the old id: who remembered a path by its last node still does.
//!
//! What is recent, and how much an endpoint may hold, is [`PrefixIndex`](super::PrefixIndex)'s business.

use super::first_hashes::FirstHashes;
use super::node::{Holder, HolderLists, Holders, NO_NODE, Node, NodeId};
use super::slab::Slab;

#[derive(Debug)]
pub(super) struct Forest {
    pub(super) nodes: Slab<Node>,
    pub(super) lists: HolderLists,
    pub(super) first_hashes: FirstHashes,
    /// (node, holder) pairs.
    pub(super) holdings: usize,
    /// Blocks of all runs, each counted once however many hold it.
    pub(super) blocks: usize,
}

/// One step of a walk along a prompt.
pub(super) struct Step {
    pub(super) node: NodeId,
    /// Blocks that the node's run shares with the prompt, one or more.
    pub(super) shared: usize,
    /// The prompt has the whole run; else nothing in the forest follows it further.
    pub(super) whole: bool,
}

impl Forest {
    pub(super) fn new() -> Self {
        Self {
            nodes: Slab::new(),
            lists: HolderLists::new(),
            first_hashes: FirstHashes::new(),
            holdings: 0,
            blocks: 0,
        }
    }

    /// The node whose run begins with the first of `blocks`.
    #[inline]
    pub(super) fn step(&self, blocks: &[u64]) -> Option<Step> {
        let first = *blocks.first()?;
        let mut shared = 0;
        let node = self.first_hashes.find(first, |&node| {
            shared = self.nodes[node].shared_with(blocks);
            shared > 0
        })?;
        Some(Step { node, shared, whole: shared == self.nodes[node].len() })
    }

    /// Who holds the node, sorted by slot.
    #[inline]
    pub(super) fn holders(&self, node: NodeId) -> &[Holder] {
        self.lists.slice(&self.nodes[node].holders)
    }

    /// The stamp under which the slot holds the node, if it does (and there is such a node).
    #[inline]
    pub(super) fn stamp_of(&self, node: NodeId, slot: usize) -> Option<u32> {
        if node == NO_NODE { None } else { self.lists.stamp_of(&self.nodes[node].holders, slot) }
    }

    /// A new node of `run` (not empty) below `parent`.
    pub(super) fn grow(&mut self, run: &[u64], parent: NodeId, holder: Holder) -> NodeId {
        self.holdings += 1;
        self.blocks += run.len();
        self.enter(Node::new(run, parent, Holders::One(holder)))
    }

    /// Adds a holder to the node, or restamps it. Blocks that this adds to what the endpoint holds.
    pub(super) fn hold(&mut self, node: NodeId, holder: Holder) -> usize {
        let node = &mut self.nodes[node];
        if !self.lists.add(&mut node.holders, holder) {
            return 0;
        }
        self.holdings += 1;
        node.len()
    }

    /// Takes a holder off the node, which ends with its last. Blocks that the endpoint no longer holds.
    pub(super) fn release(&mut self, id: NodeId, slot: usize) -> usize {
        let node = &mut self.nodes[id];
        let len = node.len();
        self.holdings -= 1;
        if self.lists.remove(&mut node.holders, slot) {
            self.first_hashes.remove(node.first(), id);
            self.blocks -= len;
            self.nodes.remove(id);
        }
        len
    }

    /// Cuts the node after its first `len` blocks; the new id is that of the front, the old one keeps the rest.
    pub(super) fn split(&mut self, id: NodeId, len: usize) -> NodeId {
        let node = &mut self.nodes[id];
        let holders = self.lists.duplicate(&node.holders);
        let front = node.split_front(len, holders);
        let (front_first, rest_first) = (front.first(), node.first());
        self.holdings += self.lists.slice(&front.holders).len();
        let front = self.nodes.insert(front);
        self.nodes[id].parent = front;
        self.first_hashes.replace(front_first, id, front);
        let nodes = &self.nodes;
        self.first_hashes.insert(rest_first, id, |node| nodes[node].first());
        front
    }

    /// Takes the last blocks of the node off the slot's holdings, so that it holds `len` of them at most.
    /// The node of those that it still holds.
    pub(super) fn shorten(&mut self, id: NodeId, slot: usize, len: usize) -> NodeId {
        if let Holders::One(_) = self.nodes[id].holders {
            self.blocks -= self.nodes[id].len() - len;
            self.nodes[id].truncate(len);
            return id;
        }
        let front = self.split(id, len);
        self.release(id, slot);
        front
    }

    /// Bytes of all that is on the heap, by count of what is there (allocators round up; no walk is made).
    pub(super) fn memory_bytes(&self) -> usize {
        /// The pointer and length of a run's hashes, and what an allocator adds to the two boxes of a run.
        const RUN_OVERHEAD_BYTES: usize = 32;
        let before_last = self.blocks - self.nodes.len();
        let in_lists = self.holdings - self.holdings.min(self.nodes.len());
        self.nodes.memory_bytes()
            + self.lists.memory_bytes(in_lists)
            + self.first_hashes.memory_bytes()
            + before_last * size_of::<u64>()
            + self.nodes.len().min(before_last) * RUN_OVERHEAD_BYTES
    }

    fn enter(&mut self, node: Node) -> NodeId {
        let first = node.first();
        let id = self.nodes.insert(node);
        let nodes = &self.nodes;
        self.first_hashes.insert(first, id, |node| nodes[node].first());
        id
    }
}
