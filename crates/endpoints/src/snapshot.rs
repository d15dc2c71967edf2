//! The immutable picture of a pool's endpoints that a decision reads.

use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::health::Standing;
use crate::metrics::EngineMetrics;
use crate::models::{self, MODELS_FRESH, ModelList, ModelTable, ServedModel, Serving};

/// A scrape older than this no longer tells an endpoint's load.
pub const STALE_AFTER: Duration = Duration::from_secs(3);

/// With more requests waiting than this an endpoint has no room (annotations.md, section 2).
pub const WAITING_WITH_ROOM_MAX: u32 = 5;
/// With more of its KV cache in use than this (0 to 1) an endpoint has no room.
pub const KV_USAGE_WITH_ROOM_MAX: f32 = 0.8;

/// One good scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Scraped {
    /// When the page had come in whole, since the epoch.
    pub at: Duration,
    /// What the page said.
    pub metrics: EngineMetrics,
    /// Our own requests on the endpoint while the page was made: the larger of the ledger when the scrape was sent and
    /// when the page had come. So much of the page's running and waiting is ours.
    pub in_flight_then: u32,
    /// Our latest booking on the endpoint when the page had come.
    pub last_booked: u64,
    /// Our unanswered requests that neither this page nor any before it for a second showed; for 10 s where pages were seen
    /// to count what we send. Pages lag behind by a step of the engine; what is not shown for so long is not waited for.
    pub never_shown: u32,
}

/// One endpoint and what was last read from it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The endpoint, its ledger and health live.
    pub endpoint: Arc<Endpoint>,
    /// The last good scrape under the runtime in force.
    pub scraped: Option<Arc<Scraped>>,
    /// The last good model list.
    pub models: Option<Arc<ModelList>>,
}

/// All endpoints at one moment. Entries keep their order while the membership stays the same.
#[derive(Debug)]
pub struct Snapshot {
    /// One for each endpoint.
    pub entries: Box<[Entry]>,
    /// Changes whenever the set of endpoints does, and only then.
    pub membership: u64,
    /// Some endpoint can load LoRA adapters and says which are active.
    pub reports_lora: bool,
    /// What each entry's scrape says, side by side and in entry order: loads are read for every request.
    pages: Box<[Page]>,
    models: Arc<ModelTable>,
    /// When the oldest model list came; none if a list is missing or nobody is there.
    models_at: Option<Duration>,
}

/// One scrape, ready for the corrections of [`Entry::load`].
#[derive(Debug, Clone, Copy)]
struct Page {
    /// The first nanosecond since the epoch at which the scrape is stale; 0 where there is none.
    stale_at_ns: u64,
    /// Others' requests.
    foreign: u32,
    waiting: u32,
    ours_then: u32,
    last_booked: u64,
    /// Running and waiting, and what is never shown.
    shown: u32,
    kv_usage_ratio: f32,
}

/// One endpoint's load at one moment, for scoring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Requests on the endpoint, running and waiting: ours by the ledger, others' by the last scrape.
    pub in_flight: u32,
    /// Requests in the engine's waiting queue, corrected by what we booked and released since the scrape.
    pub waiting: u32,
    /// Prompt tokens that we booked and whose answer has not begun.
    pub prefill_tokens: u32,
    /// Share of the KV cache in use, 0 to 1.
    pub kv_usage_ratio: f32,
    /// Sequence number of our latest booking, 0 for none: equal endpoints take turns by it.
    pub last_booked: u64,
    /// How far the numbers can be trusted.
    pub standing: LoadStanding,
}

/// How far a [`Load`] can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStanding {
    /// By a scrape at most [`STALE_AFTER`] old.
    Fresh,
    /// No scrape, or an old one: the numbers are our own bookings alone. Unknown is not empty.
    Unknown,
    /// Left out after failures ([`Standing::Out`]); the numbers are as for the other two. On probation an endpoint is not
    /// left out: who picks it must win [`Health::admits`](crate::Health::admits).
    LeftOut,
}

/// How many endpoints can take more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Endpoints with room.
    pub with_room: u32,
    /// Endpoints that count: those not left out after failures, or all where there are no others.
    pub counted: u32,
    /// Of those counted, endpoints whose load is unknown: they are judged by what we sent them.
    pub unknown: u32,
}

impl Room {
    /// Whether no endpoint has room. A pool without endpoints is not saturated: it is empty.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.with_room == 0 && self.counted > 0
    }
}

impl Scraped {
    /// Whether the page says that the endpoint has room though so many of our requests are unanswered.
    pub(crate) fn tells_room(&self, unanswered: u32) -> bool {
        let page = Page::new(Some(self));
        has_room(page.waiting.saturating_add(page.unseen(unanswered)), self.metrics.kv_usage_ratio)
    }
}

impl Entry {
    /// The endpoint's load at `now`.
    ///
    /// With `L` the ledger's requests now, and by a scrape at most [`STALE_AFTER`] old `R` running, `W` waiting, and `L0`
    /// our requests at the time of the scrape:
    ///
    /// - `in_flight = max(0, R + W - L0) + L`: others' requests stay as they were, ours are counted;
    /// - `waiting = 0` if `W = 0`, else `max(0, W + L - L0)`: while a queue stands, what we add joins it and what ends
    ///   lets one of it go; where none stood, what we add is taken to run.
    ///
    /// Without such a scrape: `in_flight = L`, `waiting = 0`, KV use 0, and the standing says that this is not knowledge.
    #[must_use]
    pub fn load(&self, now: Duration) -> Load {
        Page::new(self.scraped.as_deref()).load(&self.endpoint, now, nanos(now))
    }
}

impl Snapshot {
    /// A snapshot of these entries. `membership` names the set of endpoints.
    #[must_use]
    pub fn new(entries: Vec<Entry>, membership: u64) -> Self {
        let lists: Vec<_> = entries.iter().map(|entry| entry.models.as_deref()).collect();
        let table = Arc::new(ModelTable::new(&lists));
        Self::with_table(entries, membership, table)
    }

    /// As [`new`](Self::new), with a table that was made from the entries' lists.
    pub(crate) fn with_table(entries: Vec<Entry>, membership: u64, models: Arc<ModelTable>) -> Self {
        let reports_lora = entries.iter().any(|entry| {
            let lora = entry.scraped.as_deref().and_then(|scraped| scraped.metrics.lora.as_ref());
            lora.is_some_and(|lora| lora.max > 0)
        });
        // The oldest, and none if any is missing: `None` is the least of all options.
        let models_at = entries.iter().map(|entry| entry.models.as_ref().map(|list| list.at)).min().flatten();
        let pages = entries.iter().map(|entry| Page::new(entry.scraped.as_deref())).collect();
        Self { entries: entries.into(), membership, reports_lora, pages, models, models_at }
    }

    /// Writes each entry's [`Load`] at `now` into `out`, in entry order, over whatever it held. See [`Entry::load`] for
    /// the formula.
    pub fn read_loads(&self, now: Duration, out: &mut Vec<Load>) {
        out.clear();
        let now_ns = nanos(now);
        let both = self.pages.iter().zip(&self.entries);
        out.extend(both.map(|(page, entry)| page.load(&entry.endpoint, now, now_ns)));
    }

    /// Writes into `out`, in entry order, which entries have room at `now`, over whatever it held.
    ///
    /// With `R`, `W`, `L`, `L0` as in [`Entry::load`], `U` our requests that the endpoint has whole and has not begun to
    /// answer, and a scrape at most [`STALE_AFTER`] old, an endpoint has room when `max(0, W + max(L - L0, U - R - W)) <= 5`
    /// and its KV use is at most 0.8. What we added since the scrape is taken to wait, and so is what the page does not
    /// show yet (an engine counts once a step, and a step may outlast many scrapes), so that a burst does not pile up in
    /// an engine; but for what is [never shown](Scraped::never_shown). The last place, at exactly 5, is free only while we
    /// booked nothing since the scrape: each gateway takes it by what it reads, none by what it released. Without such a scrape it has room while `L` is
    /// below [`Endpoint::in_flight_unknown_max`]. One left out after failures has none, unless all are.
    pub fn read_room(&self, now: Duration, out: &mut Vec<bool>) -> Room {
        out.clear();
        let now_ns = nanos(now);
        let is_out = |entry: &Entry| entry.endpoint.health.standing(now) == Standing::Out;
        let all_out = self.entries.iter().all(is_out);
        let mut room = Room { with_room: 0, counted: 0, unknown: 0 };
        out.extend(self.pages.iter().zip(&self.entries).map(|(page, entry)| {
            let counts = all_out || !is_out(entry);
            let (has_room, known) = page.room(&entry.endpoint, now_ns);
            room.counted += u32::from(counts);
            room.unknown += u32::from(counts && !known);
            room.with_room += u32::from(counts && has_room);
            counts && has_room
        }));
        room
    }

    /// Who serves `model`, by the endpoints' own lists as known at `now`.
    #[must_use]
    pub fn serving(&self, model: &str, now: Duration) -> Serving<'_> {
        let all_known = self.models_at.is_some_and(|oldest| is_fresh(oldest, now));
        self.models.serving(model, all_known)
    }

    /// All models of the lists known at `now` (at most [`MODELS_FRESH`] old), each id once: the pool's `/v1/models`.
    #[must_use]
    pub fn models(&self, now: Duration) -> Vec<&ServedModel> {
        let known = self.entries.iter().filter_map(|entry| entry.models.as_deref());
        models::merged(known.filter(|list| is_fresh(list.at, now)))
    }

    pub(crate) fn table(&self) -> &Arc<ModelTable> {
        &self.models
    }
}

impl Page {
    fn new(scraped: Option<&Scraped>) -> Self {
        let Some(Scraped { at, metrics, in_flight_then, last_booked, never_shown }) = scraped else {
            return Self {
                stale_at_ns: 0,
                foreign: 0,
                waiting: 0,
                ours_then: 0,
                last_booked: 0,
                shown: 0,
                kv_usage_ratio: 0.0,
            };
        };
        let on_it = metrics.running.saturating_add(metrics.waiting);
        Self {
            stale_at_ns: nanos(*at + STALE_AFTER) + 1,
            foreign: on_it.saturating_sub(*in_flight_then),
            waiting: metrics.waiting,
            ours_then: *in_flight_then,
            last_booked: *last_booked,
            shown: on_it.saturating_add(*never_shown),
            kv_usage_ratio: metrics.kv_usage_ratio,
        }
    }

    /// Whether the endpoint has room, and whether that is known from its metrics.
    fn room(&self, endpoint: &Endpoint, now_ns: u64) -> (bool, bool) {
        let ours = endpoint.ledger.requests();
        if now_ns >= self.stale_at_ns {
            return (ours < endpoint.in_flight_unknown_max(), false);
        }
        let since = self.waiting.saturating_add(ours).saturating_sub(self.ours_then);
        let unseen = self.unseen(endpoint.ledger.unanswered());
        // Nothing unseen says nothing: what ended since the page makes room.
        let waiting = if unseen == 0 { since } else { since.max(self.waiting.saturating_add(unseen)) };
        // Else what one gateway releases is never seen by another (ADR 25).
        let is_last = waiting == WAITING_WITH_ROOM_MAX;
        let given = !is_last || endpoint.ledger.last_booked() == self.last_booked;
        (given && has_room(waiting, self.kv_usage_ratio), true)
    }

    /// Of our unanswered requests those that the page did not show.
    fn unseen(&self, unanswered: u32) -> u32 {
        unanswered.saturating_sub(self.shown)
    }

    // Inlined, a load is written straight into the reader's buffer; by way of the stack it takes three times as long.
    #[inline(always)]
    fn load(&self, endpoint: &Endpoint, now: Duration, now_ns: u64) -> Load {
        let ledger = &endpoint.ledger;
        let ours = ledger.requests();
        let (in_flight, waiting, kv_usage_ratio, known) = if now_ns < self.stale_at_ns {
            let waiting = match self.waiting {
                0 => 0,
                waiting => waiting.saturating_add(ours).saturating_sub(self.ours_then),
            };
            (self.foreign.saturating_add(ours), waiting, self.kv_usage_ratio, LoadStanding::Fresh)
        } else {
            (ours, 0, 0.0, LoadStanding::Unknown)
        };
        let left_out = endpoint.health.standing(now) == Standing::Out;
        Load {
            in_flight,
            waiting,
            prefill_tokens: u32::try_from(ledger.prefill_tokens()).unwrap_or(u32::MAX),
            kv_usage_ratio,
            last_booked: ledger.last_booked(),
            standing: if left_out { LoadStanding::LeftOut } else { known },
        }
    }
}

fn has_room(waiting: u32, kv_usage_ratio: f32) -> bool {
    waiting <= WAITING_WITH_ROOM_MAX && kv_usage_ratio <= KV_USAGE_WITH_ROOM_MAX
}

/// Nanoseconds since the epoch; they last for five centuries.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}

fn is_fresh(list_at: Duration, now: Duration) -> bool {
    now.saturating_sub(list_at) <= MODELS_FRESH
}

#[cfg(test)]
mod tests;
