//! A run of block hashes in 32 bytes, and who holds it in 8 of them.

use std::num::NonZeroU32;

use super::slab::Slab;

/// Where a node lives in its slab.
pub(super) type NodeId = u32;
/// No node: the parent of a run that begins a prompt.
pub(super) const NO_NODE: NodeId = u32::MAX;

/// Consecutive block hashes that exactly the same endpoints hold.
///
/// What a walk needs stands in the node itself: the last hash proves the whole run (hashes are chained), and
/// with the length it is all that a match reads. The hashes before the last are read only where a prompt
/// leaves the run in its middle, so they are one pointer away.
#[derive(Debug)]
pub(super) struct Node {
    last: u64,
    before_last: Option<Box<BeforeLast>>,
    len: u32,
    pub(super) parent: NodeId,
    pub(super) holders: Holders,
}

const _: () = assert!(size_of::<Node>() == 32, "five million nodes must fit in 250 MB with all else");

/// All hashes of a run but the last; boxed once more so that a node pays for a thin pointer only.
#[derive(Debug)]
struct BeforeLast(Box<[u64]>);

/// One endpoint that holds a run, and the stamp of its last request that touched it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    slot_plus_one: NonZeroU32,
    pub(super) stamp: u32,
}

/// Who holds a run: one endpoint in place, more in a list of [`HolderLists`], sorted by slot.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holders {
    One(Holder),
    Many(u32),
}

const _: () = assert!(size_of::<Holders>() == 8);

/// Lists of two holders or more. List 0 stays empty: it is that of a free cell, which nobody holds.
#[derive(Debug)]
pub(super) struct HolderLists(Slab<Vec<Holder>>);

impl Node {
    /// A node of `run`, which has at least one hash.
    pub(super) fn new(run: &[u64], parent: NodeId, holders: Holders) -> Self {
        Self::of(run.to_vec(), parent, holders)
    }

    fn of(mut run: Vec<u64>, parent: NodeId, holders: Holders) -> Self {
        let len = run.len() as u32;
        let last = run.pop().unwrap_or_default();
        Self { last, before_last: BeforeLast::new(run), len, parent, holders }
    }

    /// Blocks in the run.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// The hash under which the run is found.
    #[inline]
    pub(super) fn first(&self) -> u64 {
        self.before_last.as_ref().and_then(|before| before.0.first().copied()).unwrap_or(self.last)
    }

    /// How many leading blocks of `blocks` the run shares.
    #[inline]
    pub(super) fn shared_with(&self, blocks: &[u64]) -> usize {
        if blocks.get(self.len() - 1) == Some(&self.last) {
            return self.len();
        }
        // Equality of one hash is equality of all before it: look for the first difference by halving.
        let before = self.before_last.as_ref().map_or(&[][..], |before| &before.0);
        let (mut shared, mut end) = (0, before.len().min(blocks.len()));
        while shared < end {
            let middle = shared + (end - shared) / 2;
            if before[middle] == blocks[middle] {
                shared = middle + 1;
            } else {
                end = middle;
            }
        }
        shared
    }

    /// Takes the first `len` blocks off into a node of their own; this one keeps the rest, and its place in
    /// every queue. `0 < len < self.len()`.
    pub(super) fn split_front(&mut self, len: usize, holders: Holders) -> Node {
        let mut front = self.take_before_last();
        self.before_last = BeforeLast::new(front.split_off(len));
        self.len -= len as u32;
        Node::of(front, self.parent, holders)
    }

    /// Forgets all but the first `len` blocks. `0 < len < self.len()`.
    pub(super) fn truncate(&mut self, len: usize) {
        let mut run = self.take_before_last();
        run.truncate(len);
        *self = Self::of(run, self.parent, self.holders);
    }

    fn take_before_last(&mut self) -> Vec<u64> {
        self.before_last.take().map_or_else(Vec::new, |before| before.0.into_vec())
    }
}

impl Default for Node {
    /// A free cell: nobody holds it.
    fn default() -> Self {
        Self { last: 0, before_last: None, len: 0, parent: NO_NODE, holders: Holders::Many(0) }
    }
}

impl BeforeLast {
    fn new(hashes: Vec<u64>) -> Option<Box<Self>> {
        (!hashes.is_empty()).then(|| Box::new(Self(hashes.into_boxed_slice())))
    }
}

impl Holder {
    pub(super) fn new(slot: usize, stamp: u32) -> Self {
        Self { slot_plus_one: NonZeroU32::MIN.saturating_add(slot as u32), stamp }
    }

    #[inline]
    pub(super) fn slot(self) -> usize {
        self.slot_plus_one.get() as usize - 1
    }
}

impl HolderLists {
    pub(super) fn new() -> Self {
        let mut lists = Slab::new();
        lists.insert(Vec::new());
        Self(lists)
    }

    /// The holders, sorted by slot.
    #[inline]
    pub(super) fn slice<'a>(&'a self, holders: &'a Holders) -> &'a [Holder] {
        match holders {
            Holders::One(holder) => std::slice::from_ref(holder),
            Holders::Many(list) => &self.0[*list],
        }
    }

    /// The stamp under which the endpoint holds, if it does.
    #[inline]
    pub(super) fn stamp_of(&self, holders: &Holders, slot: usize) -> Option<u32> {
        let slice = self.slice(holders);
        slice.binary_search_by_key(&slot, |holder| holder.slot()).ok().map(|at| slice[at].stamp)
    }

    /// Adds a holder, or restamps it; whether it is new.
    pub(super) fn add(&mut self, holders: &mut Holders, holder: Holder) -> bool {
        match holders {
            Holders::One(one) if one.slot() == holder.slot() => {
                *one = holder;
                false
            }
            Holders::One(one) => {
                let mut list = vec![*one, holder];
                list.sort_unstable_by_key(|holder| holder.slot());
                *holders = Holders::Many(self.0.insert(list));
                true
            }
            Holders::Many(id) => {
                let list = &mut self.0[*id];
                match list.binary_search_by_key(&holder.slot(), |holder| holder.slot()) {
                    Ok(at) => {
                        list[at] = holder;
                        false
                    }
                    Err(at) => {
                        list.insert(at, holder);
                        true
                    }
                }
            }
        }
    }

    /// Takes away a holder that is there; whether nobody is left.
    pub(super) fn remove(&mut self, holders: &mut Holders, slot: usize) -> bool {
        let Holders::Many(id) = *holders else {
            *holders = Holders::Many(0);
            return true;
        };
        let list = &mut self.0[id];
        list.retain(|holder| holder.slot() != slot);
        if let [one] = list[..] {
            self.0.remove(id);
            *holders = Holders::One(one);
        }
        false
    }

    /// The same holders once more, for the other half of a split node.
    pub(super) fn duplicate(&mut self, holders: &Holders) -> Holders {
        match holders {
            Holders::One(one) => Holders::One(*one),
            Holders::Many(id) => {
                let list = self.0[*id].clone();
                Holders::Many(self.0.insert(list))
            }
        }
    }

    /// Bytes of the lists, taking each to be as long as the average one.
    pub(super) fn memory_bytes(&self, holders_in_lists: usize) -> usize {
        self.0.memory_bytes() + holders_in_lists * size_of::<Holder>()
    }
}
