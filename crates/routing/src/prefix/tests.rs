//! The index against a slow and obvious model, after every step of random histories.

use std::collections::{HashMap, HashSet};

use pool::EndpointSpec;
use proptest::prelude::*;

use super::*;
use endpoints::Endpoint;

const SLOTS: usize = 3;

/// One endpoint as the contract has it: each block with the record that last touched it. A block is named by the
/// whole prompt up to its end.
#[derive(Debug, Default)]
struct ModelHolding {
    owner: Option<EndpointId>,
    touched: HashMap<Vec<u8>, u32>,
    records: u32,
}

/// What the contract says of all endpoints, written down without any cleverness.
#[derive(Debug)]
struct Model {
    holdings: [ModelHolding; SLOTS],
    capacity: usize,
}

#[derive(Debug)]
struct ModelReceipt {
    record: u32,
    added: Vec<Vec<u8>>,
}

impl ModelHolding {
    fn matched(&self, prompt: &[u8]) -> usize {
        (1..=prompt.len()).take_while(|&end| self.touched.contains_key(&prompt[..end])).count()
    }

    fn record(&mut self, owner: EndpointId, prompt: &[u8], capacity: usize) -> ModelReceipt {
        if self.owner != Some(owner) {
            self.touched.clear();
        }
        self.owner = Some(owner);
        self.records += 1;
        let mut added = Vec::new();
        for end in 1..=prompt.len().min(capacity) {
            if self.touched.insert(prompt[..end].to_vec(), self.records).is_none() {
                added.push(prompt[..end].to_vec());
            }
        }
        self.evict(capacity);
        ModelReceipt { record: self.records, added }
    }

    fn unrecord(&mut self, receipt: &ModelReceipt) {
        for block in &receipt.added {
            if self.touched.get(block) == Some(&receipt.record) {
                self.touched.remove(block);
            }
        }
    }

    /// Least recent record first, within one the deepest block first.
    fn evict(&mut self, capacity: usize) {
        while self.touched.len() > capacity {
            let oldest = self.touched.iter().min_by_key(|(block, record)| (**record, usize::MAX - block.len()));
            let oldest = oldest.unwrap().0.clone();
            self.touched.remove(&oldest);
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Record { slot: usize, owner: usize, prompt: Vec<u8> },
    Unrecord { which: usize },
    SetCapacity(usize),
    Forget { slot: usize },
    Clear,
}

/// Prompts over two letters, so that they share, part and meet again all the time.
fn prompts() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::collection::vec(0..2_u8, 0..8),
        1 => prop::collection::vec(0..2_u8, 0..24),
        1 => (0..2_u8, 1..24_usize).prop_map(|(letter, len)| vec![letter; len]),
    ]
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        30 => (0..SLOTS, prop_oneof![9 => Just(0_usize), 1 => Just(1_usize)], prompts())
            .prop_map(|(slot, owner, prompt)| Action::Record { slot, owner, prompt }),
        8 => (0..12_usize).prop_map(|which| Action::Unrecord { which }),
        2 => (1..40_usize).prop_map(Action::SetCapacity),
        1 => (0..SLOTS).prop_map(|slot| Action::Forget { slot }),
        1 => Just(Action::Clear),
    ]
}

fn hashes(prompt: &[u8]) -> Vec<u64> {
    let policy = pool::PrefixCachePolicy { block_size_bytes: 1, ..Default::default() };
    let mut hashes = Vec::new();
    crate::block_hashes(prompt, 7, &policy, &mut hashes);
    hashes
}

fn endpoint_ids(count: usize) -> Vec<EndpointId> {
    let spec = EndpointSpec { name: "a".into(), host: "127.0.0.1".into(), port: 1 };
    (0..count).map(|_| Endpoint::new(Slot::new(0), spec.clone()).id).collect()
}
