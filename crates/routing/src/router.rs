//! One pool's routing state: its prefix index, buffers, and the sequence of seeds.

use std::time::Duration;

use endpoints::{Endpoint, Load, Snapshot};
use pool::{PoolPolicy, PrefixCachePolicy};

use crate::decision::{Decision, Known, Request, Scratch, decide};
use crate::prefix::{PrefixIndex, Receipt};

/// Picks, and remembers what was picked.
///
/// Keep one for each pool under one short lock, and book within it: then a burst on several threads spreads as evenly
/// as on one, because each pick sees the bookings of all before it.
#[derive(Debug)]
pub struct Router {
    index: PrefixIndex,
    block_size_bytes: u32,
    seed: u64,
    loads: Vec<Load>,
    scratch: Scratch,
}

impl Router {
    /// A router with an empty index. `seed` begins the sequence by which ties are broken; different seeds in different
    /// processes keep them from choosing alike.
    #[must_use]
    pub fn new(policy: &PrefixCachePolicy, seed: u64) -> Self {
        Self {
            index: PrefixIndex::new(policy.lru_capacity_blocks as usize),
            block_size_bytes: policy.block_size_bytes,
            seed,
            loads: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Ranks the endpoints by their load at `now` (time since the program's epoch) as [`decide`] does.
    #[must_use]
    pub fn pick(
        &mut self,
        request: &Request<'_>,
        snapshot: &Snapshot,
        policy: &PoolPolicy,
        now: Duration,
        fallbacks_max: usize,
    ) -> Option<Decision> {
        snapshot.read_loads(now, &mut self.loads);
        let known = Known { snapshot, loads: &self.loads, policy, index: &self.index };
        self.seed = self.seed.wrapping_add(1);
        decide(request, &known, fallbacks_max, self.seed, &mut self.scratch)
    }

    /// Remembers that `endpoint` was sent a prompt of `blocks`; see [`PrefixIndex::record`].
    pub fn record(&mut self, endpoint: &Endpoint, blocks: &[u64]) -> Receipt {
        self.index.record(endpoint.slot, endpoint.id, blocks)
    }

    /// Takes a record back, `blocks` being the same; see [`PrefixIndex::unrecord`].
    pub fn unrecord(&mut self, receipt: &Receipt, blocks: &[u64]) {
        self.index.unrecord(receipt, blocks);
    }

    /// Puts a policy in force. Another block size empties the index, and the old one is handed back so that it is
    /// dropped outside the caller's lock. After a lower capacity call [`evict_step`](Self::evict_step) until it is done.
    #[must_use = "drop the old index outside the lock: that can take milliseconds"]
    pub fn configure(&mut self, policy: &PrefixCachePolicy) -> Option<PrefixIndex> {
        let capacity_blocks = policy.lru_capacity_blocks as usize;
        self.index.set_capacity(capacity_blocks);
        let emptied = self.block_size_bytes != policy.block_size_bytes;
        self.block_size_bytes = policy.block_size_bytes;
        emptied.then(|| std::mem::replace(&mut self.index, PrefixIndex::new(capacity_blocks)))
    }

    /// Forgets endpoints that are no longer in the snapshot; follow with [`evict_step`](Self::evict_step).
    pub fn retain(&mut self, snapshot: &Snapshot) {
        let mut members = vec![None; snapshot.entries.len()];
        for endpoint in snapshot.entries.iter().map(|entry| &entry.endpoint) {
            let slot = endpoint.slot.index();
            if slot >= members.len() {
                members.resize(slot + 1, None);
            }
            members[slot] = Some(endpoint.id);
        }
        self.index.retain(|slot, owner| members.get(slot.index()) == Some(&Some(owner)));
    }

    /// See [`PrefixIndex::evict_step`].
    pub fn evict_step(&mut self, steps_max: usize) -> bool {
        self.index.evict_step(steps_max)
    }

    /// The prefix index, to look at.
    #[must_use]
    pub fn index(&self) -> &PrefixIndex {
        &self.index
    }
}
