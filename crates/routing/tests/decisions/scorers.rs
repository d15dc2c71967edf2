//! Load, LoRA adapters, unknown and left-out endpoints, filters.

use std::sync::Arc;
use std::time::Duration;

use endpoints::{Load, LoadStanding, Lora, ModelList, ServedModel, Snapshot};
use routing::{PickReason, Request};

use crate::world::{NOW, by_load, entry, idle, picked, snapshot};

fn order(loads: &[Load]) -> Vec<usize> {
    let decision = by_load(&snapshot(loads.len()), loads, &Request::default());
    decision.ranked.iter().map(|ranked| ranked.entry as usize).collect()
}

#[test]
fn each_measure_of_load_counts_on_its_own() {
    for loaded in [
        Load { in_flight: 1, ..idle() },
        Load { waiting: 1, ..idle() },
        Load { prefill_tokens: 100, ..idle() },
        Load { kv_usage_ratio: 0.5, ..idle() },
    ] {
        assert_eq!(order(&[loaded, idle()]), [1, 0], "{loaded:?}");
        assert_eq!(order(&[idle(), loaded]), [0, 1], "{loaded:?}");
    }
}

#[test]
fn a_waiting_request_weighs_more_than_a_running_one_and_a_nearly_full_cache_more_than_both() {
    let running = Load { in_flight: 2, ..idle() };
    let waiting = Load { in_flight: 2, waiting: 1, ..idle() };
    let full = Load { in_flight: 2, kv_usage_ratio: 0.95, ..idle() };
    assert_eq!(order(&[full, waiting, running]), [2, 1, 0]);
}

#[test]
fn an_unknown_load_is_never_taken_for_the_emptiest() {
    let unknown = Load { standing: LoadStanding::Unknown, ..idle() };
    let busy = Load { in_flight: 20, waiting: 5, kv_usage_ratio: 0.9, prefill_tokens: 0, ..idle() };
    assert_eq!(order(&[unknown, busy]), [1, 0]);
    assert_eq!(order(&[idle(), unknown, busy]), [0, 2, 1], "nor for better than the most loaded");
}

#[test]
fn where_no_load_is_known_our_own_bookings_decide() {
    let unknown = |in_flight| Load { standing: LoadStanding::Unknown, in_flight, ..idle() };
    assert_eq!(order(&[unknown(3), unknown(1), unknown(2)]), [1, 2, 0]);
}

#[test]
fn an_unknown_load_that_we_know_to_be_heavy_stays_heavy() {
    let unknown = Load { standing: LoadStanding::Unknown, in_flight: 50, ..idle() };
    let known = Load { in_flight: 20, ..idle() };
    assert_eq!(order(&[unknown, known]), [1, 0]);
}

#[test]
fn left_out_endpoints_are_candidates_only_when_nobody_else_is() {
    let left_out = Load { standing: LoadStanding::LeftOut, ..idle() };
    let busy = Load { in_flight: 100, ..idle() };
    assert_eq!(order(&[left_out, busy, left_out]), [1]);
    let busy_and_out = Load { standing: LoadStanding::LeftOut, ..busy };
    assert_eq!(order(&[busy_and_out, left_out]), [1, 0]);
}

#[test]
fn what_is_no_number_counts_as_full_and_the_largest_numbers_overflow_nothing() {
    let nan = Load { kv_usage_ratio: f32::NAN, ..idle() };
    let nearly_full = Load { kv_usage_ratio: 0.99, ..idle() };
    assert_eq!(order(&[nan, nearly_full]), [1, 0]);
    let huge = Load {
        in_flight: u32::MAX,
        waiting: u32::MAX,
        prefill_tokens: u32::MAX,
        kv_usage_ratio: f32::INFINITY,
        ..idle()
    };
    let unknown = Load { standing: LoadStanding::Unknown, ..huge };
    assert_eq!(order(&[unknown, huge, idle()]), [2, 1, 0]);
    assert_eq!(order(&[Load { standing: LoadStanding::Unknown, ..nan }, idle()]), [1, 0]);
    assert_eq!(order(&[Load { kv_usage_ratio: f32::NEG_INFINITY, ..idle() }, nearly_full]), [0, 1]);
}

fn lora(max: u32, active: &[&str]) -> Option<Lora> {
    Some(Lora { max, active: active.iter().map(|name| (*name).into()).collect() })
}

#[test]
fn an_active_adapter_is_preferred_to_a_free_place_and_that_to_none() {
    let entries =
        vec![entry(0, lora(1, &["other"])), entry(1, lora(2, &["other"])), entry(2, lora(1, &["mine"]))];
    let snapshot = Snapshot::new(entries, 1);
    let request = Request { model: Some("mine"), ..Request::default() };
    let decision = by_load(&snapshot, &[idle(); 3], &request);
    let order: Vec<u32> = decision.ranked.iter().map(|ranked| ranked.entry).collect();
    assert_eq!(order, [2, 1, 0]);
    assert_eq!(decision.reason, PickReason::Adapter);

    let base = Request { model: Some("base"), ..Request::default() };
    let decision = by_load(&snapshot, &[idle(); 3], &base);
    assert!(decision.ranked.iter().all(|ranked| ranked.cost.adapter == 0), "the base model is no adapter");
    assert_eq!(decision.reason, PickReason::Load);
}

#[test]
fn an_adapter_does_not_outweigh_a_long_queue() {
    let snapshot = Snapshot::new(vec![entry(0, lora(4, &["mine"])), entry(1, lora(4, &[]))], 1);
    let request = Request { model: Some("mine"), ..Request::default() };
    let busy = Load { in_flight: 40, waiting: 10, ..idle() };
    assert_eq!(picked(&by_load(&snapshot, &[busy, idle()], &request)), 1);
}

#[test]
fn only_those_who_list_the_model_are_candidates_unless_nobody_does() {
    let list = |models: &[&str]| {
        let served = |id: &&str| ServedModel { id: (*id).into(), parent: None, raw: "{}".into() };
        Some(Arc::new(ModelList { at: NOW, models: models.iter().map(served).collect() }))
    };
    let mut entries: Vec<_> = (0..3).map(|number| entry(number, None)).collect();
    entries[0].models = list(&["base"]);
    entries[1].models = list(&["base", "mine"]);
    let snapshot = Snapshot::new(entries, 1);
    let candidates = |model| {
        let request = Request {
            model: Some(model),
            serving: Some(snapshot.serving(model, NOW + Duration::from_millis(1))),
            ..Request::default()
        };
        by_load(&snapshot, &[idle(); 3], &request).candidates
    };
    assert_eq!(candidates("base"), 3);
    assert_eq!(candidates("mine"), 2, "the one that lists it and the one whose list never came");
    assert_eq!(candidates("nobody's"), 3);
}

#[test]
fn a_subset_is_the_whole_field() {
    let subset = [false, true, false];
    let request = Request { subset: Some(&subset), ..Request::default() };
    let loads = [idle(), Load { in_flight: 9, ..idle() }, idle()];
    let decision = by_load(&snapshot(3), &loads, &request);
    assert_eq!((picked(&decision), decision.candidates, decision.reason), (1, 1, PickReason::Only));
    let short = [true];
    let request = Request { subset: Some(&short), ..Request::default() };
    assert_eq!(by_load(&snapshot(3), &loads, &request).candidates, 1, "past its end nobody may be picked");
}
