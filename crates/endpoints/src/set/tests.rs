//! Identity, slots, and what is published when.

use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::*;
use crate::metrics::EngineMetrics;

fn spec(name: &str, port: u16) -> EndpointSpec {
    EndpointSpec { name: name.into(), host: "127.0.0.1".into(), port, tls: false }
}

fn specs(ports: impl IntoIterator<Item = u16>) -> Vec<EndpointSpec> {
    ports.into_iter().map(|port| spec("a", port)).collect()
}

fn set_of(ports: impl IntoIterator<Item = u16>) -> EndpointSet {
    let set = EndpointSet::new();
    set.reconcile(&specs(ports));
    set
}

fn ports(set: &EndpointSet) -> Vec<u16> {
    set.snapshot().entries.iter().map(|entry| entry.endpoint.spec.port).collect()
}

fn endpoint(set: &EndpointSet, at: usize) -> Arc<Endpoint> {
    Arc::clone(&set.snapshot().entries[at].endpoint)
}

fn scraped(waiting: u32) -> Option<Arc<Scraped>> {
    let metrics = EngineMetrics { waiting, ..EngineMetrics::default() };
    Some(Arc::new(Scraped { at: Duration::ZERO, metrics, in_flight_then: 0, last_booked: 0, never_shown: 0 }))
}

fn scrape(endpoint: &Endpoint, runtime: Runtime, scraped: Option<Arc<Scraped>>) -> Update {
    Update::Scrape { id: endpoint.id, runtime, scraped }
}

fn models(endpoint: &Endpoint, at: Duration, ids: &str) -> Update {
    let list = ModelList::parse(ids.as_bytes(), at).ok().map(Arc::new);
    Update::Models { id: endpoint.id, sent: at, list }
}

fn waiting(set: &EndpointSet, at: usize) -> Option<u32> {
    set.snapshot().entries[at].scraped.as_ref().map(|scraped| scraped.metrics.waiting)
}

#[test]
fn what_stays_keeps_its_identity_and_its_place() {
    let set = set_of([1, 2, 3]);
    let (first, third) = (endpoint(&set, 0), endpoint(&set, 2));
    let _booking = set.book(&third, 5);
    set.apply([scrape(&third, Runtime::Vllm, scraped(7))]);
    let changes = set.reconcile(&specs([4, 3, 1]));
    assert_eq!(changes.added.iter().map(|e| e.spec.port).collect::<Vec<_>>(), [4]);
    assert_eq!(changes.removed.iter().map(|e| e.spec.port).collect::<Vec<_>>(), [2]);
    assert_eq!(ports(&set), [1, 3, 4]);
    assert!(Arc::ptr_eq(&endpoint(&set, 0), &first) && Arc::ptr_eq(&endpoint(&set, 1), &third));
    assert_eq!((waiting(&set, 1), endpoint(&set, 1).ledger.requests()), (Some(7), 1));
}

#[test]
fn the_same_endpoints_in_any_order_are_no_change() {
    let set = set_of([1, 2]);
    let before = set.snapshot();
    assert!(set.reconcile(&specs([2, 1, 2])).is_empty());
    assert!(Arc::ptr_eq(&set.snapshot(), &before));
}

#[test]
fn another_name_at_the_same_address_is_the_same_endpoint() {
    let set = set_of([1]);
    let before = endpoint(&set, 0);
    set.reconcile(&[spec("b", 1)]);
    assert_eq!(endpoint(&set, 0).id, before.id);
}

#[test]
fn a_slot_is_reused_under_a_new_id_and_the_lowest_first() {
    let set = set_of([1, 2, 3]);
    let removed = endpoint(&set, 1);
    set.reconcile(&specs([1, 3]));
    set.reconcile(&specs([1, 3, 2, 4]));
    let slots: Vec<_> = set.snapshot().entries.iter().map(|entry| entry.endpoint.slot.index()).collect();
    assert_eq!(slots, [0, 2, 1, 3]);
    assert_eq!(endpoint(&set, 2).spec, removed.spec);
    assert_ne!(endpoint(&set, 2).id, removed.id);
}

#[test]
fn membership_changes_with_the_endpoints_and_with_nothing_else() {
    let set = set_of([1]);
    let before = set.snapshot().membership;
    set.apply([scrape(&endpoint(&set, 0), Runtime::Vllm, scraped(1))]);
    set.use_runtime(Runtime::Sglang);
    assert_eq!(set.snapshot().membership, before);
    set.reconcile(&[]);
    assert_ne!(set.snapshot().membership, before);
}

#[test]
fn a_failed_scrape_leaves_the_last_good_one() {
    let set = set_of([1]);
    let endpoint = endpoint(&set, 0);
    set.apply([scrape(&endpoint, Runtime::Vllm, scraped(3))]);
    set.apply([scrape(&endpoint, Runtime::Vllm, None)]);
    assert_eq!(waiting(&set, 0), Some(3));
}

#[test]
fn another_runtime_makes_loads_unknown_until_a_scrape_by_its_names() {
    let set = set_of([1]);
    let endpoint = endpoint(&set, 0);
    set.use_runtime(Runtime::Vllm);
    set.apply([scrape(&endpoint, Runtime::Vllm, scraped(3))]);
    set.use_runtime(Runtime::Vllm);
    assert_eq!(waiting(&set, 0), Some(3));
    set.use_runtime(Runtime::Sglang);
    assert_eq!(waiting(&set, 0), None);
    set.apply([scrape(&endpoint, Runtime::Vllm, scraped(4))]);
    assert_eq!(waiting(&set, 0), None, "the answer to a question of before");
    set.apply([scrape(&endpoint, Runtime::Sglang, scraped(5))]);
    assert_eq!(waiting(&set, 0), Some(5));
}

#[test]
fn what_is_read_from_a_former_member_is_dropped() {
    let set = set_of([1]);
    let former = endpoint(&set, 0);
    set.reconcile(&specs([2]));
    set.apply([
        scrape(&former, Runtime::Vllm, scraped(3)),
        models(&former, Duration::ZERO, r#"{"data":[{"id":"m"}]}"#),
    ]);
    assert_eq!(waiting(&set, 0), None);
    assert!(set.snapshot().entries[0].models.is_none());
}

#[test]
fn a_batch_is_published_once_and_old_snapshots_stay_as_they_were() {
    let set = set_of([1, 2]);
    let before = set.snapshot();
    set.apply([0, 1].map(|at| scrape(&endpoint(&set, at), Runtime::Vllm, scraped(1))));
    assert!(before.entries.iter().all(|entry| entry.scraped.is_none()));
    assert!(set.snapshot().entries.iter().all(|entry| entry.scraped.is_some()));
}

#[test]
fn a_list_that_changes_changes_who_serves() {
    let set = set_of([1, 2]);
    let now = Duration::from_secs(1);
    let [first, second] = [0, 1].map(|at| endpoint(&set, at));
    let base = r#"{"data":[{"id":"base","created":1}]}"#;
    set.apply([models(&first, now, base), models(&second, now, base)]);
    assert!(!set.snapshot().serving("base", now).models_differ);
    set.apply([models(
        &second,
        now,
        r#"{"data":[{"id":"base","created":2},{"id":"lora","parent":"base"}]}"#,
    )]);
    let snapshot = set.snapshot();
    let serving = snapshot.serving("lora", now);
    assert!(serving.all_known && serving.models_differ && serving.lists(1) && serving.excludes(0));
    // What fails later leaves the list as it was.
    set.apply([models(&second, now, "")]);
    assert!(set.snapshot().serving("lora", now).lists(1));
    // The table follows the entries when one goes.
    set.reconcile(&specs([2]));
    assert!(set.snapshot().serving("lora", now).lists(0));
}

#[test]
fn bookings_of_a_set_are_numbered_from_one() {
    let set = set_of([1, 2]);
    let [first, second] = [0, 1].map(|at| endpoint(&set, at));
    let _bookings = [set.book(&first, 0), set.book(&second, 0), set.book(&first, 0)];
    assert_eq!((first.ledger.last_booked(), second.ledger.last_booked()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn settled_waits_for_one_attempt_of_each_endpoint_present() {
    let set = set_of([1, 2]);
    let wait = Duration::from_secs(1);
    set.apply([scrape(&endpoint(&set, 0), Runtime::Vllm, scraped(1))]);
    assert!(!set.settled(wait).await);
    let (settled, ()) = tokio::join!(set.settled(wait), async {
        advance(wait / 2).await;
        set.apply([scrape(&endpoint(&set, 1), Runtime::Vllm, None)]);
    });
    assert!(settled);
    set.reconcile(&specs([1, 3]));
    let (settled, _) = tokio::join!(set.settled(wait), async { set.reconcile(&specs([1])) });
    assert!(settled, "who is waited for left");
}

#[tokio::test(start_paused = true)]
async fn many_callers_share_one_refresh_and_nobody_waits_for_ever() {
    let set = set_of([1]);
    let endpoint = endpoint(&set, 0);
    let mut wanted = set.watch_models_wanted();
    let now = Duration::from_secs(10);
    let begun = Instant::now();
    let first = async {
        wanted.changed().await.unwrap();
        assert_eq!(*wanted.borrow_and_update(), Some(now));
        set.apply([models(&endpoint, now, r#"{"data":[]}"#)]);
    };
    assert_eq!(tokio::join!(set.refresh_models(now), set.refresh_models(now), first), (true, true, ()));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // A moment later the endpoints were asked within this second: nobody is asked, nobody waits.
    assert!(set.refresh_models(now + Duration::from_millis(500)).await);
    assert!(!wanted.has_changed().unwrap());
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // Nobody answers: asked, and given up on.
    let begun = Instant::now();
    assert!(!set.refresh_models(now + Duration::from_secs(3)).await);
    assert_eq!(begun.elapsed(), REFRESH_MAX);
}

proptest! {
    /// Against a plain list of who should be there.
    #[test]
    fn any_history_of_members_keeps_slots_dense_unique_and_stable(
        rounds in prop::collection::vec(prop::collection::vec(0_u16..12, 0..12), 1..20)
    ) {
        let set = EndpointSet::new();
        let mut known: HashMap<u16, (EndpointId, Slot)> = HashMap::new();
        let mut most = 0;
        for round in rounds {
            set.reconcile(&specs(round.iter().copied()));
            let snapshot = set.snapshot();
            let wanted: HashSet<u16> = round.into_iter().collect();
            prop_assert_eq!(snapshot.entries.len(), wanted.len());
            most = most.max(wanted.len());
            let now: HashMap<u16, (EndpointId, Slot)> =
                snapshot.entries.iter().map(|e| (e.endpoint.spec.port, (e.endpoint.id, e.endpoint.slot))).collect();
            prop_assert!(now.keys().all(|port| wanted.contains(port)));
            for (port, identity) in &now {
                prop_assert!(known.get(port).is_none_or(|before| before == identity));
            }
            let slots: HashSet<_> = now.values().map(|(_, slot)| slot.index()).collect();
            prop_assert_eq!(slots.len(), now.len());
            prop_assert!(slots.iter().all(|slot| *slot < most));
            known = now;
        }
    }
}
