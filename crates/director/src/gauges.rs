//! Gauges that show the pools as they are when somebody asks: the ledger, scrapes, loads, the prefix index.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use endpoints::{Entry, Load, LoadStanding, Room, Snapshot};
use telemetry::{Collector, Definition, DescriptorEncoder, FamilyWriter, definitions as def};

use crate::director::Director;
use crate::queue::QueueView;
use crate::served_pool::ServedPool;

/// How many priorities get a label value of their own.
const PRIORITY_LABELS_MAX: usize = 32;

pub(crate) struct Gauges {
    /// Weak: the director owns the registry's owner.
    director: Weak<Director>,
}

impl Gauges {
    pub(crate) fn new(director: Weak<Director>) -> Gauges {
        Gauges { director }
    }
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

impl Collector for Gauges {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(director) = self.director.upgrade() else { return Ok(()) };
        let mut page = FamilyWriter::new(encoder);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        for (definition, bounded) in
            [(&def::REQUESTS_IN_FLIGHT, director.in_flight()), (&def::BODIES_BYTES, director.bodies())]
        {
            page.family(definition, [([""; 0], bounded.taken() as f64)])?;
        }
        let now = director.clock().now();
        let pools: Vec<PoolNow> = director.pools().iter().map(|pool| PoolNow::read(pool, now)).collect();
        if pools.is_empty() {
            return Ok(());
        }
        queue_gauges(&mut page, &pools)?;
        pool_gauges(&mut page, &pools)?;
        endpoint_gauges(&mut page, &pools)?;
        scrape_gauges(&mut page, &pools, now)
    }
}

/// A pool as it is when it is asked for.
struct PoolNow {
    pool: Arc<ServedPool>,
    snapshot: Arc<Snapshot>,
    loads: Vec<Load>,
    room: Room,
    queue: QueueView,
}

impl PoolNow {
    fn read(pool: &Arc<ServedPool>, now: Duration) -> PoolNow {
        let snapshot = pool.snapshot();
        let mut loads = Vec::with_capacity(snapshot.entries.len());
        snapshot.read_loads(now, &mut loads);
        let room = snapshot.read_room(now, &mut Vec::with_capacity(loads.len()));
        PoolNow { pool: Arc::clone(pool), snapshot, loads, room, queue: pool.gate.view(now) }
    }

    fn fresh(&self) -> impl Iterator<Item = (&Entry, &Load)> {
        let both = self.snapshot.entries.iter().zip(&self.loads);
        both.filter(|(_, load)| load.standing == LoadStanding::Fresh)
    }

    /// The mean over endpoints with fresh metrics.
    fn mean(&self, of: impl Fn(&Load) -> f64) -> Option<f64> {
        let fresh = self.fresh().count();
        (fresh > 0).then(|| self.fresh().map(|(_, load)| of(load)).sum::<f64>() / count(fresh))
    }
}

fn pool_gauges(page: &mut FamilyWriter<'_>, pools: &[PoolNow]) -> fmt::Result {
    type Gauge = fn(&PoolNow) -> Option<f64>;
    let gauges: [(&Definition, Gauge); 4] = [
        (&def::POOL_READY_PODS, |now| Some(count(now.loads.len()))),
        (&def::POOL_KV_CACHE, |now| now.mean(|load| f64::from(load.kv_usage_ratio))),
        (&def::POOL_QUEUE_SIZE, |now| now.mean(|load| f64::from(load.waiting))),
        (&def::FLOW_SATURATION, |now| {
            let Room { counted, with_room, .. } = now.room;
            (counted > 0).then(|| f64::from(counted - with_room) / f64::from(counted))
        }),
    ];
    for (definition, gauge) in gauges {
        let samples = pools.iter().filter_map(|now| Some(([now.pool.label()], gauge(now)?)));
        page.family(definition, samples)?;
    }
    let queues = pools.iter().flat_map(|now| {
        let pod = |entry: &'_ Entry| entry.endpoint.spec.name.to_string();
        now.fresh()
            .map(move |(entry, load)| ([now.pool.label().to_owned(), pod(entry)], f64::from(load.waiting)))
    });
    page.family(&def::POOL_PER_POD_QUEUE, queues)?;
    let blocks = pools.iter().map(|now| now.pool.prefix_blocks()).sum();
    page.family(&def::PREFIX_INDEXER_SIZE, [([""; 0], count(blocks))])
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn queue_gauges(page: &mut FamilyWriter<'_>, pools: &[PoolNow]) -> fmt::Result {
    let queues = || pools.iter().map(|now| &now.queue);
    let oldest = queues().map(|queue| queue.oldest).max().unwrap_or_default();
    for (definition, value) in [
        (&def::FLOW_QUEUE_SIZE, count(queues().map(|queue| queue.waiting).sum())),
        (&def::FLOW_QUEUE_BYTES, queues().map(|queue| queue.bytes).sum::<u64>() as f64),
        (&def::QUEUE_OLDEST, oldest.as_secs_f64()),
        (&def::QUEUE_DISPATCH_RATE, queues().map(|queue| queue.dispatch_rate).sum()),
    ] {
        page.family(definition, [([""; 0], value)])?;
    }
    let mut bands: BTreeMap<Reverse<i64>, usize> = BTreeMap::new();
    for band in queues().flat_map(|queue| &queue.bands) {
        *bands.entry(Reverse(band.priority)).or_default() += band.waiting;
    }
    let own = bands.iter().take(PRIORITY_LABELS_MAX);
    let own = own.map(|(Reverse(priority), waiting)| ([priority.to_string()], count(*waiting)));
    let others = bands.values().skip(PRIORITY_LABELS_MAX).copied().reduce(|sum, waiting| sum + waiting);
    let others = others.map(|waiting| (["other".to_owned()], count(waiting)));
    page.family(&def::QUEUE_WAITING, own.chain(others))
}

/// An endpoint of several pools is one series: of all of them, or, where a sum means nothing, of the first.
fn by_endpoint<'p, const N: usize>(
    pools: &'p [PoolNow],
    samples: impl Fn(&'p Entry, &'p Load) -> Vec<([&'p str; N], f64)>,
    merge: fn(f64, f64) -> f64,
) -> BTreeMap<[&'p str; N], f64> {
    let mut merged = BTreeMap::new();
    for now in pools {
        for (entry, load) in now.snapshot.entries.iter().zip(&now.loads) {
            for (labels, value) in samples(entry, load) {
                merged.entry(labels).and_modify(|there| *there = merge(*there, value)).or_insert(value);
            }
        }
    }
    merged
}

fn sum(one: f64, other: f64) -> f64 {
    one + other
}

fn first(one: f64, _: f64) -> f64 {
    one
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn endpoint_gauges(page: &mut FamilyWriter<'_>, pools: &[PoolNow]) -> fmt::Result {
    let in_flight = |entry: &'_ Entry| f64::from(entry.endpoint.ledger.requests());
    let prefill = |entry: &'_ Entry| entry.endpoint.ledger.prefill_tokens() as f64;
    page.family(
        &def::ENDPOINT_IN_FLIGHT,
        by_endpoint(pools, |entry, _| vec![([entry.endpoint.authority()], in_flight(entry))], sum),
    )?;
    page.family(
        &def::ENDPOINT_PREFILL,
        by_endpoint(pools, |entry, _| vec![([entry.endpoint.authority()], prefill(entry))], sum),
    )?;
    let standing = by_endpoint(
        pools,
        |entry, load| vec![([entry.endpoint.authority(), standing_word(load.standing)], 1.0)],
        first,
    );
    page.family(&def::ENDPOINT_STANDING, standing)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn scrape_gauges(page: &mut FamilyWriter<'_>, pools: &[PoolNow], now: Duration) -> fmt::Result {
    let age = |entry: &'_ Entry| Some(now.saturating_sub(entry.scraped.as_ref()?.at).as_secs_f64());
    let ages = by_endpoint(
        pools,
        |entry, _| age(entry).map(|age| ([entry.endpoint.authority()], age)).into_iter().collect(),
        f64::min,
    );
    page.family(&def::SCRAPE_AGE, ages)?;
    let ok = |entry: &'_ Entry| entry.endpoint.scrapes.ok() as f64;
    page.family(
        &def::SCRAPES,
        by_endpoint(pools, |entry, _| vec![([entry.endpoint.authority()], ok(entry))], sum),
    )?;
    let failures = by_endpoint(
        pools,
        |entry, _| {
            let failed = entry.endpoint.scrapes.failed().filter(|(_, count)| *count > 0);
            failed
                .map(|(reason, count)| ([entry.endpoint.authority(), reason.as_str()], count as f64))
                .collect()
        },
        sum,
    );
    page.family(&def::SCRAPE_FAILURES, failures)
}

/// The label value of a standing.
pub(crate) fn standing_word(standing: LoadStanding) -> &'static str {
    match standing {
        LoadStanding::Fresh => "fresh",
        LoadStanding::Unknown => "unknown",
        LoadStanding::LeftOut => "left_out",
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn count(count: usize) -> f64 {
    count as f64
}
