//! From the first hash of a run to its node.
//!
//! Many small tables instead of one: a table that grows moves all its entries at once, and the caller holds a
//! lock meanwhile. Five million entries in one table would pause for a good part of a second; in 256 tables
//! each pause is a 256th of that, and they do not come together.

use hashbrown::HashTable;

use super::node::NodeId;

const TABLES: usize = 256;

/// First hash of a run -> node. The hashes themselves stay in the nodes: an entry is five bytes.
#[derive(Debug)]
pub(super) struct FirstHashes {
    tables: Box<[HashTable<NodeId>; TABLES]>,
}

impl FirstHashes {
    pub(super) fn new() -> Self {
        Self { tables: Box::new([const { HashTable::new() }; TABLES]) }
    }

    /// The node whose run begins with `hash`; `begins_with_it` tells a candidate apart from a chance neighbour.
    #[inline]
    pub(super) fn find(&self, hash: u64, begins_with_it: impl FnMut(&NodeId) -> bool) -> Option<NodeId> {
        self.tables[table_of(hash)].find(hash, begins_with_it).copied()
    }

    /// Enters a node; `first_of` reads the first hash of any node that is in.
    pub(super) fn insert(&mut self, hash: u64, node: NodeId, first_of: impl Fn(NodeId) -> u64) {
        let table = &mut self.tables[table_of(hash)];
        if table.len() == table.capacity() {
            // Full of entries, or of the marks that removed ones leave. On its own a table that is half full of
            // marks would double.
            let mut roomy = HashTable::with_capacity(table.len() + table.len() / 8 + 1);
            for node in table.drain() {
                roomy.insert_unique(first_of(node), node, |&other| first_of(other));
            }
            *table = roomy;
        }
        table.insert_unique(hash, node, |&other| first_of(other));
    }

    /// Puts `new` in the place of `old`.
    pub(super) fn replace(&mut self, hash: u64, old: NodeId, new: NodeId) {
        if let Some(entry) = self.tables[table_of(hash)].find_mut(hash, |&node| node == old) {
            *entry = new;
        }
    }

    /// Takes a node out.
    pub(super) fn remove(&mut self, hash: u64, node: NodeId) {
        if let Ok(entry) = self.tables[table_of(hash)].find_entry(hash, |&other| other == node) {
            entry.remove();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tables.iter().map(HashTable::len).sum()
    }

    /// Bytes of all tables.
    pub(super) fn memory_bytes(&self) -> usize {
        let entries: usize = self.tables.iter().map(HashTable::allocation_size).sum();
        entries + size_of::<[HashTable<NodeId>; TABLES]>()
    }
}

/// Bits that the tables themselves do not look at: they take the lowest for the bucket, the highest for the tag.
#[inline]
fn table_of(hash: u64) -> usize {
    (hash >> 32) as usize % TABLES
}
