//! The scraper against real sockets on loopback, its pace made fast. Times are bounds, never expectations.

use std::future::Future;
use std::time::Instant;

use pool::{EndpointSpec, MetricsScheme};
use tokio::time::timeout;

use super::tls::tests::self_signed;
use super::*;
use crate::endpoint::Endpoint;
use crate::snapshot::{Load, LoadStanding};
use server::{Answer, Server};

mod server;

const METRICS: &str = "/metrics";
const MODELS: &str = "/v1/models";

/// A scraper at work on a set.
struct Scraper {
    set: Arc<EndpointSet>,
    config: watch::Sender<ScrapeConfig>,
    clock: Clock,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Scraper {
    fn start(pace: Pace, specs: &[EndpointSpec]) -> Self {
        Self::start_with(pace, specs, ScrapeConfig::default())
    }

    fn start_with(pace: Pace, specs: &[EndpointSpec], config: ScrapeConfig) -> Self {
        let (set, clock, tracker) = (Arc::new(EndpointSet::new()), Clock::start(), TaskTracker::new());
        let (config, cancel) = (watch::Sender::new(config), CancellationToken::new());
        set.reconcile(specs);
        spawn_at(pace, Arc::clone(&set), config.subscribe(), clock, &tracker, cancel.clone());
        Self { set, config, clock, tracker, cancel }
    }

    fn endpoint(&self, at: usize) -> Arc<Endpoint> {
        Arc::clone(&self.set.snapshot().entries[at].endpoint)
    }

    fn load(&self, at: usize) -> Load {
        self.set.snapshot().entries[at].load(self.clock.now())
    }

    fn reason(&self, at: usize) -> Option<FailureReason> {
        self.endpoint(at).scrapes.last_failure().map(|failure| failure.reason)
    }

    /// Ends it and waits for all of its tasks.
    async fn stop(self) {
        self.cancel.cancel();
        self.tracker.close();
        timeout(Duration::from_secs(5), self.tracker.wait()).await.expect("all tasks end when cancelled");
    }
}

/// A pace at which a test sees many rounds.
fn quick() -> Pace {
    Pace {
        idle: Duration::from_millis(20),
        busy: Duration::from_millis(10),
        models: Duration::from_millis(20),
        timeout: Duration::from_millis(200),
        publish: Duration::from_millis(1),
    }
}

/// A pace at which nothing happens twice unless something asks for it.
fn slow() -> Pace {
    let hour = Duration::from_secs(3600);
    Pace { idle: hour, models: hour, timeout: Duration::from_secs(5), ..quick() }
}

fn at_port(port: u16) -> EndpointSpec {
    EndpointSpec { name: format!("e{port}").into(), host: "127.0.0.1".into(), port, tls: false }
}

fn page(waiting: u32) -> String {
    format!(
        "vllm:num_requests_waiting {waiting}\nvllm:num_requests_running 2\nvllm:kv_cache_usage_perc 0.5\n"
    )
}

async fn healthy(waiting: u32) -> Server {
    let models = Answer::Page(r#"{"data":[{"id":"base"}]}"#.to_owned());
    Server::start(&[(METRICS, Answer::Page(page(waiting))), (MODELS, models)]).await
}

/// Waits until `done`, at most five seconds.
async fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(5), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn settled(scraper: &Scraper) {
    assert!(scraper.set.settled(Duration::from_secs(5)).await, "each endpoint has had its first attempt");
}

/// What becomes of an endpoint that answers so.
async fn failure_of(answer: Answer) -> FailureReason {
    let server = Server::start(&[(METRICS, answer)]).await;
    let scraper = Scraper::start(quick(), &[at_port(server.port)]);
    settled(&scraper).await;
    assert_eq!(scraper.load(0).standing, LoadStanding::Unknown, "a failure is never taken for emptiness");
    let reason = scraper.reason(0).unwrap();
    scraper.stop().await;
    reason
}

#[tokio::test]
async fn loads_and_models_are_known_after_the_first_round() {
    let (one, other) = (healthy(0).await, healthy(7).await);
    let scraper = Scraper::start(slow(), &[at_port(one.port), at_port(other.port)]);
    settled(&scraper).await;
    let [first, second] = [0, 1].map(|at| scraper.load(at));
    assert_eq!((first.waiting, first.in_flight, first.standing), (0, 2, LoadStanding::Fresh));
    assert_eq!((second.waiting, second.in_flight, second.standing), (7, 9, LoadStanding::Fresh));
    let known = || scraper.set.snapshot().serving("base", scraper.clock.now()).all_known;
    until("the models are known", known).await;
    scraper.stop().await;
}

#[tokio::test]
async fn one_connection_serves_all_scrapes() {
    let server = healthy(0).await;
    let scraper = Scraper::start(quick(), &[at_port(server.port)]);
    until("there were ten rounds", || server.requests(METRICS) > 10 && server.requests(MODELS) > 10).await;
    assert_eq!(server.connections(), 2, "one for metrics, one for models");
    scraper.stop().await;
    until("both are closed", || server.open() == 0).await;
}

#[tokio::test]
async fn a_server_that_closes_idle_connections_is_scraped_all_the_same() {
    let server = Server::start(&[(METRICS, Answer::PageThenClose(page(1)))]).await;
    let scraper = Scraper::start(quick(), &[at_port(server.port)]);
    until("there were ten scrapes", || scraper.endpoint(0).scrapes.ok() > 10).await;
    assert_eq!(scraper.reason(0), None);
    scraper.stop().await;
}

#[tokio::test]
async fn a_hanging_endpoint_harms_nobody_else() {
    let (good, bad) =
        (healthy(3).await, Server::start(&[(METRICS, Answer::Hang), (MODELS, Answer::Hang)]).await);
    let pace = Pace { timeout: Duration::from_secs(3600), ..quick() };
    let scraper = Scraper::start(pace, &[at_port(bad.port), at_port(good.port)]);
    until("the other had ten scrapes", || scraper.endpoint(1).scrapes.ok() > 10).await;
    assert_eq!(scraper.load(1).standing, LoadStanding::Fresh);
    assert_eq!((scraper.load(0).standing, bad.requests(METRICS)), (LoadStanding::Unknown, 1));
    scraper.stop().await;
}

#[tokio::test]
async fn failures_are_told_apart() {
    let raw = |bytes: &str| Answer::Raw(bytes.to_owned());
    let page = |body: &str| Answer::Page(body.to_owned());
    assert_eq!(failure_of(Answer::Hang).await, FailureReason::Timeout);
    assert_eq!(failure_of(Answer::Trickle(self::page(0))).await, FailureReason::Timeout);
    assert_eq!(failure_of(page("<html>\n")).await, FailureReason::MissingSeries);
    assert_eq!(failure_of(page("")).await, FailureReason::MissingSeries);
    assert_eq!(failure_of(page(&self::page(0).replace("0.5", "NaN"))).await, FailureReason::BadValue);
    assert_eq!(failure_of(page(&self::page(0).replace("0.5", "half"))).await, FailureReason::Malformed);
    assert_eq!(failure_of(page(&"x".repeat(100_000))).await, FailureReason::Malformed);
    assert_eq!(failure_of(raw("HTTP/1.1 503 Busy\r\n\r\n")).await, FailureReason::Status);
    assert_eq!(failure_of(raw("HTTP/1.1 301 Moved\r\nlocation: /\r\n\r\n")).await, FailureReason::Status);
    assert_eq!(failure_of(raw("SSH-2.0-x\r\n")).await, FailureReason::Http);
    assert_eq!(failure_of(raw("")).await, FailureReason::Http);
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nvllm:num_requests_waiting 0\n";
    assert_eq!(failure_of(raw(cut)).await, FailureReason::Http);
    let announced = "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
    assert_eq!(failure_of(raw(announced)).await, FailureReason::TooLarge);
}

#[tokio::test]
async fn nobody_at_the_port_is_a_failure_to_connect() {
    let gone = healthy(0).await.port;
    let scraper = Scraper::start(quick(), &[at_port(gone)]);
    settled(&scraper).await;
    let failure = scraper.endpoint(0).scrapes.last_failure().unwrap();
    assert_eq!(failure.reason, FailureReason::Connect);
    assert!(failure.text.starts_with(&format!("cannot connect to 127.0.0.1:{gone}: ")), "{}", failure.text);
    scraper.stop().await;
}

#[tokio::test]
async fn an_endless_page_is_read_no_further_than_its_bound() {
    let server = Server::start(&[(METRICS, Answer::Endless), (MODELS, Answer::Endless)]).await;
    let pace = Pace { timeout: Duration::from_secs(30), ..slow() };
    let scraper = Scraper::start(pace, &[at_port(server.port)]);
    settled(&scraper).await;
    assert_eq!(scraper.reason(0), Some(FailureReason::TooLarge));
    until("both connections are closed", || server.open() == 0).await;
    // 4 MiB and 1 MiB, and for each what the kernel's buffers on the way hold.
    assert!(server.body_bytes() < 25 * 1024 * 1024, "{} bytes were taken", server.body_bytes());
    scraper.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_recovers_is_known_again() {
    let server = Server::start(&[(METRICS, Answer::Hang)]).await;
    let scraper = Scraper::start(quick(), &[at_port(server.port)]);
    settled(&scraper).await;
    server.answer(METRICS, Answer::Page(page(4)));
    until("it is read", || scraper.load(0).waiting == 4).await;
    let scrapes = &scraper.endpoint(0).scrapes;
    assert!(scrapes.failed().any(|(reason, count)| reason == FailureReason::Timeout && count > 0));
    // And a failure afterwards leaves the last good scrape in force.
    server.answer(METRICS, Answer::Page("<html>\n".to_owned()));
    until("it fails again", || scraper.reason(0) == Some(FailureReason::MissingSeries)).await;
    assert_eq!((scraper.load(0).waiting, scraper.load(0).standing), (4, LoadStanding::Fresh));
    scraper.stop().await;
}

#[tokio::test]
async fn a_booking_wakes_the_scraper_of_an_idle_endpoint() {
    let server = healthy(0).await;
    let scraper = Scraper::start(slow(), &[at_port(server.port)]);
    settled(&scraper).await;
    server.answer(METRICS, Answer::Page(page(1)));
    let _booking = scraper.set.book(&scraper.endpoint(0), 0);
    until("it is scraped again", || {
        scraper.set.snapshot().entries[0].scraped.as_ref().unwrap().metrics.waiting == 1
    })
    .await;
    // Of the three on the page one is ours and counted once.
    assert_eq!(scraper.load(0).in_flight, 3);
    scraper.stop().await;
}

#[tokio::test]
async fn who_waits_for_room_has_idle_endpoints_scraped_as_if_they_were_busy() {
    let server = healthy(0).await;
    let scraper = Scraper::start(slow(), &[at_port(server.port)]);
    settled(&scraper).await;
    sleep(Duration::from_millis(50)).await;
    let before = server.requests(METRICS);
    scraper.set.want_room(true);
    until("it is scraped again and again", || server.requests(METRICS) >= before + 5).await;
    scraper.set.want_room(false);
    // One may be under way.
    sleep(Duration::from_millis(50)).await;
    let after = server.requests(METRICS);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(server.requests(METRICS), after);
    scraper.stop().await;
}

#[tokio::test]
async fn those_who_come_are_scraped_and_those_who_go_are_left_alone() {
    let (first, second) = (healthy(0).await, healthy(0).await);
    let scraper = Scraper::start(quick(), &[at_port(first.port)]);
    settled(&scraper).await;
    scraper.set.reconcile(&[at_port(second.port)]);
    settled(&scraper).await;
    assert_eq!(scraper.load(0).standing, LoadStanding::Fresh);
    until("the former member's connections are closed", || first.open() == 0).await;
    let asked = first.requests(METRICS);
    until("the new one had ten scrapes", || second.requests(METRICS) > 10).await;
    assert_eq!(first.requests(METRICS), asked);
    scraper.stop().await;
}

#[tokio::test]
async fn target_and_runtime_change_while_it_runs() {
    let sglang = "sglang:num_queue_reqs 6\nsglang:num_running_reqs 1\nsglang:token_usage 0\n".to_owned();
    let (server, other) = (healthy(1).await, Server::start(&[("/load", Answer::Page(sglang))]).await);
    let scraper = Scraper::start(slow(), &[at_port(server.port)]);
    settled(&scraper).await;
    assert_eq!(scraper.load(0).waiting, 1);
    let identity = scraper.endpoint(0).id;
    scraper.config.send_modify(|config| config.runtime = Runtime::Sglang);
    until("the load is unknown", || scraper.load(0).standing == LoadStanding::Unknown).await;
    until("the page is read by other names", || scraper.reason(0) == Some(FailureReason::MissingSeries))
        .await;
    scraper.config.send_modify(|config| {
        config.target.port = Some(other.port);
        config.target.path = "/load".to_owned();
    });
    until("the new target is read", || scraper.load(0).waiting == 6).await;
    assert_eq!(scraper.endpoint(0).id, identity);
    scraper.stop().await;
}

#[tokio::test]
async fn metrics_are_read_over_tls() {
    let (_, acceptor) = self_signed(&["127.0.0.1"]);
    let answers = [(METRICS, Answer::Page(page(5))), (MODELS, Answer::Page(r#"{"data":[]}"#.to_owned()))];
    let server = Server::start_with(&answers, Some(acceptor)).await;
    let mut config = ScrapeConfig::default();
    config.target.scheme = MetricsScheme::Https;
    config.target.https_insecure_skip_verify = true;
    let scraper = Scraper::start_with(quick(), &[at_port(server.port)], config);
    until("ten scrapes went well", || scraper.endpoint(0).scrapes.ok() > 10).await;
    assert_eq!(scraper.load(0).waiting, 5);
    until("models are read on the same port", || scraper.set.snapshot().entries[0].models.is_some()).await;
    assert_eq!(server.connections(), 2);
    scraper.config.send_modify(|config| config.target.https_insecure_skip_verify = false);
    until("the certificate is refused", || scraper.reason(0) == Some(FailureReason::Tls)).await;
    scraper.stop().await;
}

#[tokio::test]
async fn a_name_is_resolved() {
    let server = healthy(2).await;
    let spec = EndpointSpec { host: "localhost".into(), ..at_port(server.port) };
    let scraper = Scraper::start(slow(), &[spec]);
    settled(&scraper).await;
    assert_eq!(scraper.load(0).waiting, 2);
    scraper.stop().await;
}

#[tokio::test]
async fn an_adapter_loaded_a_moment_ago_is_found_by_a_refresh() {
    let server = healthy(0).await;
    let scraper = Scraper::start(slow(), &[at_port(server.port)]);
    let serves = |model| !scraper.set.snapshot().serving(model, scraper.clock.now()).nobody();
    until("the models are known", || serves("base")).await;
    server.answer(MODELS, Answer::Page(r#"{"data":[{"id":"base"},{"id":"lora"}]}"#.to_owned()));
    assert!(!serves("lora"));
    assert!(scraper.set.refresh_models(scraper.clock.now()).await);
    assert!(serves("lora"));
    assert_eq!(server.requests(MODELS), 2);
    scraper.stop().await;
}

#[tokio::test]
async fn it_ends_at_once_whatever_the_endpoints_do() {
    let hanging = Server::start(&[(METRICS, Answer::Hang), (MODELS, Answer::Hang)]).await;
    let trickling = Server::start(&[(METRICS, Answer::Trickle(page(0))), (MODELS, Answer::Endless)]).await;
    let pace = Pace { timeout: Duration::from_secs(3600), ..quick() };
    let scraper = Scraper::start(pace, &[at_port(hanging.port), at_port(trickling.port)]);
    until("all are asked", || {
        [&hanging, &trickling].iter().all(|server| server.requests(METRICS) + server.requests(MODELS) == 2)
    })
    .await;
    let set = Arc::downgrade(&scraper.set);
    scraper.stop().await;
    assert!(set.upgrade().is_none(), "nobody holds the set any more");
}

#[tokio::test]
async fn each_of_a_hundred_endpoints_has_its_own_load() {
    let servers = all((0..100).map(healthy)).await;
    let specs: Vec<_> = servers.iter().map(|server| at_port(server.port)).collect();
    let scraper = Scraper::start(slow(), &specs);
    settled(&scraper).await;
    let waiting: Vec<_> = (0..100).map(|at| scraper.load(at).waiting).collect();
    assert_eq!(waiting, (0..100).collect::<Vec<_>>());
    scraper.stop().await;
}

#[tokio::test(start_paused = true)]
async fn results_that_come_together_are_published_together() {
    let set = Arc::new(EndpointSet::new());
    set.reconcile(&[at_port(1)]);
    let id = set.snapshot().entries[0].endpoint.id;
    let (updates, received) = mpsc::channel(UPDATES_MAX);
    let come = async {
        let mut seen = vec![set.snapshot()];
        for _ in 0..100 {
            updates.send(Update::Scrape { id, runtime: Runtime::Vllm, scraped: None }).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            let snapshot = set.snapshot();
            if !seen.iter().any(|seen| Arc::ptr_eq(seen, &snapshot)) {
                seen.push(snapshot);
            }
        }
        drop(updates);
        seen.len() - 1
    };
    let (publications, ()) =
        tokio::join!(come, publish(Arc::clone(&set), received, Duration::from_millis(5)));
    assert!((10..=21).contains(&publications), "{publications} in 100 ms");
}

async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut results = Vec::new();
    for future in futures {
        results.push(future.await);
    }
    results
}
