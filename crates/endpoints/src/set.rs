//! The one writer of a pool's endpoints: who is a member, what was read from each, published as snapshots.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pool::{EndpointSpec, Runtime};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::endpoint::{Endpoint, EndpointId, Slot};
use crate::ledger::Booking;
use crate::models::{ModelList, ModelTable, same_models};
use crate::snapshot::{Entry, Scraped, Snapshot};

/// [`EndpointSet::refresh_models`] asks the endpoints at most once in this time.
pub const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// How long it waits for their answers.
const REFRESH_MAX: Duration = Duration::from_secs(2);

/// The endpoints of one pool.
///
/// Writers take a lock among themselves; readers load the latest [`Snapshot`] and never wait.
#[derive(Debug)]
pub struct EndpointSet {
    current: ArcSwap<Snapshot>,
    writer: Mutex<Writer>,
    bookings: AtomicU64,
    /// Wakes those who wait for a first attempt or a refresh, at each publication.
    published: Notify,
    membership: watch::Sender<u64>,
    /// Told when a booking is released, and at each publication: somebody may have room now.
    freed: Arc<Notify>,
    /// When model lists were last asked for out of turn.
    models_wanted: watch::Sender<Option<Duration>>,
    room_wanted: watch::Sender<bool>,
}

/// What a [`reconcile`](EndpointSet::reconcile) changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// New endpoints.
    pub added: Vec<Arc<Endpoint>>,
    /// Endpoints that are no longer members. Their bookings run out on their own.
    pub removed: Vec<Arc<Endpoint>>,
}

/// What came of reading one endpoint.
#[derive(Debug, Clone)]
pub enum Update {
    /// A scrape ended.
    Scrape {
        /// Whose.
        id: EndpointId,
        /// Whose metrics names the page was read by; of no use once the pool has another.
        runtime: Runtime,
        /// The page, or none if the attempt failed: what was known stays until it is stale.
        scraped: Option<Arc<Scraped>>,
    },
    /// A reading of `/v1/models` ended.
    Models {
        /// Whose.
        id: EndpointId,
        /// When it was sent, since the epoch.
        sent: Duration,
        /// The list, or none if the attempt failed.
        list: Option<Arc<ModelList>>,
    },
}

#[derive(Debug, Default)]
struct Writer {
    members: Vec<Member>,
    index: HashMap<EndpointId, usize>,
    free_slots: BTreeSet<u32>,
    membership: u64,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Member {
    entry: Entry,
    scrape_concluded: bool,
    /// When the last concluded reading of the models was sent.
    models_asked: Option<Duration>,
}

impl Default for EndpointSet {
    fn default() -> Self {
        Self::new()
    }
}

impl EndpointSet {
    /// A set without endpoints.
    #[must_use]
    pub fn new() -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::new(Vec::new(), 0)),
            writer: Mutex::default(),
            bookings: AtomicU64::new(0),
            published: Notify::new(),
            membership: watch::Sender::new(0),
            freed: Arc::default(),
            models_wanted: watch::Sender::new(None),
            room_wanted: watch::Sender::new(false),
        }
    }

    /// The latest snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Books a request on an endpoint of this set; `prefill_tokens` as in [`Booking::book`].
    pub fn book(&self, endpoint: &Arc<Endpoint>, prefill_tokens: u64) -> Booking {
        let sequence = self.bookings.fetch_add(1, Ordering::Relaxed) + 1;
        Booking::book(endpoint, prefill_tokens, sequence)
    }

    /// Resolves when somebody may have room who had none at the last call: a booking was released, a page or a list
    /// was read, the membership changed. For one waiter.
    pub async fn room_may_have_come(&self) {
        self.freed.notified().await;
    }

    /// Whether somebody waits for room. While so, endpoints are scraped as under load, though nothing was booked: others may
    /// be sending to them.
    pub fn want_room(&self, wanted: bool) {
        self.room_wanted.send_if_modified(|present| std::mem::replace(present, wanted) != wanted);
    }

    /// Makes the members those of `specs`. An endpoint whose host and port stay keeps its identity, ledger, health and
    /// what was read from it, its place in the order and its first name; new ones come after. An address given twice
    /// counts once.
    pub fn reconcile(&self, specs: &[EndpointSpec]) -> Changes {
        let mut writer = self.writer.lock();
        let changes = writer.reconcile(specs, &self.freed);
        if !changes.is_empty() {
            writer.membership += 1;
            self.publish(&writer, None);
            self.membership.send_replace(writer.membership);
        }
        drop(writer);
        changes.log();
        changes
    }

    /// Takes in what was read, and publishes it once. What concerns a former member, or was read by the names of
    /// another runtime than the one in force, is dropped.
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) {
        let mut writer = self.writer.lock();
        let mut models_changed = false;
        for update in updates {
            models_changed |= writer.apply(update);
        }
        let table = (!models_changed).then(|| Arc::clone(self.current.load().table()));
        self.publish(&writer, table);
    }

    /// Puts `runtime` in force: scrapes by another one are forgotten, loads are unknown until the first good scrape.
    pub fn use_runtime(&self, runtime: Runtime) {
        let mut writer = self.writer.lock();
        if writer.runtime.replace(runtime) == Some(runtime) {
            return;
        }
        for member in &mut writer.members {
            member.entry.scraped = None;
        }
        self.publish(&writer, Some(Arc::clone(self.current.load().table())));
    }

    /// Resolves to true once each endpoint present has had one scrape concluded, well or badly; to false after
    /// `within`.
    pub async fn settled(&self, within: Duration) -> bool {
        self.until(within, |writer| writer.members.iter().all(|member| member.scrape_concluded)).await
    }

    /// Has the model lists read again, so that an adapter loaded a moment ago is found before anybody says 404. True
    /// once every list was asked for; false when that takes too long. Many callers share one reading, and there is at
    /// most one in [`REFRESH_EVERY`]: in between, what was read counts. The snapshot to look at is the one taken afterwards.
    pub async fn refresh_models(&self, now: Duration) -> bool {
        self.models_wanted.send_if_modified(|wanted| {
            let due = wanted.is_none_or(|last| now >= last + REFRESH_EVERY);
            if due {
                *wanted = Some(now);
            }
            due
        });
        let wanted = *self.models_wanted.borrow();
        self.until(REFRESH_MAX, |writer| writer.members.iter().all(|member| member.models_asked >= wanted))
            .await
    }

    /// Changes with the membership, for the scraper.
    pub(crate) fn watch_membership(&self) -> watch::Receiver<u64> {
        self.membership.subscribe()
    }

    /// Changes when model lists are wanted out of turn, for the scraper.
    pub(crate) fn watch_models_wanted(&self) -> watch::Receiver<Option<Duration>> {
        self.models_wanted.subscribe()
    }

    /// Changes with [`Self::want_room`], for the scraper.
    pub(crate) fn watch_room_wanted(&self) -> watch::Receiver<bool> {
        self.room_wanted.subscribe()
    }

    /// Waits until `done`, looking again after each publication; false after `within`.
    async fn until(&self, within: Duration, done: impl Fn(&Writer) -> bool) -> bool {
        let wait = async {
            loop {
                // Made before the look: it hears of all that is published from now on.
                let published = self.published.notified();
                if done(&self.writer.lock()) {
                    return;
                }
                published.await;
            }
        };
        timeout(within, wait).await.is_ok()
    }

    /// Stores a snapshot of the members; `table` is the present one where no model list changed.
    fn publish(&self, writer: &Writer, table: Option<Arc<ModelTable>>) {
        let entries: Vec<Entry> = writer.members.iter().map(|member| member.entry.clone()).collect();
        let snapshot = match table {
            Some(table) => Snapshot::with_table(entries, writer.membership, table),
            None => Snapshot::new(entries, writer.membership),
        };
        self.current.store(Arc::new(snapshot));
        self.published.notify_waiters();
        self.freed.notify_one();
    }
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }

    fn log(&self) {
        for endpoint in &self.added {
            tracing::info!(endpoint = endpoint.authority(), name = &*endpoint.spec.name, "endpoint added");
        }
        for endpoint in &self.removed {
            tracing::info!(endpoint = endpoint.authority(), name = &*endpoint.spec.name, "endpoint removed");
        }
    }
}

impl Writer {
    fn reconcile(&mut self, specs: &[EndpointSpec], freed: &Arc<Notify>) -> Changes {
        let mut wanted: HashSet<_> = specs.iter().map(address).collect();
        let mut changes = Changes::default();
        let free_slots = &mut self.free_slots;
        self.members.retain(|member| {
            let endpoint = &member.entry.endpoint;
            // What is left in `wanted` afterwards is new.
            let stays = wanted.remove(&address(&endpoint.spec));
            if !stays {
                free_slots.insert(endpoint.slot.get());
                changes.removed.push(Arc::clone(endpoint));
            }
            stays
        });
        for spec in specs.iter().filter(|spec| wanted.remove(&address(spec))) {
            let slot = self.take_slot();
            let endpoint = Arc::new(Endpoint::in_set(slot, spec.clone(), Arc::clone(freed)));
            changes.added.push(Arc::clone(&endpoint));
            self.members.push(Member::new(endpoint));
        }
        self.index =
            self.members.iter().enumerate().map(|(at, member)| (member.entry.endpoint.id, at)).collect();
        changes
    }

    /// The lowest slot that no member has.
    fn take_slot(&mut self) -> Slot {
        // Slots in use and free ones together are 0..n without a gap, so with none free the next is the members' number.
        let next = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        Slot::new(self.free_slots.pop_first().unwrap_or(next))
    }

    /// Takes in one update; true if it changed which models are listed.
    fn apply(&mut self, update: Update) -> bool {
        let (Update::Scrape { id, .. } | Update::Models { id, .. }) = update;
        let Some(member) = self.index.get(&id).and_then(|&at| self.members.get_mut(at)) else {
            return false;
        };
        match update {
            Update::Scrape { runtime, scraped, .. } => {
                if self.runtime.is_none_or(|in_force| in_force == runtime) {
                    member.scrape_concluded = true;
                    let endpoint = &member.entry.endpoint;
                    let unanswered = endpoint.ledger.unanswered();
                    if let Some(scraped) = scraped.as_ref().filter(|scraped| scraped.tells_room(unanswered)) {
                        endpoint.had_room_at(scraped.in_flight_then);
                    }
                    member.entry.scraped = scraped.or(member.entry.scraped.take());
                }
                false
            }
            Update::Models { sent, list, .. } => {
                member.models_asked = member.models_asked.max(Some(sent));
                let Some(list) = list else { return false };
                let changed = !same_models(member.entry.models.as_deref(), Some(&list));
                member.entry.models = Some(list);
                changed
            }
        }
    }
}

impl Member {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        let entry = Entry { endpoint, scraped: None, models: None };
        Self { entry, scrape_concluded: false, models_asked: None }
    }
}

/// What makes an endpoint the same one as before, whatever it is called now.
fn address(spec: &EndpointSpec) -> (Arc<str>, u16, bool) {
    (Arc::clone(&spec.host), spec.port, spec.tls)
}

#[cfg(test)]
mod tests;
