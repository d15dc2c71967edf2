//! The life of a request, without a door: endpoints are addresses where nobody listens, so that every load is
//! unknown and the ledger alone decides.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is a failure")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use director::{Clock, Control, Declaration, Director, Failure, Head, Limits, Progress, Reason};
use http::StatusCode;
use pool::{Catalog, EndpointSpec};
use telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const CHAT: &str = "/v1/chat/completions";
const BODY: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"which track?"}]}"#;

struct House {
    director: Arc<Director>,
    metrics: Arc<Metrics>,
}

fn declaration(annotations: &str, endpoints: u16) -> Declaration {
    let text = format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata:\n  name: p\n  annotations: {{{annotations}}}\n\
         spec: {{selector: {{matchLabels: {{app: x}}}}, targetPorts: [{{number: 8000}}]}}\n"
    );
    let pool = pool::parse("p.yaml", &text).unwrap().pools.remove(0);
    let endpoints = (0..endpoints)
        .map(|number| EndpointSpec {
            name: format!("e{number}").into(),
            host: "127.0.0.1".into(),
            port: 1 + number,
            tls: false,
        })
        .collect();
    Declaration { pool, catalog: Catalog::default(), endpoints, pods: None }
}

/// A house whose pool has that many endpoints.
fn house(endpoints: u16) -> House {
    let metrics = Arc::new(Metrics::new("test"));
    let limits = Limits { body_bytes_max: 1000, requests_max: 100, ..Limits::default() };
    let director = Director::new(
        Arc::clone(&metrics),
        Clock::start(),
        limits,
        0,
        TaskTracker::new(),
        CancellationToken::new(),
    );
    director.declare(&declaration("", endpoints));
    House { director, metrics }
}

impl House {
    fn head(path: &str) -> Head<'_> {
        Head {
            path,
            safe: false,
            content_length: None,
            readable: true,
            control: Control::default(),
            pool: None,
        }
    }

    async fn exchange(&self) -> director::Exchange {
        let mut intake = self.director.begin(House::head(CHAT)).unwrap();
        if intake.push(BODY).unwrap() == Progress::More {
            intake.end_of_body().unwrap();
        }
        intake.route().await.unwrap()
    }

    fn in_flight(&self) -> Vec<u32> {
        let snapshot = self.director.pool().unwrap().snapshot();
        snapshot.entries.iter().map(|entry| entry.endpoint.ledger.requests()).collect()
    }

    /// How many requests ended for that reason.
    fn ended(&self, reason: Reason) -> u64 {
        let page = self.metrics.encode().unwrap();
        let series = format!("pointsman_requests_total{{reason=\"{}\"}} ", reason.word());
        page.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
    }

    fn ended_in_all(&self) -> u64 {
        Reason::ALL.iter().map(|&reason| self.ended(reason)).sum()
    }
}

#[tokio::test]
async fn a_served_request_is_counted_once_and_leaves_the_ledger_empty() {
    let house = house(2);
    let mut exchange = house.exchange().await;
    assert_eq!(house.in_flight().iter().sum::<u32>(), 1);
    exchange.answer(StatusCode::OK, None);
    exchange.answer_bytes(b"{}");
    exchange.end(Reason::Served);
    drop(exchange);
    assert_eq!((house.ended(Reason::Served), house.ended_in_all()), (1, 1));
    assert_eq!(house.in_flight(), [0, 0]);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_counted_once_wherever_it_was() {
    let house = house(1);
    drop(house.director.begin(House::head(CHAT)).unwrap());
    drop(house.exchange().await);
    let mut answering = house.exchange().await;
    answering.answer(StatusCode::OK, None);
    drop(answering);
    assert_eq!((house.ended(Reason::ClientGone), house.ended_in_all()), (3, 3));
    assert_eq!(house.in_flight(), [0]);
}

#[tokio::test]
async fn a_panic_ends_the_request_as_a_fault_of_ours() {
    let house = house(1);
    let exchange = house.exchange().await;
    let panicked = std::thread::spawn(move || {
        let _held = exchange;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert_eq!((house.ended(Reason::Internal), house.ended_in_all()), (1, 1));
    assert_eq!(house.in_flight(), [0]);
}

#[tokio::test]
async fn every_refusal_is_counted_once_under_its_reason() {
    let house = house(1);
    let announced = Head { content_length: Some(1001), ..House::head(CHAT) };
    assert_eq!(house.director.begin(announced).err().unwrap().reason, Reason::BodyTooLarge);
    let mut long = house.director.begin(House::head(CHAT)).unwrap();
    assert_eq!(long.push(&[b' '; 1001]).unwrap_err().reason, Reason::BodyTooLarge);
    drop(long);
    let mut broken = house.director.begin(House::head(CHAT)).unwrap();
    assert_eq!(broken.push(b"{\"model\": nope").unwrap_err().reason, Reason::Malformed);
    drop(broken);
    let mut empty = house.director.begin(House::head(CHAT)).unwrap();
    assert_eq!(empty.end_of_body().unwrap_err().reason, Reason::Malformed);
    drop(empty);
    let mut nameless = house.director.begin(House::head(CHAT)).unwrap();
    nameless.push(br#"{"messages":[]}"#).unwrap();
    assert_eq!(nameless.end_of_body_with_model().unwrap_err().reason, Reason::Malformed);
    drop(nameless);
    assert_eq!((house.ended(Reason::BodyTooLarge), house.ended(Reason::Malformed)), (2, 3));
    assert_eq!(house.ended_in_all(), 5);
}

#[tokio::test]
async fn a_pool_without_endpoints_is_503_until_one_appears() {
    let house = house(0);
    let mut intake = house.director.begin(House::head("/health")).unwrap();
    assert_eq!(intake.progress(), Progress::Enough);
    intake.end_of_body().unwrap();
    let refusal = intake.route().await.err().unwrap();
    assert_eq!((refusal.reason, refusal.retry_after_seconds()), (Reason::NoEndpoint, Some(1)));
    house.director.declare(&declaration("", 1));
    drop(house.exchange().await);
    assert_eq!(house.ended(Reason::NoEndpoint), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_burst_of_64_on_several_threads_spreads_within_one() {
    let house = Arc::new(house(8));
    let tracker = TaskTracker::new();
    let burst: Vec<_> = (0..64)
        .map(|_| {
            let house = Arc::clone(&house);
            tracker.spawn(async move { house.exchange().await })
        })
        .collect();
    let mut held = Vec::new();
    for exchange in burst {
        held.push(exchange.await.unwrap());
    }
    assert_eq!(house.in_flight(), [8; 8]);
    drop(held);
    assert_eq!(house.in_flight(), [0; 8]);
}

#[tokio::test]
async fn a_failed_attempt_moves_the_booking_to_the_next_endpoint_until_the_list_ends() {
    let house = house(3);
    let mut exchange = house.exchange().await;
    let mut tried = HashSet::new();
    loop {
        assert!(tried.insert(exchange.endpoint().authority().to_owned()));
        assert_eq!(house.in_flight().iter().sum::<u32>(), 1);
        exchange.failed(Failure::Connect);
        if !exchange.next_endpoint(Failure::Connect) {
            break;
        }
    }
    assert_eq!(tried.len(), 3);
    exchange.end(Failure::Connect.reason());
    drop(exchange);
    assert_eq!(house.ended(Reason::UpstreamUnreachable), 1);
}

#[tokio::test]
async fn an_endpoint_that_fails_again_and_again_is_left_out() {
    let house = house(2);
    let mut first = house.exchange().await;
    let dead = first.endpoint().authority().to_owned();
    first.failed(Failure::Connect);
    first.failed(Failure::Connect);
    drop(first);
    for _ in 0..8 {
        assert_ne!(house.exchange().await.endpoint().authority(), dead);
    }
}

#[tokio::test]
async fn a_request_in_flight_outlives_its_endpoint_and_a_change_of_policy() {
    let house = house(1);
    let mut exchange = house.exchange().await;
    let strategy = "inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE";
    let mut changed = declaration(strategy, 3);
    changed.endpoints.remove(0);
    house.director.declare(&changed);
    assert_eq!(house.director.pool().unwrap().snapshot().entries.len(), 2);
    assert_eq!(
        house.director.pool().unwrap().in_force().policy.routing_strategy,
        pool::RoutingStrategy::PrefixCache
    );
    exchange.answer(StatusCode::OK, None);
    exchange.end(Reason::Served);
    let endpoint = Arc::clone(exchange.endpoint());
    drop(exchange);
    assert_eq!(endpoint.ledger.requests(), 0);
    assert_eq!(house.ended(Reason::Served), 1);
}

#[tokio::test]
async fn an_invalid_setting_keeps_its_last_valid_value() {
    let house = house(1);
    let ttl = |value| format!("inference-epp-env.networking.x-k8s.io/queue-ttl: {value}");
    house.director.declare(&declaration(&ttl("7s"), 1));
    house.director.declare(&declaration(&ttl("soon"), 1));
    let in_force = house.director.pool().unwrap().in_force();
    assert_eq!(in_force.policy.queueing.ttl, Duration::from_secs(7));
    assert_eq!(in_force.faults.len(), 1);
    assert!(house.metrics.encode().unwrap().contains("pointsman_invalid_settings{pool=\"default/p\"} 1\n"));
}

#[tokio::test]
async fn a_prefix_is_taken_back_when_its_request_never_got_an_answer() {
    let house = house(2);
    let settings = "inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE, \
        inference-epp-env.networking.x-k8s.io/prefix-cache-hash-block-size: \"4\"";
    house.director.declare(&declaration(settings, 2));
    let pool = house.director.pool().unwrap();
    let exchange = house.exchange().await;
    assert!(pool.prefix_blocks() > 0);
    drop(exchange);
    assert_eq!(pool.prefix_blocks(), 0);
    let mut answered = house.exchange().await;
    answered.answer(StatusCode::OK, None);
    drop(answered);
    assert!(pool.prefix_blocks() > 0);
}

#[tokio::test]
async fn a_subset_is_who_may_be_picked() {
    let house = house(4);
    for (subset, expected) in [
        (vec!["127.0.0.1:3".to_owned()], Some("127.0.0.1:3")),
        (vec!["127.0.0.9:1".to_owned(), " 127.0.0.1:2 ".to_owned()], Some("127.0.0.1:2")),
        (vec!["127.0.0.9:1".to_owned()], None),
        (vec![], None),
    ] {
        let mut intake = house.director.begin(House::head("/")).unwrap();
        intake.restrict(subset);
        match intake.route().await {
            Ok(exchange) => assert_eq!(Some(exchange.endpoint().authority()), expected),
            Err(refusal) => assert_eq!((refusal.reason, expected), (Reason::NoEndpoint, None)),
        }
    }
    let mut intake = house.director.begin(House::head("/")).unwrap();
    intake.restrict(vec!["127.0.0.1".to_owned()]);
    assert_eq!(intake.route().await.unwrap().ranked(9).count(), 4, "a host stands for all its ports");
}

#[tokio::test]
async fn the_ledger_follows_who_served_in_fact() {
    let house = house(3);
    let mut exchange = house.exchange().await;
    let ranked: Vec<String> = exchange.ranked(2).map(|endpoint| endpoint.authority().to_owned()).collect();
    assert_eq!(ranked.len(), 3);
    assert_eq!(ranked[0], exchange.endpoint().authority());
    exchange.served_by(&ranked[2]);
    assert_eq!(exchange.endpoint().authority(), ranked[2]);
    exchange.served_by("10.9.9.9:1");
    assert_eq!(house.in_flight().iter().sum::<u32>(), 1);
    drop(exchange);
    assert_eq!(house.in_flight(), [0, 0, 0]);
}
