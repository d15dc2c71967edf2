//! Gauges that show the pool as it is when somebody asks: the ledger, scrapes, loads, the prefix index.

use std::fmt;
use std::sync::{Arc, Weak};

use endpoints::{Load, LoadStanding, Room, Snapshot};
use telemetry::{Collector, DescriptorEncoder, FamilyWriter, definitions as def};

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
        let Some(pool) = director.pool() else { return Ok(()) };
        let snapshot = pool.snapshot();
        let now = director.clock().now();
        queue_gauges(&mut page, &pool.gate.view(now))?;
        let mut loads = Vec::with_capacity(snapshot.entries.len());
        snapshot.read_loads(now, &mut loads);
        let room = snapshot.read_room(now, &mut Vec::with_capacity(loads.len()));
        pool_gauges(&mut page, &pool, &snapshot, &loads, room)?;
        endpoint_gauges(&mut page, &snapshot, &loads)?;
        scrape_gauges(&mut page, &snapshot, now)
    }
}

fn pool_gauges(
    page: &mut FamilyWriter<'_>,
    pool: &Arc<ServedPool>,
    snapshot: &Snapshot,
    loads: &[Load],
    room: Room,
) -> fmt::Result {
    let name = pool.id().name.as_str();
    let fresh: Vec<_> = loads.iter().filter(|load| load.standing == LoadStanding::Fresh).collect();
    page.family(&def::POOL_READY_PODS, [([name], count(loads.len()))])?;
    if !fresh.is_empty() {
        let of = count(fresh.len());
        let kv: f64 = fresh.iter().map(|load| f64::from(load.kv_usage_ratio)).sum();
        let waiting: f64 = fresh.iter().map(|load| f64::from(load.waiting)).sum();
        page.family(&def::POOL_KV_CACHE, [([name], kv / of)])?;
        page.family(&def::POOL_QUEUE_SIZE, [([name], waiting / of)])?;
    }
    if room.counted > 0 {
        let full = room.counted - room.with_room;
        page.family(&def::FLOW_SATURATION, [([name], f64::from(full) / f64::from(room.counted))])?;
    }
    let queues = snapshot.entries.iter().zip(loads).filter(|(_, load)| load.standing == LoadStanding::Fresh);
    page.family(
        &def::POOL_PER_POD_QUEUE,
        queues.map(|(entry, load)| ([name, &*entry.endpoint.spec.name], f64::from(load.waiting))),
    )?;
    page.family(&def::PREFIX_INDEXER_SIZE, [([""; 0], count(pool.prefix_blocks()))])
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn queue_gauges(page: &mut FamilyWriter<'_>, queue: &QueueView) -> fmt::Result {
    page.family(&def::FLOW_QUEUE_SIZE, [([""; 0], count(queue.waiting))])?;
    page.family(&def::FLOW_QUEUE_BYTES, [([""; 0], queue.bytes as f64)])?;
    page.family(&def::QUEUE_OLDEST, [([""; 0], queue.oldest.as_secs_f64())])?;
    page.family(&def::QUEUE_DISPATCH_RATE, [([""; 0], queue.dispatch_rate)])?;
    let (own, others) = queue.bands.split_at(queue.bands.len().min(PRIORITY_LABELS_MAX));
    let own: Vec<_> = own.iter().map(|band| (band.priority.to_string(), band.waiting)).collect();
    let others = others.iter().map(|band| band.waiting).reduce(|sum, waiting| sum + waiting);
    page.family(
        &def::QUEUE_WAITING,
        own.iter()
            .map(|(priority, waiting)| ([priority.as_str()], count(*waiting)))
            .chain(others.map(|waiting| (["other"], count(waiting)))),
    )
}

fn endpoint_gauges(page: &mut FamilyWriter<'_>, snapshot: &Snapshot, loads: &[Load]) -> fmt::Result {
    let endpoints = || snapshot.entries.iter().map(|entry| &entry.endpoint);
    page.family(
        &def::ENDPOINT_IN_FLIGHT,
        endpoints().map(|endpoint| ([endpoint.authority()], f64::from(endpoint.ledger.requests()))),
    )?;
    page.family(
        &def::ENDPOINT_PREFILL,
        #[expect(clippy::cast_precision_loss, reason = "token counts far below 2^53")]
        endpoints().map(|endpoint| ([endpoint.authority()], endpoint.ledger.prefill_tokens() as f64)),
    )?;
    page.family(
        &def::ENDPOINT_STANDING,
        endpoints()
            .zip(loads)
            .map(|(endpoint, load)| ([endpoint.authority(), standing_word(load.standing)], 1.0)),
    )
}

fn scrape_gauges(page: &mut FamilyWriter<'_>, snapshot: &Snapshot, now: std::time::Duration) -> fmt::Result {
    let endpoints = || snapshot.entries.iter().map(|entry| &entry.endpoint);
    page.family(
        &def::SCRAPE_AGE,
        snapshot.entries.iter().filter_map(|entry| {
            let age = now.saturating_sub(entry.scraped.as_ref()?.at);
            Some(([entry.endpoint.authority()], age.as_secs_f64()))
        }),
    )?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    page.family(
        &def::SCRAPES,
        endpoints().map(|endpoint| ([endpoint.authority()], endpoint.scrapes.ok() as f64)),
    )?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    page.family(
        &def::SCRAPE_FAILURES,
        endpoints().flat_map(|endpoint| {
            endpoint
                .scrapes
                .failed()
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| ([endpoint.authority(), reason.as_str()], count as f64))
        }),
    )
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
