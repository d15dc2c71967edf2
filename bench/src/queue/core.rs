//! What it takes to wait and to go, while 10,000 wait.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use director::{Clock, Control, Declaration, Director, Head, Limits, Reason};
use flow::{Arrival, Queue, Verdict};
use parking_lot::Mutex;
use pool::{Catalog, EndpointSpec};
use telemetry::Metrics;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::report::{Table, ns_each, time};
use crate::trace::mix;

const WAITING: usize = 10_000;
const BATCH: usize = 100;
const BATCHES: usize = 2_000;
/// Endpoints without metrics: each takes 16 at once.
const ENDPOINTS: u16 = 8;

/// The core: no lock, no task.
pub(crate) fn run() -> anyhow::Result<()> {
    let table = Table::new(
        &format!("One arrives and one leaves, {WAITING} waiting"),
        &[
            "flows",
            "priorities",
            "arrive, ns",
            "leave, ns",
            "arrive in a heap by priority, ns",
            "leave it, ns",
        ],
    )?;
    for (flows, priorities) in [(1, 1), (100, 3), (WAITING, 3)] {
        let names: Vec<String> = (0..flows).map(|flow| format!("client-{flow}")).collect();
        let (mut number, mut left, mut discarded) = (0, Vec::new(), Vec::new());
        let arrive = |queue: &mut Queue<u64>| {
            number += 1;
            let chance = mix(number);
            let arrival = Arrival {
                priority: (chance % priorities) as i64,
                flow: &names[(chance >> 8) as usize % names.len()],
                bytes: 1 << 10,
                work: 1 + (chance >> 32) % 10_000,
            };
            let _ = queue.arrive(Duration::ZERO, &arrival, number, &mut discarded);
        };
        let leave = |queue: &mut Queue<u64>| {
            left.clear();
            queue.dispatch(Duration::ZERO, 1, |_, _| Verdict::Go, &mut left);
        };
        let ours = in_turns(Queue::new(limits()), arrive, leave);

        let mut number = 0;
        let push = |heap: &mut BinaryHeap<_>| {
            number += 1;
            heap.push((mix(number) % priorities, Reverse(number)));
        };
        let heap = in_turns(BinaryHeap::new(), push, |heap| {
            std::hint::black_box(heap.pop());
        });
        let cells = [ours.0, ours.1, heap.0, heap.1].map(|time| ns_each(time, BATCH));
        table.row(&[&[flows.to_string(), priorities.to_string()], &cells[..]].concat())?;
    }
    Ok(())
}

/// The middle times of a batch that comes, and of one that goes, while [`WAITING`] wait.
fn in_turns<Q>(
    mut queue: Q,
    mut arrive: impl FnMut(&mut Q),
    mut leave: impl FnMut(&mut Q),
) -> (Duration, Duration) {
    (0..WAITING).for_each(|_| arrive(&mut queue));
    let (mut arriving, mut leaving) = (Vec::new(), Vec::new());
    for _ in 0..BATCHES {
        arriving.push(time(|| (0..BATCH).for_each(|_| arrive(&mut queue))));
        leaving.push(time(|| (0..BATCH).for_each(|_| leave(&mut queue))));
    }
    arriving.sort_unstable();
    leaving.sort_unstable();
    (arriving[BATCHES / 2], leaving[BATCHES / 2])
}

fn limits() -> flow::Limits {
    flow::Limits { capacity_bytes: 1 << 40, ttl: Duration::from_secs(3600), waiting_max: 1 << 20 }
}

/// The director whole: each request has a task, is read, waits, is woken, picked for, booked, recorded and released.
pub(crate) async fn through_the_director() -> anyhow::Result<()> {
    let table = Table::new(
        &format!("{WAITING} requests of 1 KB through the director, {ENDPOINTS} endpoints, one thread"),
        &["", "us a request", "longest pause of another task, ms"],
    )?;
    for (name, queueing) in [("none waits", "disabled"), ("nearly all wait", "enabled")] {
        let (mut each, mut pause) = (f64::MAX, f64::MAX);
        for _ in 0..5 {
            let (time, longest) = all_at_once(queueing).await?;
            (each, pause) = (each.min(time), pause.min(longest));
        }
        table.row(&[name.to_owned(), format!("{each:.1}"), format!("{pause:.1}")])?;
    }
    Ok(())
}

async fn all_at_once(queueing: &str) -> anyhow::Result<(f64, f64)> {
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    let limits = Limits { requests_max: 2 * WAITING as u64, ..Limits::default() };
    let metrics = Arc::new(Metrics::new("bench"));
    let director = Director::new(metrics, Clock::start(), limits, 0, tracker.clone(), cancel.clone());
    let text = format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: p, annotations: \
         {{inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE, \
         inference.networking.x-k8s.io/queueing: {queueing}}}}}\n\
         spec: {{selector: {{matchLabels: {{app: x}}}}, targetPorts: [{{number: 8000}}]}}\n"
    );
    let pool = pool::parse("p.yaml", &text)?.pools.pop().context("a pool")?;
    let endpoints = (1..=ENDPOINTS).map(|number| EndpointSpec {
        name: format!("e{number}").into(),
        host: "127.0.0.1".into(),
        port: number,
        tls: false,
    });
    director.declare(&Declaration {
        pool,
        catalog: Catalog::default(),
        endpoints: endpoints.collect(),
        pods: None,
    });

    let mut requests = JoinSet::new();
    let begin = Instant::now();
    for number in 0..WAITING {
        let director = Arc::clone(&director);
        requests.spawn(async move { one(&director, number).await });
    }
    // Another task, which wants nothing but its turn.
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let mut bystander = JoinSet::new();
    let seen = Arc::clone(&longest);
    bystander.spawn(async move {
        let mut last = Instant::now();
        loop {
            tokio::task::yield_now().await;
            let mut longest = seen.lock();
            *longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    });
    while let Some(ended) = requests.join_next().await {
        ended??;
    }
    let each = begin.elapsed().as_secs_f64() * 1e6 / WAITING as f64;
    bystander.shutdown().await;
    cancel.cancel();
    tracker.close();
    let longest = longest.lock().as_secs_f64() * 1e3;
    Ok((each, longest))
}

async fn one(director: &Arc<Director>, number: usize) -> anyhow::Result<()> {
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"{number:08} {}"}}]}}"#,
        "set the points of a railway ".repeat(35)
    );
    let head = Head {
        safe: false,
        path: "/v1/chat/completions",
        content_length: Some(body.len() as u64),
        readable: true,
        control: Control::default(),
        pool: None,
    };
    let mut intake = director.begin(head)?;
    intake.push(body.as_bytes())?;
    let mut exchange = intake.route().await?;
    // In flight for a moment: others come and find no room.
    tokio::task::yield_now().await;
    exchange.end(Reason::Served);
    Ok(())
}
