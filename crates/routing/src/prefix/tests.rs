//! The index against a slow and obvious model, after every step of random histories.

use std::collections::HashMap;

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

/// Which blocks a record added.
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
            let oldest =
                self.touched.iter().min_by_key(|(block, record)| (**record, usize::MAX - block.len()));
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
    ]
}

fn hashes(prompt: &[u8]) -> Vec<u64> {
    let policy = pool::PrefixCachePolicy { block_size_bytes: 1, ..Default::default() };
    let mut hashes = Vec::new();
    crate::block_hashes(prompt, 7, &policy, &mut hashes);
    hashes
}

fn endpoint_ids(count: usize) -> Vec<EndpointId> {
    let spec = EndpointSpec { name: "a".into(), host: "127.0.0.1".into(), port: 1, tls: false };
    (0..count).map(|_| Endpoint::new(Slot::new(0), spec.clone()).id).collect()
}

/// The index, the model, and the requests under way.
struct Twins {
    index: PrefixIndex,
    model: [ModelHolding; SLOTS],
    capacity: usize,
    owners: Vec<EndpointId>,
    under_way: Vec<(usize, Receipt, ModelReceipt, Vec<u8>)>,
}

impl Twins {
    fn new(capacity: usize) -> Self {
        Self {
            index: PrefixIndex::new(capacity),
            model: Default::default(),
            capacity,
            owners: endpoint_ids(2 * SLOTS),
            under_way: Vec::new(),
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Record { slot, owner, prompt } => {
                let owner = self.owners[slot * 2 + owner];
                let receipt = self.index.record(Slot::new(slot as u32), owner, &hashes(&prompt));
                let twin = self.model[slot].record(owner, &prompt, self.capacity);
                self.under_way.push((slot, receipt, twin, prompt));
            }
            Action::Unrecord { which } if !self.under_way.is_empty() => {
                let which = which % self.under_way.len();
                let (slot, receipt, twin, prompt) = self.under_way.swap_remove(which);
                self.index.unrecord(&receipt, &hashes(&prompt));
                self.model[slot].unrecord(&twin);
            }
            Action::Unrecord { .. } => {}
            Action::SetCapacity(capacity) => {
                self.capacity = capacity;
                self.index.set_capacity(capacity);
                while self.index.evict_step(2) {}
                self.model.iter_mut().for_each(|holding| holding.evict(capacity));
            }
            Action::Forget { slot } => {
                self.index.forget(Slot::new(slot as u32));
                while self.index.evict_step(2) {}
                self.model[slot].owner = None;
                self.model[slot].touched.clear();
            }
        }
    }

    fn assert_same(&self, prompt: &[u8]) {
        let mut matched = Vec::new();
        self.index.matches(&hashes(prompt), &mut matched);
        matched.resize(SLOTS, 0);
        for (slot, holding) in self.model.iter().enumerate() {
            let number = Slot::new(slot as u32);
            assert_eq!(self.index.owner(number), holding.owner, "owner of slot {slot}");
            assert_eq!(self.index.blocks_held_by(number), holding.touched.len(), "blocks of slot {slot}");
            assert_eq!(matched[slot] as usize, holding.matched(prompt), "match of slot {slot}");
        }
    }
}

impl PrefixIndex {
    fn assert_invariants(&self) {
        let forest = &self.forest;
        let (mut nodes, mut run_blocks, mut holdings) = (0, 0, 0);
        let mut held: HashMap<usize, usize> = HashMap::new();
        for (id, node) in forest.nodes.cells() {
            let holders = forest.holders(id);
            assert_eq!(holders.is_empty(), node.len() == 0, "a node without holders does not exist");
            if holders.is_empty() {
                continue;
            }
            nodes += 1;
            run_blocks += node.len();
            holdings += holders.len();
            assert!(holders.is_sorted_by(|a, b| a.slot() < b.slot()));
            assert!(holders.len() > 1 || matches!(node.holders, node::Holders::One(_)));
            let found = forest.first_hashes.find(node.first(), |&other| other == id);
            assert_eq!(found, Some(id), "found under its first hash");
            for holder in holders {
                *held.entry(holder.slot()).or_default() += node.len();
                if node.parent != NO_NODE {
                    assert!(forest.stamp_of(node.parent, holder.slot()).is_some(), "prefix-closed");
                }
                self.assert_reachable(id, *holder);
            }
        }
        assert_eq!((nodes, holdings, run_blocks), (forest.nodes.len(), forest.holdings, forest.blocks));
        assert_eq!(forest.first_hashes.len(), nodes);
        for (slot, holding) in self.holdings.iter().enumerate() {
            assert_eq!(holding.blocks, held.remove(&slot).unwrap_or_default());
            assert!(holding.queue.iter().is_sorted_by(|a, b| a.stamp < b.stamp));
        }
        assert!(held.is_empty());
    }

    /// Eviction will come to this run: the entry of its stamp names it, or a run further down the same segment.
    fn assert_reachable(&self, node: NodeId, holder: Holder) {
        let queue = &self.holdings[holder.slot()].queue;
        let entry =
            queue.binary_search_by_key(&holder.stamp, |touch| touch.stamp).expect("an entry for the stamp");
        let mut climber = queue[entry].node;
        while climber != node {
            assert_eq!(self.forest.stamp_of(climber, holder.slot()), Some(holder.stamp), "one segment");
            climber = self.forest.nodes[climber].parent;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn index_says_what_the_model_says_after_every_step(
        capacity in 1..40_usize,
        history in prop::collection::vec((actions(), prompts()), 1..80),
    ) {
        let mut twins = Twins::new(capacity);
        for (action, probe) in history {
            twins.apply(action);
            twins.assert_same(&probe);
            twins.index.assert_invariants();
        }
    }

    /// Hashes that are no chain at all: what a collision would look like, only everywhere.
    #[test]
    fn colliding_hashes_neither_panic_nor_lose_count(
        history in prop::collection::vec((0..3_u32, prop::collection::vec(0..4_u64, 0..12), any::<bool>()), 1..60),
    ) {
        let owner = endpoint_ids(1)[0];
        let mut index = PrefixIndex::new(10);
        let mut matched = Vec::new();
        for (slot, blocks, take_back) in history {
            let receipt = index.record(Slot::new(slot), owner, &blocks);
            if take_back {
                index.unrecord(&receipt, &blocks);
            }
            index.matches(&blocks, &mut matched);
        }
        index.retain(|_, _| false);
        while index.evict_step(100) {}
    }
}

#[test]
fn a_prompt_longer_than_the_capacity_keeps_its_first_blocks() {
    let owner = endpoint_ids(1)[0];
    let mut index = PrefixIndex::new(5);
    let prompt = hashes(&[0, 1, 2, 3, 4, 5, 6, 7]);
    let _ = index.record(Slot::new(0), owner, &prompt);
    let mut matched = Vec::new();
    index.matches(&prompt, &mut matched);
    assert_eq!(matched, [5]);
    assert_eq!(index.blocks_held(), 5);
}

#[test]
fn an_emptied_index_holds_on_to_no_node() {
    let owner = endpoint_ids(1)[0];
    let mut index = PrefixIndex::new(1000);
    for prompt in 0..100_u8 {
        let _ = index.record(Slot::new(u32::from(prompt % 7)), owner, &hashes(&[1, 1, 1, prompt, prompt]));
    }
    index.retain(|_, _| false);
    while index.evict_step(3) {}
    assert_eq!(index.blocks_held(), 0);
    assert_eq!((index.forest.nodes.len(), index.forest.holdings, index.forest.blocks), (0, 0, 0));
}

#[test]
fn queues_stay_short_though_the_same_prompts_are_touched_without_end() {
    let owner = endpoint_ids(1)[0];
    let mut index = PrefixIndex::new(1000);
    for round in 0..100_000_u32 {
        let _ = index.record(Slot::new(0), owner, &hashes(&[(round % 10) as u8, 1]));
    }
    assert!(index.holdings[0].queue.capacity() <= 64, "{}", index.holdings[0].queue.capacity());
    index.assert_invariants();
}

#[test]
fn stamps_that_ran_out_start_afresh() {
    let owner = endpoint_ids(1)[0];
    let mut index = PrefixIndex::new(1000);
    let (old, new) = (hashes(&[1, 2, 3]), hashes(&[4, 5]));
    let _ = index.record(Slot::new(0), owner, &old);
    index.holdings[0].stamp = u32::MAX;
    let _ = index.record(Slot::new(0), owner, &new);
    assert_eq!(index.blocks_held(), 2);
    assert_eq!(index.holdings[0].stamp, 1);
    index.assert_invariants();
}
