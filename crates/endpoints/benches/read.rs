//! What reading costs: a real vLLM page, and the loads of 100 endpoints.
//!
//! Run with `cargo bench -p endpoints`.

use std::sync::Arc;
use std::time::Duration;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use endpoints::{Booking, EndpointSet, EngineMetrics, PageReader, Scraped, Update};
use pool::{EndpointSpec, Runtime};

const PAGE: &[u8] = include_bytes!("../tests/data/vllm-0.32-metrics-idle.txt");

fn main() {
    divan::main();
}

/// A page in chunks as a connection gives them.
#[divan::bench]
fn read_vllm_page(bencher: Bencher<'_, '_>) {
    bencher.counter(BytesCount::of_slice(PAGE)).bench(|| {
        let mut page = PageReader::new(Runtime::Vllm);
        for chunk in black_box(PAGE).chunks(8192) {
            page.feed(chunk).expect("a good page");
        }
        page.finish().expect("a good page")
    });
}

#[divan::bench(args = [10, 100, 1000])]
fn read_loads(bencher: Bencher<'_, '_>, endpoints: u16) {
    let snapshot = set_of(endpoints).snapshot();
    let mut loads = Vec::new();
    let counter = ItemsCount::new(endpoints);
    bencher
        .counter(counter)
        .bench_local(|| snapshot.read_loads(black_box(Duration::from_secs(1)), &mut loads));
}

/// One scrape's result taken in and published.
#[divan::bench(args = [10, 100, 1000])]
fn publish(bencher: Bencher<'_, '_>, endpoints: u16) {
    let set = set_of(endpoints);
    let update = updates(&set).remove(0);
    bencher.bench_local(|| set.apply([black_box(update.clone())]));
}

#[divan::bench]
fn book_first_byte_release(bencher: Bencher<'_, '_>) {
    let set = set_of(1);
    let endpoint = Arc::clone(&set.snapshot().entries[0].endpoint);
    bencher.bench_local(|| {
        let mut booking: Booking = set.book(black_box(&endpoint), 1000);
        booking.first_byte();
    });
}

/// A set of that many endpoints, each scraped once.
fn set_of(endpoints: u16) -> EndpointSet {
    let set = EndpointSet::new();
    let host: Arc<str> = "127.0.0.1".into();
    let spec = |port| EndpointSpec { name: "e".into(), host: Arc::clone(&host), port, tls: false };
    set.reconcile(&(1..=endpoints).map(spec).collect::<Vec<_>>());
    set.apply(updates(&set));
    set
}

fn updates(set: &EndpointSet) -> Vec<Update> {
    let metrics = EngineMetrics { waiting: 3, running: 8, kv_usage_ratio: 0.5, ..EngineMetrics::default() };
    let scraped =
        Arc::new(Scraped { at: Duration::ZERO, metrics, in_flight_then: 1, last_booked: 0, never_shown: 0 });
    let update = |id| Update::Scrape { id, runtime: Runtime::Vllm, scraped: Some(Arc::clone(&scraped)) };
    set.snapshot().entries.iter().map(|entry| update(entry.endpoint.id)).collect()
}
