//! Prefix affinity: when it holds, and when it gives way.

use std::collections::VecDeque;
use std::sync::Arc;

use endpoints::{Endpoint, Load, Slot};
use pool::{PrefixCachePolicy, RoutingStrategy};
use routing::{PickReason, PrefixIndex, Request, Router};

use crate::world::{Service, blocks, by_load, by_prefix, idle, picked, policy, prompt, snapshot, spec};

/// An index in which the snapshot's entry `holder` holds the blocks.
fn index_of(snapshot: &endpoints::Snapshot, holder: usize, blocks: &[u64]) -> PrefixIndex {
    let endpoint = &snapshot.entries[holder].endpoint;
    let mut index = PrefixIndex::new(1000);
    let _ = index.record(endpoint.slot, endpoint.id, blocks);
    index
}

#[test]
fn a_long_prefix_goes_back_to_its_holder_though_others_are_a_little_less_loaded() {
    let snapshot = snapshot(4);
    let held = blocks(&prompt("document", 100));
    let index = index_of(&snapshot, 2, &held);
    let mut loads = [idle(); 4];
    loads[2] = Load { in_flight: 3, last_booked: 9, ..idle() };
    let request = Request { blocks: &held, prompt_tokens: 1700, ..Request::default() };
    let decision = by_prefix(&snapshot, &loads, &index, &request);
    assert_eq!(picked(&decision), 2);
    assert_eq!(decision.reason, PickReason::Prefix);
    assert_eq!(decision.ranked[0].matched_blocks, 100);
    assert_eq!(decision.ranked[0].cost.uncached, 1700 - 100 * 64 / 4);
    assert_eq!(decision.ranked[1].cost.uncached, 1700);
    assert_ne!(picked(&by_load(&snapshot, &loads, &request)), 2, "DEFAULT looks at load alone");
}

#[test]
fn a_hot_holder_gives_way_when_waiting_there_costs_more_than_computing_again() {
    let snapshot = snapshot(4);
    let held = blocks(&prompt("document", 100));
    let index = index_of(&snapshot, 2, &held);
    let request = Request { blocks: &held, prompt_tokens: 1700, ..Request::default() };
    let pick_when = |holder: Load| {
        let loads = [idle(), idle(), holder, idle()];
        picked(&by_prefix(&snapshot, &loads, &index, &request))
    };
    assert_eq!(pick_when(Load { prefill_tokens: 1500, ..idle() }), 2);
    assert_ne!(pick_when(Load { prefill_tokens: 1700, ..idle() }), 2);
    assert_ne!(pick_when(Load { in_flight: 30, ..idle() }), 2);
    assert_ne!(pick_when(Load { in_flight: 5, waiting: 5, ..idle() }), 2);
    assert_ne!(pick_when(Load { kv_usage_ratio: 0.95, ..idle() }), 2);
}

#[test]
fn a_short_shared_head_makes_no_hot_spot() {
    let mut service = Service::new(8, RoutingStrategy::PrefixCache, 1);
    let (mut counts, mut in_flight) = ([0; 8], VecDeque::new());
    for number in 0..800 {
        // Four blocks that all requests share, then something of their own.
        let text = prompt("You are a helpful assistant.", 4) + &prompt(&number.to_string(), 10);
        let (endpoint, booking) = service.send(&text);
        counts[endpoint] += 1;
        in_flight.push_back(booking);
        if in_flight.len() > 16 {
            in_flight.pop_front();
        }
    }
    assert!(counts.iter().all(|count| (95..=105).contains(count)), "{counts:?}");
}

#[test]
fn what_a_slot_held_for_another_endpoint_counts_for_nothing() {
    let before = snapshot(2);
    let held = blocks(&prompt("document", 50));
    let index = index_of(&before, 1, &held);
    let after = snapshot(2);
    let request = Request { blocks: &held, prompt_tokens: 800, ..Request::default() };
    let decision = by_prefix(&after, &[idle(), idle()], &index, &request);
    assert!(decision.ranked.iter().all(|ranked| ranked.matched_blocks == 0));
    assert_eq!(decision.reason, PickReason::Load);
}

#[test]
fn a_record_taken_back_attracts_nobody() {
    let snapshot = snapshot(2);
    let endpoint = &snapshot.entries[0].endpoint;
    let mut router = Router::new(&PrefixCachePolicy::default(), 1);
    let text = blocks(&prompt("document", 50));
    let receipt = router.record(endpoint, &text);
    assert_eq!(router.index().blocks_held(), 50);
    router.unrecord(&receipt, &text);
    assert_eq!(router.index().blocks_held(), 0);
}

#[test]
fn another_block_size_empties_the_index_and_hands_the_old_one_back() {
    let endpoint = Endpoint::new(Slot::new(0), spec(0));
    let mut router = Router::new(&PrefixCachePolicy::default(), 1);
    let text = blocks(&prompt("document", 50));
    let receipt = router.record(&endpoint, &text);
    let larger = PrefixCachePolicy { lru_capacity_blocks: 60_000, ..PrefixCachePolicy::default() };
    assert!(router.configure(&larger).is_none(), "a larger capacity keeps all");
    assert_eq!(router.index().blocks_held(), 50);
    let old = router.configure(&PrefixCachePolicy { block_size_bytes: 128, ..larger });
    assert_eq!(old.map(|old| old.blocks_held()), Some(50));
    assert_eq!(router.index().blocks_held(), 0);
    let _ = router.record(&endpoint, &[1, 2, 3]);
    router.unrecord(&receipt, &text);
    assert_eq!(router.index().blocks_held(), 3, "an old receipt takes nothing from the new index");
}

#[test]
fn a_lower_capacity_evicts_in_steps_and_a_departed_endpoint_is_forgotten() {
    let snapshot = snapshot(2);
    let mut router = Router::new(&PrefixCachePolicy::default(), 1);
    for entry in &snapshot.entries {
        let _ = router.record(&entry.endpoint, &blocks(&prompt("first", 30)));
        let _ = router.record(&entry.endpoint, &blocks(&prompt("second", 30)));
    }
    let small = PrefixCachePolicy { lru_capacity_blocks: 40, ..PrefixCachePolicy::default() };
    assert!(router.configure(&small).is_none());
    while router.evict_step(1) {}
    assert_eq!(router.index().blocks_held(), 80);

    let one_left = endpoints::Snapshot::new(snapshot.entries[..1].to_vec(), 2);
    router.retain(&one_left);
    while router.evict_step(1) {}
    assert_eq!(router.index().blocks_held(), 40);
    assert_eq!(router.index().owner(Slot::new(0)), Some(snapshot.entries[0].endpoint.id));
    assert_eq!(router.index().owner(Slot::new(1)), None);
}

#[test]
fn endpoints_keep_their_prefixes_when_the_order_of_entries_changes() {
    let snapshot = snapshot(3);
    let held = blocks(&prompt("document", 50));
    let index = index_of(&snapshot, 2, &held);
    let mut entries = snapshot.entries.to_vec();
    entries.reverse();
    let reversed = endpoints::Snapshot::new(entries, 2);
    let request = Request { blocks: &held, prompt_tokens: 800, ..Request::default() };
    let decision = by_prefix(&reversed, &[idle(); 3], &index, &request);
    assert_eq!(picked(&decision), 0);
    assert!(Arc::ptr_eq(&reversed.entries[0].endpoint, &snapshot.entries[2].endpoint));
}

#[test]
fn a_match_longer_than_the_estimated_prompt_costs_nothing_rather_than_less() {
    let snapshot = snapshot(2);
    let held = blocks(&prompt("document", 50));
    let index = index_of(&snapshot, 1, &held);
    let request = Request { blocks: &held, prompt_tokens: 10, ..Request::default() };
    let decision = by_prefix(&snapshot, &[idle(); 2], &index, &request);
    let holder = decision.ranked.iter().find(|ranked| ranked.entry == 1).unwrap();
    assert_eq!(holder.cost.total(), 0);
    assert_eq!(policy(RoutingStrategy::PrefixCache).prefix_cache.block_size_bytes, 64);
}

#[test]
fn a_match_that_only_the_limit_ends_counts_for_more_than_its_length() {
    let snapshot = snapshot(2);
    let uncached = |matched_blocks: usize| {
        let held = blocks(&prompt("document", matched_blocks));
        let index = index_of(&snapshot, 1, &held);
        let request = Request { blocks: &held, prompt_tokens: 10_000, ..Request::default() };
        let decision = by_prefix(&snapshot, &[idle(); 2], &index, &request);
        decision.ranked[0].cost.uncached
    };
    assert_eq!(uncached(127), 10_000 - 127 * 16);
    assert_eq!(uncached(128), 10_000 - 3 * 128 * 16);
}
