//! The director's state as JSON, for the admin door: what a person should be able to look at.

use endpoints::{Entry, Load, LoadStanding, Snapshot};
use pool::Origin;
use serde_json::{Value, json};

use crate::director::Director;
use crate::gauges::standing_word;
use crate::served_pool::{InForce, ServedPool};

impl Director {
    /// Whether requests can be served now; else why not.
    ///
    /// # Errors
    /// The reason why not.
    pub fn ready(&self) -> Result<(), String> {
        let pools = self.pools();
        let Some(first) = pools.first() else { return Err("no InferencePool is declared".into()) };
        if pools.iter().all(|pool| pool.snapshot().entries.is_empty()) {
            return Err(format!("the InferencePool {} has no endpoints", first.id()));
        }
        Ok(())
    }

    /// Pools, endpoints, loads, settings with their origin.
    #[must_use]
    pub fn state(&self) -> Value {
        let pools: Vec<_> = self.pools().iter().map(|pool| pool_view(self, pool)).collect();
        json!({ "pools": pools })
    }
}

fn pool_view(director: &Director, pool: &ServedPool) -> Value {
    let in_force = pool.in_force();
    let snapshot = pool.snapshot();
    let now = director.clock().now();
    let mut loads = Vec::with_capacity(snapshot.entries.len());
    snapshot.read_loads(now, &mut loads);
    let endpoints: Vec<_> =
        snapshot.entries.iter().zip(&loads).map(|(entry, load)| endpoint_view(entry, load, now)).collect();
    json!({
        "name": pool.id().name,
        "namespace": pool.id().namespace,
        "version": in_force.version.to_string(),
        "settings": settings_view(&in_force),
        "faults": in_force.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "queue": queue_view(pool, &snapshot, now),
        "prefix_index_blocks": pool.prefix_blocks(),
        "models": snapshot.models(now).iter().map(|model| model.id.to_string()).collect::<Vec<_>>(),
        "endpoints": endpoints,
    })
}

fn queue_view(pool: &ServedPool, snapshot: &Snapshot, now: std::time::Duration) -> Value {
    let queue = pool.gate.view(now);
    let room = snapshot.read_room(now, &mut Vec::new());
    let bands = queue
        .bands
        .iter()
        .map(|band| json!({ "priority": band.priority, "waiting": band.waiting, "bytes": band.bytes }));
    json!({
        "saturated": room.is_saturated(),
        "endpoints_with_room": room.with_room,
        "waiting": queue.waiting,
        "bytes": queue.bytes,
        "oldest_ms": u64::try_from(queue.oldest.as_millis()).unwrap_or(u64::MAX),
        "dispatched_per_second": queue.dispatch_rate,
        "by_priority": bands.collect::<Vec<_>>(),
    })
}

fn settings_view(in_force: &InForce) -> Value {
    in_force
        .settings
        .iter()
        .map(|setting| {
            json!({ "key": setting.key, "value": setting.value, "origin": origin_word(setting.origin) })
        })
        .collect()
}

fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Default => "default",
        Origin::Annotation => "annotation",
        Origin::LastValid => "last valid",
    }
}

fn endpoint_view(entry: &Entry, load: &Load, now: std::time::Duration) -> Value {
    let endpoint = &entry.endpoint;
    let scraped = entry.scraped.as_ref().filter(|_| load.standing == LoadStanding::Fresh).map(|scraped| {
        json!({
            "age_ms": u64::try_from(now.saturating_sub(scraped.at).as_millis()).unwrap_or(u64::MAX),
            "waiting": scraped.metrics.waiting,
            "running": scraped.metrics.running,
            "kv_usage_ratio": scraped.metrics.kv_usage_ratio,
            "adapters": scraped.metrics.lora.as_ref().map(|lora| {
                lora.active.iter().map(ToString::to_string).collect::<Vec<_>>()
            }),
        })
    });
    json!({
        "name": &*endpoint.spec.name,
        "address": endpoint.authority(),
        "standing": standing_word(load.standing),
        "in_flight_requests": endpoint.ledger.requests(),
        "prefill_pending_tokens": endpoint.ledger.prefill_tokens(),
        "engine": scraped,
        "last_scrape_error": endpoint.scrapes.last_failure().map(|failure| failure.text),
        "models": entry.models.as_ref().map(|list| {
            list.models.iter().map(|model| model.id.to_string()).collect::<Vec<_>>()
        }),
    })
}
