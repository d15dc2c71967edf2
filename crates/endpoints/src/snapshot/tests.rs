//! The arithmetic between two scrapes, and what a snapshot says of models.

use pool::EndpointSpec;
use proptest::prelude::*;

use super::*;
use crate::endpoint::{IN_FLIGHT_UNKNOWN_MIN, Slot};
use crate::ledger::Booking;
use crate::metrics::Lora;

fn entry() -> Entry {
    let spec = EndpointSpec { name: "a".into(), host: "127.0.0.1".into(), port: 1, tls: false };
    Entry { endpoint: Arc::new(Endpoint::new(Slot::new(0), spec)), scraped: None, models: None }
}

fn scraped_entry(at: Duration, waiting: u32, running: u32, in_flight_then: u32) -> Entry {
    let metrics = EngineMetrics { waiting, running, kv_usage_ratio: 0.5, ..EngineMetrics::default() };
    Entry {
        scraped: Some(Arc::new(Scraped { at, metrics, in_flight_then, last_booked: 0, never_shown: 0 })),
        ..entry()
    }
}

fn book(entry: &Entry, requests: u32) -> Vec<Booking> {
    (1..=requests).map(|sequence| Booking::book(&entry.endpoint, 100, sequence.into())).collect()
}

fn listing(entry: Entry, at_s: u64, ids: &[&str]) -> Entry {
    let data: Vec<_> = ids.iter().map(|id| format!(r#"{{"id":"{id}"}}"#)).collect();
    let body = format!(r#"{{"data":[{}]}}"#, data.join(","));
    let list = ModelList::parse(body.as_bytes(), Duration::from_secs(at_s)).unwrap();
    Entry { models: Some(Arc::new(list)), ..entry }
}

#[test]
fn a_load_fits_half_a_cache_line() {
    assert_eq!(size_of::<Load>(), 32);
}

#[test]
fn without_a_scrape_the_load_is_unknown_and_only_ours() {
    let entry = entry();
    let _bookings = book(&entry, 3);
    let expected = Load {
        in_flight: 3,
        waiting: 0,
        prefill_tokens: 300,
        kv_usage_ratio: 0.0,
        last_booked: 3,
        standing: LoadStanding::Unknown,
    };
    assert_eq!(entry.load(Duration::ZERO), expected);
}

#[test]
fn a_scrape_tells_the_load_until_it_is_stale() {
    let at = Duration::from_secs(10);
    let entry = scraped_entry(at, 2, 5, 0);
    let load = entry.load(at + STALE_AFTER);
    assert_eq!((load.in_flight, load.waiting, load.kv_usage_ratio), (7, 2, 0.5));
    assert_eq!(load.standing, LoadStanding::Fresh);
    let load = entry.load(at + STALE_AFTER + Duration::from_nanos(1));
    assert_eq!((load.in_flight, load.waiting, load.kv_usage_ratio), (0, 0, 0.0));
    assert_eq!(load.standing, LoadStanding::Unknown);
}

#[test]
fn others_requests_stay_and_ours_are_counted() {
    // Of 6 on the page 2 were ours; we have 5 by now.
    let entry = scraped_entry(Duration::ZERO, 0, 6, 2);
    let _bookings = book(&entry, 5);
    let load = entry.load(Duration::ZERO);
    assert_eq!((load.in_flight, load.waiting), (9, 0));
}

#[test]
fn a_queue_grows_by_what_we_add_and_shrinks_by_what_ends() {
    let entry = scraped_entry(Duration::ZERO, 4, 8, 6);
    let mut bookings = book(&entry, 9);
    assert_eq!(entry.load(Duration::ZERO).waiting, 7);
    bookings.truncate(1);
    assert_eq!(entry.load(Duration::ZERO).waiting, 0);
    assert_eq!(entry.load(Duration::ZERO).in_flight, 7);
}

#[test]
fn an_endpoint_left_out_says_so_and_one_on_probation_does_not() {
    let entry = scraped_entry(Duration::ZERO, 0, 0, 0);
    entry.endpoint.health.failed(Duration::ZERO);
    entry.endpoint.health.failed(Duration::ZERO);
    assert_eq!(entry.load(Duration::ZERO).standing, LoadStanding::LeftOut);
    assert_eq!(entry.load(Duration::from_millis(500)).standing, LoadStanding::Fresh);
}

proptest! {
    /// Against the formula in numbers that cannot overflow.
    #[test]
    fn loads_follow_the_formula(
        waiting in prop_oneof![Just(0), 0..50_u32, Just(1_000_000_000)],
        running in prop_oneof![0..50_u32, Just(u32::MAX)],
        then in prop_oneof![0..50_u32, Just(u32::MAX)],
        ours in 0..50_u32,
    ) {
        let entry = scraped_entry(Duration::ZERO, waiting, running, then);
        let _bookings = book(&entry, ours);
        let load = entry.load(Duration::ZERO);
        let [w, r, then, ours] = [waiting, running, then, ours].map(i128::from);
        let (most, as_wide) = (i128::from(u32::MAX), |n: u32| i128::from(n));
        let on_page = (w + r).min(most);
        prop_assert_eq!(as_wide(load.in_flight), ((on_page - then).max(0) + ours).min(most));
        let queue = if w == 0 { 0 } else { (w + ours - then).max(0) };
        prop_assert_eq!(as_wide(load.waiting), queue);
    }
}

#[test]
fn read_loads_replaces_what_the_buffer_held() {
    let snapshot = Snapshot::new(vec![entry(), scraped_entry(Duration::ZERO, 1, 1, 0)], 1);
    let mut loads = vec![entry().load(Duration::ZERO); 5];
    snapshot.read_loads(Duration::ZERO, &mut loads);
    let expected: Vec<_> = snapshot.entries.iter().map(|entry| entry.load(Duration::ZERO)).collect();
    assert_eq!(loads, expected);
}

#[test]
fn lora_counts_where_adapters_can_be_loaded() {
    let with_max = |max| {
        let metrics = EngineMetrics { lora: Some(Lora { max, active: vec![] }), ..EngineMetrics::default() };
        let scraped =
            Scraped { at: Duration::ZERO, metrics, in_flight_then: 0, last_booked: 0, never_shown: 0 };
        Snapshot::new(vec![entry(), Entry { scraped: Some(Arc::new(scraped)), ..entry() }], 1)
    };
    assert!(with_max(1).reports_lora);
    assert!(!with_max(0).reports_lora);
    assert!(!Snapshot::new(vec![entry()], 1).reports_lora);
}

#[test]
fn who_serves_a_model_is_known_by_the_lists() {
    let now = Duration::from_secs(5);
    let entries = vec![listing(entry(), 1, &["base", "lora"]), listing(entry(), 2, &["base"]), entry()];
    let snapshot = Snapshot::new(entries, 1);
    let serving = snapshot.serving("lora", now);
    assert_eq!([0, 1, 2, 3].map(|at| serving.lists(at)), [true, false, false, false]);
    assert_eq!([0, 1, 2].map(|at| serving.excludes(at)), [false, true, false]);
    assert!(serving.models_differ && !serving.nobody() && !serving.all_known);
    assert!(snapshot.serving("other", now).nobody());
}

#[test]
fn all_lists_are_known_while_each_is_fresh() {
    let entries = vec![listing(entry(), 1, &["a", "b"]), listing(entry(), 4, &["b", "a"])];
    let snapshot = Snapshot::new(entries, 1);
    let known_at = |now_s| snapshot.serving("a", Duration::from_secs(now_s)).all_known;
    assert!(known_at(11) && !known_at(12));
    assert!(!snapshot.serving("a", Duration::ZERO).models_differ, "order is no difference");
    assert!(!Snapshot::new(vec![], 1).serving("a", Duration::ZERO).all_known, "nobody is there to know");
}

#[test]
fn the_merged_list_has_each_fresh_model_once_as_first_written() {
    let entries = vec![
        listing(entry(), 1, &["old"]),
        listing(entry(), 5, &["b", "a"]),
        listing(entry(), 5, &["a", "c"]),
    ];
    let snapshot = Snapshot::new(entries, 1);
    let raw: Vec<_> = snapshot.models(Duration::from_secs(12)).iter().map(|model| &*model.raw).collect();
    assert_eq!(raw, [r#"{"id":"b"}"#, r#"{"id":"a"}"#, r#"{"id":"c"}"#]);
}

#[test]
fn membership_of_more_than_one_word_of_entries_is_exact() {
    let entries: Vec<_> =
        (0..130).map(|at| listing(entry(), 1, if at % 3 == 0 { &["m"] } else { &["n"] })).collect();
    let snapshot = Snapshot::new(entries, 1);
    let serving = snapshot.serving("m", Duration::from_secs(1));
    assert!((0..130).all(|at| serving.lists(at) == (at % 3 == 0)));
    assert!(!serving.lists(130) && !serving.lists(10_000));
}

fn room(entries: &[Entry], now: Duration) -> (Vec<bool>, Room) {
    let mut out = Vec::new();
    let room = Snapshot::new(entries.to_vec(), 1).read_room(now, &mut out);
    (out, room)
}

#[test]
fn room_is_at_most_five_waiting_and_four_fifths_of_the_cache() {
    let full_cache = |kv_usage_ratio| {
        let metrics = EngineMetrics { kv_usage_ratio, ..EngineMetrics::default() };
        Entry {
            scraped: Some(Arc::new(Scraped {
                at: Duration::ZERO,
                metrics,
                in_flight_then: 0,
                last_booked: 0,
                never_shown: 0,
            })),
            ..entry()
        }
    };
    let waiting = |waiting| scraped_entry(Duration::ZERO, waiting, 9, 0);
    let entries = [waiting(5), waiting(6), full_cache(0.8), full_cache(0.81)];
    let expected = Room { with_room: 2, counted: 4, unknown: 0 };
    assert_eq!(room(&entries, STALE_AFTER), (vec![true, false, true, false], expected));
}

#[test]
fn what_was_booked_since_a_scrape_counts_as_waiting_and_what_ended_makes_room() {
    let idle = scraped_entry(Duration::ZERO, 0, 3, 3);
    let mut bookings = book(&idle, 3 + 4);
    assert_eq!(room(std::slice::from_ref(&idle), Duration::ZERO).0, [true]);
    bookings.extend(book(&idle, 1));
    assert!(
        room(std::slice::from_ref(&idle), Duration::ZERO).1.is_saturated(),
        "no more before the next scrape"
    );
    bookings.truncate(7);
    assert_eq!(room(&[idle], Duration::ZERO).0, [true]);
}

#[test]
fn the_last_place_is_given_by_a_page_and_not_by_what_ended_since() {
    let entry = scraped_entry(Duration::ZERO, 5, 9, 0);
    assert_eq!(room(std::slice::from_ref(&entry), Duration::ZERO).0, [true]);
    let ended = book(&entry, 1);
    drop(ended);
    assert_eq!(room(std::slice::from_ref(&entry), Duration::ZERO).0, [false], "another gateway may take it");
    let last_booked = entry.endpoint.ledger.last_booked();
    let Some(scraped) = &entry.scraped else { panic!("it was scraped") };
    let next = Entry { scraped: Some(Arc::new(Scraped { last_booked, ..(**scraped).clone() })), ..entry };
    assert_eq!(room(&[next], Duration::ZERO).0, [true]);
}

#[test]
fn what_an_engine_has_and_does_not_show_yet_counts_as_waiting() {
    // Two run by its last step, though it has had eight for a while: six wait.
    let lagging = scraped_entry(Duration::ZERO, 0, 2, 8);
    let mut bookings = book(&lagging, 8);
    assert_eq!(room(std::slice::from_ref(&lagging), Duration::ZERO).0, [true], "they are on their way");
    bookings.iter().for_each(Booking::delivered);
    assert_eq!(room(std::slice::from_ref(&lagging), Duration::ZERO).0, [false]);
    bookings[..2].iter_mut().for_each(Booking::first_byte);
    assert_eq!(room(std::slice::from_ref(&lagging), Duration::ZERO).0, [true], "two less are to be shown");
    let Some(scraped) = &lagging.scraped else { panic!("it was scraped") };
    assert!(!scraped.tells_room(8) && scraped.tells_room(7));
    let never_shown =
        Entry { scraped: Some(Arc::new(Scraped { never_shown: 6, ..(**scraped).clone() })), ..lagging };
    bookings.extend(book(&never_shown, 4));
    bookings.iter().for_each(Booking::delivered);
    assert_eq!(room(&[never_shown], Duration::ZERO).0, [true], "what is never shown is not waited for");
}

#[test]
fn an_endpoint_whose_load_is_unknown_is_judged_by_what_we_sent_it() {
    let stale = entry();
    let mut bookings = book(&stale, IN_FLIGHT_UNKNOWN_MIN - 1);
    assert_eq!(room(std::slice::from_ref(&stale), Duration::ZERO).0, [true]);
    bookings.extend(book(&stale, 1));
    let (_, full) = room(std::slice::from_ref(&stale), Duration::ZERO);
    assert_eq!((full.is_saturated(), full.unknown), (true, 1));
    stale.endpoint.had_room_at(40);
    assert!(!room(std::slice::from_ref(&stale), Duration::ZERO).1.is_saturated(), "it had room with 40");
    bookings.extend(book(&stale, 24));
    assert!(room(&[stale], Duration::ZERO).1.is_saturated());
}

#[test]
fn who_is_left_out_has_no_room_unless_all_are() {
    let (out, well) = (scraped_entry(Duration::ZERO, 0, 0, 0), scraped_entry(Duration::ZERO, 9, 0, 0));
    for _ in 0..crate::FAILURES_MAX {
        out.endpoint.health.failed(Duration::ZERO);
    }
    let expected = Room { with_room: 0, counted: 1, unknown: 0 };
    assert_eq!(room(&[out.clone(), well], Duration::ZERO), (vec![false, false], expected));
    assert_eq!(room(&[out], Duration::ZERO).0, [true]);
    assert!(!room(&[], Duration::ZERO).1.is_saturated(), "nobody is there: that is not saturation");
}
