//! The ranking against an obvious one: all candidates, sorted.

use endpoints::{Load, LoadStanding};
use pool::RoutingStrategy;
use proptest::prelude::*;
use routing::{Known, PickReason, PrefixIndex, Request, Scratch, decide};

use crate::world::{idle, policy, snapshot};

fn loads() -> impl Strategy<Value = Vec<Load>> {
    let standing = prop_oneof![
        8 => Just(LoadStanding::Fresh),
        1 => Just(LoadStanding::Unknown),
        1 => Just(LoadStanding::LeftOut),
    ];
    // Few values, so that ties are common.
    let load = (0..3_u32, 0..2_u32, prop_oneof![Just(0), 0..200_u32], 0..4_u64, standing).prop_map(
        |(in_flight, waiting, prefill_tokens, last_booked, standing)| Load {
            in_flight,
            waiting,
            prefill_tokens,
            last_booked,
            standing,
            ..idle()
        },
    );
    prop::collection::vec(load, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn ranking_is_that_of_sorting_all_candidates(
        loads in loads(),
        subset in prop::option::of(prop::collection::vec(any::<bool>(), 0..20)),
        held in prop::collection::vec((0..20_usize, 0..30_usize), 0..6),
        fallbacks_max in 0..9_usize,
        seed: u64,
    ) {
        let snapshot = snapshot(loads.len());
        let blocks: Vec<u64> = (1..30).collect();
        let mut index = PrefixIndex::new(1000);
        for (holder, depth) in held {
            if let Some(entry) = snapshot.entries.get(holder) {
                let _ = index.record(entry.endpoint.slot, entry.endpoint.id, &blocks[..depth.min(29)]);
            }
        }
        let policy = policy(RoutingStrategy::PrefixCache);
        let known = Known { snapshot: &snapshot, loads: &loads, policy: &policy, index: &index };
        let request = Request { blocks: &blocks, prompt_tokens: 480, subset: subset.as_deref(), ..Request::default() };
        let mut scratch = Scratch::default();
        let all = decide(&request, &known, usize::MAX, seed, &mut scratch);
        let some = decide(&request, &known, fallbacks_max, seed, &mut scratch);
        prop_assert_eq!(&some, &decide(&request, &known, fallbacks_max, seed, &mut Scratch::default()), "pure");

        // Who may be picked.
        let allowed = |entry: usize| subset.as_ref().is_none_or(|subset| subset.get(entry) == Some(&true));
        let standing = |left_out: bool| -> Vec<usize> {
            let is = |entry: &usize| (loads[*entry].standing == LoadStanding::LeftOut) == left_out;
            (0..loads.len()).filter(is).filter(|&entry| allowed(entry)).collect()
        };
        let mut candidates = standing(false);
        if candidates.is_empty() {
            candidates = standing(true);
        }
        let (Some(all), Some(some)) = (all, some) else {
            prop_assert!(candidates.is_empty());
            return Ok(());
        };
        prop_assert_eq!(all.candidates as usize, candidates.len());
        let mut ranked: Vec<usize> = all.ranked.iter().map(|ranked| ranked.entry as usize).collect();

        // In which order: by cost, within 64 tokens of the cheapest by booking.
        let cheapest = all.ranked.iter().map(|ranked| ranked.cost.total()).min().unwrap_or(0);
        let key = |ranked: &routing::Ranked| {
            let total = ranked.cost.total();
            (if total <= cheapest + 64 { cheapest } else { total }, ranked.load.last_booked)
        };
        prop_assert!(all.ranked.is_sorted_by_key(key));
        prop_assert_eq!(&all.ranked[..some.ranked.len()], &some.ranked[..], "fewer fallbacks, the same order");
        prop_assert_eq!(some.ranked.len(), candidates.len().min(fallbacks_max + 1));
        prop_assert_eq!(candidates.len() == 1, all.reason == PickReason::Only);
        for ranked in &all.ranked {
            prop_assert_eq!(ranked.cost.uncached, 480 - u64::from(ranked.matched_blocks) * 16);
        }
        ranked.sort_unstable();
        prop_assert_eq!(ranked, candidates, "each candidate once, and nobody else");
    }
}

#[test]
fn without_endpoints_there_is_no_decision() {
    let snapshot = snapshot(0);
    let (policy, index) = (policy(RoutingStrategy::Default), PrefixIndex::new(1));
    let known = Known { snapshot: &snapshot, loads: &[], policy: &policy, index: &index };
    assert_eq!(decide(&Request::default(), &known, 2, 0, &mut Scratch::default()), None);
}
