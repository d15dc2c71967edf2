//! A pool in service: what was declared, who can serve, and the router between them. Changed while requests run:
//! a declaration is swapped whole, and a request in flight keeps the one it began with.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use endpoints::{Booking, Clock, Endpoint, EndpointSet, Room, ScrapeConfig, Snapshot};
use parking_lot::{Mutex, MutexGuard};
use pool::{
    AppProtocol, Catalog, EndpointSpec, Fault, FaultKind, InferencePool, PoolId, PoolPolicy, PoolVersion,
    RoutingStrategy, Setting,
};
use routing::{Decision, PickReason, Receipt, Request, Router};
use telemetry::Metrics;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::queue::Gate;
use crate::reason::{Reason, Refusal};

/// How many endpoints are named after the pick, at most.
pub const FALLBACKS_MAX: usize = 7;
/// The reason label of picks that followed a failed attempt.
pub(crate) const RETRY: &str = "retry";
/// Steps of eviction under one hold of the router's lock: some ten microseconds.
const EVICT_STEPS: usize = 256;
/// How many known models a 404 names.
const MODELS_NAMED_MAX: usize = 20;

/// What an operator declares: one pool, what belongs to it, and its endpoints.
#[derive(Clone, Debug)]
pub struct Declaration {
    /// The pool as written.
    pub pool: InferencePool,
    /// What its InferenceModels, InferenceModelRewrites and InferenceObjectives say.
    pub catalog: Catalog,
    /// Who can serve.
    pub endpoints: Vec<EndpointSpec>,
    /// Pods that the pool's selector matches, Ready or not; none where endpoints are told without pods.
    pub pods: Option<usize>,
}

/// The part of a declaration that requests read; immutable.
#[derive(Debug)]
pub struct InForce {
    /// Which API version declared the pool.
    pub version: PoolVersion,
    /// The settings, parsed.
    pub policy: PoolPolicy,
    /// The settings as text, each with its origin.
    pub settings: Vec<Setting>,
    /// What is wrong with the annotations of the present declaration.
    pub faults: Vec<Fault>,
    /// What the pool's endpoints speak.
    pub app_protocol: AppProtocol,
    /// What is said of models and objectives.
    pub catalog: Catalog,
    /// Why nobody can serve, where no endpoint is declared.
    pub lacks: Option<String>,
}

/// A pool in service.
pub struct ServedPool {
    id: PoolId,
    /// What metrics call it.
    label: String,
    in_force: ArcSwap<InForce>,
    endpoints: Arc<EndpointSet>,
    /// Guards match, pick, book and record together, so that a burst on several threads spreads as evenly as on
    /// one. Held for about a microsecond, never across an await.
    router: Mutex<Router>,
    scrape: watch::Sender<ScrapeConfig>,
    pub(crate) gate: Gate,
    clock: Clock,
    cancel: CancellationToken,
}

/// What a request asks of the router.
pub(crate) struct Question<'a> {
    pub(crate) model: Option<&'a str>,
    pub(crate) blocks: &'a [u64],
    pub(crate) prompt_tokens: u32,
    /// Who may be picked: `host:port`, or a host for all its ports. `None`: anybody.
    pub(crate) subset: Option<&'a [String]>,
}

/// A decision that was booked and recorded.
pub(crate) struct Pick {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) decision: Decision,
    pub(crate) rank: usize,
    pub(crate) booking: Booking,
    pub(crate) receipt: Option<Receipt>,
    /// How long the decision took.
    pub(crate) took: Duration,
}

/// Why nobody is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoPick {
    /// The pool has no endpoint for the request.
    Nobody,
    /// Those that it has are full; the whole pool is, or only those for this request.
    NoRoom { saturated: bool },
}

impl Pick {
    /// Whether the endpoint at that rank is still in the pool.
    fn is_member(&self, rank: usize, members: &Snapshot) -> bool {
        let id = self.snapshot.entries[self.decision.ranked[rank].entry as usize].endpoint.id;
        members.membership == self.snapshot.membership
            || members.entries.iter().any(|entry| entry.endpoint.id == id)
    }
}

impl ServedPool {
    /// Puts `declaration` in service: resolves its settings and starts to scrape its endpoints.
    pub(crate) fn start(
        declaration: &Declaration,
        label: &str,
        clock: Clock,
        seed: u64,
        metrics: &Arc<Metrics>,
        tracker: &TaskTracker,
        cancel: CancellationToken,
    ) -> Arc<ServedPool> {
        let in_force = resolve(declaration, None);
        let endpoints = Arc::new(EndpointSet::new());
        let (scrape, scrape_changes) = watch::channel(scrape_config(&in_force.policy));
        endpoints::spawn(Arc::clone(&endpoints), scrape_changes, clock, tracker, cancel.clone());
        let pool = Arc::new(ServedPool {
            id: declaration.pool.id.clone(),
            label: label.to_owned(),
            router: Mutex::new(Router::new(&in_force.policy.prefix_cache, seed)),
            gate: Gate::new(&in_force.policy.queueing),
            in_force: ArcSwap::from_pointee(in_force),
            endpoints,
            scrape,
            clock,
            cancel: cancel.clone(),
        });
        let dispatcher = Arc::clone(&pool).dispatch_for_ever(clock, Arc::clone(metrics));
        tracker.spawn(cancel.run_until_cancelled_owned(dispatcher));
        pool.reconcile(&declaration.endpoints, metrics);
        pool.tell_what_lacks(None);
        pool.tell_faults(&[], metrics);
        pool
    }

    /// Which pool this is.
    #[must_use]
    pub fn id(&self) -> &PoolId {
        &self.id
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// What is in force now.
    #[must_use]
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Who can serve now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.endpoints.snapshot()
    }

    /// Resolves once every endpoint has been scraped once, well or badly, or after `patience`.
    pub async fn settled(&self, patience: Duration) {
        self.endpoints.settled(patience).await;
    }

    /// Blocks in the prefix index, summed over endpoints.
    #[must_use]
    pub fn prefix_blocks(&self) -> usize {
        self.router.lock().index().blocks_held()
    }

    /// Takes a changed declaration in force. Requests in flight keep what they began with.
    pub(crate) fn change(&self, declaration: &Declaration, metrics: &Metrics) {
        let last = self.in_force.load_full();
        let next = resolve(declaration, Some(&last.policy));
        let policy = next.policy.clone();
        self.in_force.store(Arc::new(next));
        if policy.prefix_cache != last.policy.prefix_cache {
            self.reshape_index(&policy);
        }
        let config = scrape_config(&policy);
        self.scrape.send_if_modified(|present| {
            let changed = *present != config;
            *present = config;
            changed
        });
        self.reconcile(&declaration.endpoints, metrics);
        self.tell_what_lacks(last.lacks.as_deref());
        self.gate.change(&policy.queueing, self.clock.now(), metrics);
        self.tell_faults(&last.faults, metrics);
        if policy != last.policy {
            let changes = describe_change(&last.settings, &self.in_force.load().settings);
            tracing::info!(pool = %self.id, "settings changed: {changes}");
        }
    }

    /// Stops to scrape; requests in flight go on, those that wait are refused.
    pub(crate) fn stop(&self, metrics: &Metrics) {
        self.gate.close(Reason::PoolGone, self.clock.now(), metrics);
        self.cancel.cancel();
        metrics.forget_pool(&self.id.to_string());
        for entry in &self.snapshot().entries {
            forget_endpoint(metrics, &entry.endpoint);
        }
    }

    /// What the scan of a body must find before a decision can be made.
    pub(crate) fn need(&self, in_force: &InForce, now: Duration) -> inference::Need {
        let prefix = &in_force.policy.prefix_cache;
        let snapshot = self.endpoints.snapshot();
        inference::Need {
            prompt_bytes_max: match in_force.policy.routing_strategy {
                RoutingStrategy::Default => 0,
                RoutingStrategy::PrefixCache => {
                    prefix.block_size_bytes as usize * prefix.prefix_blocks_max as usize
                }
            },
            model_required: names_matter(in_force, &snapshot, now),
            stream_wanted: true,
        }
    }

    /// Whether some endpoint serves `model`, as far as can be told. The lists are asked for again before
    /// anybody is told 404: an adapter may have been loaded a moment ago. Endpoints too slow to tell are left to answer
    /// themselves.
    pub(crate) async fn check_model(
        &self,
        in_force: &InForce,
        model: &str,
        now: Duration,
    ) -> Result<(), Refusal> {
        if in_force.catalog.names(model) || self.may_serve(model, now) {
            return Ok(());
        }
        if !self.endpoints.refresh_models(now).await || self.may_serve(model, now) {
            return Ok(());
        }
        let snapshot = self.endpoints.snapshot();
        let known: Vec<&str> =
            snapshot.models(now).iter().take(MODELS_NAMED_MAX).map(|model| &*model.id).collect();
        Err(Refusal::new(
            Reason::UnknownModel,
            format!("the model `{}` does not exist here; known models: {}", shorten(model), known.join(", ")),
        ))
    }

    /// The models of all endpoints, merged, as OpenAI lists them.
    pub(crate) async fn models(&self, now: Duration) -> Result<String, Refusal> {
        if self.endpoints.snapshot().models(now).is_empty() {
            self.endpoints.refresh_models(now).await;
        }
        let snapshot = self.endpoints.snapshot();
        let models = snapshot.models(now);
        if models.is_empty() {
            return Err(self.no_endpoint());
        }
        let data: Vec<&str> = models.iter().map(|model| &*model.raw).collect();
        Ok(format!(r#"{{"object":"list","data":[{}]}}"#, data.join(",")))
    }

    fn may_serve(&self, model: &str, now: Duration) -> bool {
        let snapshot = self.endpoints.snapshot();
        let serving = snapshot.serving(model, now);
        !(serving.all_known && serving.nobody())
    }

    /// Decides, books and records, all under one short lock. With `room` the pick has room; those after it on the list
    /// may have none.
    pub(crate) fn pick(
        &self,
        question: &Question<'_>,
        policy: &PoolPolicy,
        room: bool,
        now: Duration,
    ) -> Result<Pick, NoPick> {
        let begun = Instant::now();
        let mut router = self.router.lock();
        // Loaded under the lock: the slots that the index knows are those of this snapshot.
        let snapshot = self.endpoints.snapshot();
        let subset = question.subset.map(|subset| members_of(subset, &snapshot));
        let mut decide = |subset: Option<&[bool]>| {
            let request = Request {
                model: question.model,
                blocks: question.blocks,
                prompt_tokens: question.prompt_tokens,
                serving: question.model.map(|model| snapshot.serving(model, now)),
                subset,
            };
            router.pick(&request, &snapshot, policy, now, FALLBACKS_MAX)
        };
        let decision = if room {
            let mut with_room = Vec::new();
            let seen = snapshot.read_room(now, &mut with_room);
            if let Some(subset) = &subset {
                with_room.iter_mut().zip(subset).for_each(|(has_room, named)| *has_room &= named);
            }
            // Who is left out by that may still be fallen back on.
            let all = decide(subset.as_deref()).ok_or(NoPick::Nobody)?;
            let best = decide(Some(&with_room)).ok_or(NoPick::NoRoom { saturated: seen.is_saturated() })?;
            with_fallbacks(best, all)
        } else {
            decide(subset.as_deref()).ok_or(NoPick::Nobody)?
        };
        let rank = first_admitted(&decision, &snapshot, 0..decision.ranked.len(), now).unwrap_or(0);
        let (booking, receipt) = self.book(&mut router, &decision, &snapshot, rank, question.blocks);
        drop(router);
        Ok(Pick { snapshot, decision, rank, booking, receipt, took: begun.elapsed() })
    }

    /// Picks an endpoint whether it has room or not.
    ///
    /// # Errors
    /// When there is nobody to pick.
    pub(crate) fn pick_at_once(&self, question: &Question<'_>, now: Duration) -> Result<Pick, Refusal> {
        self.pick(question, &self.in_force.load().policy, false, now).map_err(|_| self.no_endpoint())
    }

    /// How many endpoints can take more now.
    pub(crate) fn room(&self, now: Duration) -> Room {
        self.endpoints.snapshot().read_room(now, &mut Vec::new())
    }

    /// Whether nobody is there.
    pub(crate) fn is_empty(&self) -> bool {
        self.endpoints.snapshot().entries.is_empty()
    }

    /// Whether requests wait for room: endpoints that have none are then asked as often as those under load.
    pub(crate) fn want_room(&self, wanted: bool) {
        self.endpoints.want_room(wanted);
    }

    /// Resolves when somebody may have room who had none.
    pub(crate) async fn room_may_have_come(&self) {
        self.endpoints.room_may_have_come().await;
    }

    /// Whether a pick's list goes on.
    pub(crate) fn has_next(&self, pick: &Pick) -> bool {
        let members = self.endpoints.snapshot();
        (pick.rank + 1..pick.decision.ranked.len()).any(|rank| pick.is_member(rank, &members))
    }

    /// Moves a pick to the next endpoint of its list after the present one failed before its first byte. False
    /// when the list is at its end.
    pub(crate) fn pick_next(&self, pick: &mut Pick, blocks: &[u64], now: Duration) -> bool {
        let mut router = self.router.lock();
        if let Some(receipt) = pick.receipt.take() {
            router.unrecord(&receipt, blocks);
        }
        // Endpoints that left the pool since the decision are passed over: their slots may be others' by now.
        let members = self.endpoints.snapshot();
        let later =
            (pick.rank + 1..pick.decision.ranked.len()).filter(|&rank| pick.is_member(rank, &members));
        let Some(rank) = first_admitted(&pick.decision, &pick.snapshot, later, now) else {
            return false;
        };
        let (booking, receipt) = self.book(&mut router, &pick.decision, &pick.snapshot, rank, blocks);
        drop(router);
        pick.rank = rank;
        pick.booking = booking;
        pick.receipt = receipt;
        true
    }

    /// Moves a pick to the endpoint that served it in fact: whoever sends requests on may have fallen back. False when
    /// the pool has no such endpoint.
    pub(crate) fn pick_served(&self, pick: &mut Pick, authority: &str, blocks: &[u64]) -> bool {
        let mut router = self.router.lock();
        let members = self.endpoints.snapshot();
        let Some(entry) = members.entries.iter().find(|entry| entry.endpoint.authority() == authority) else {
            return false;
        };
        if let Some(receipt) = pick.receipt.take() {
            router.unrecord(&receipt, blocks);
        }
        let uncached = pick.decision.ranked[pick.rank].cost.uncached;
        pick.booking = self.endpoints.book(&entry.endpoint, uncached);
        pick.receipt = (!blocks.is_empty()).then(|| router.record(&entry.endpoint, blocks));
        true
    }

    /// Takes back what was recorded for a request that never got to its endpoint.
    pub(crate) fn unrecord(&self, receipt: &Receipt, blocks: &[u64]) {
        self.router.lock().unrecord(receipt, blocks);
    }

    fn book(
        &self,
        router: &mut Router,
        decision: &Decision,
        snapshot: &Snapshot,
        rank: usize,
        blocks: &[u64],
    ) -> (Booking, Option<Receipt>) {
        let ranked = &decision.ranked[rank];
        let endpoint = &snapshot.entries[ranked.entry as usize].endpoint;
        let booking = self.endpoints.book(endpoint, ranked.cost.uncached);
        let receipt = (!blocks.is_empty()).then(|| router.record(endpoint, blocks));
        (booking, receipt)
    }

    pub(crate) fn no_endpoint(&self) -> Refusal {
        let mut message =
            format!("the InferencePool {} has no endpoint that can serve this request now", self.id);
        if let Some(why) = &self.in_force.load().lacks {
            message = format!("{message}: {why}");
        }
        Refusal::new(Reason::NoEndpoint, message)
    }

    fn reconcile(&self, specs: &[EndpointSpec], metrics: &Metrics) {
        let changes = self.endpoints.reconcile(specs);
        for endpoint in &changes.removed {
            forget_endpoint(metrics, endpoint);
        }
        if !changes.removed.is_empty() {
            let snapshot = self.endpoints.snapshot();
            self.router.lock().retain(&snapshot);
            self.evict();
        }
    }

    /// Tells that nobody can serve, and why, where that was not so `before`.
    fn tell_what_lacks(&self, before: Option<&str>) {
        let in_force = self.in_force.load();
        if let Some(why) = in_force.lacks.as_deref().filter(|why| before != Some(why)) {
            tracing::warn!(pool = %self.id, "the pool has no endpoints: {why}; requests get 503 until one appears");
        }
    }

    /// Brings the prefix index in step with the policy, a little at a time so that requests are not held up.
    fn reshape_index(&self, policy: &PoolPolicy) {
        let discarded = self.router.lock().configure(&policy.prefix_cache);
        // A big index is freed outside the lock.
        drop(discarded);
        self.evict();
    }

    fn evict(&self) {
        let mut router = self.router.lock();
        while router.evict_step(EVICT_STEPS) {
            // Lets in whoever waits.
            MutexGuard::bump(&mut router);
        }
    }

    /// Says each fault once, wherever in its file it moves to: `told` are those of the last declaration.
    fn tell_faults(&self, told: &[Fault], metrics: &Metrics) {
        let in_force = self.in_force.load();
        let same = |fault: &Fault, other: &Fault| fault.key == other.key && fault.what == other.what;
        for fault in in_force.faults.iter().filter(|fault| !told.iter().any(|other| same(fault, other))) {
            tracing::warn!(pool = %self.id, "{fault}");
        }
        let invalid =
            in_force.faults.iter().filter(|fault| fault.kind == FaultKind::InvalidAnnotation).count();
        metrics.set_invalid_settings(&self.id.to_string(), invalid);
    }
}

fn resolve(declaration: &Declaration, last: Option<&PoolPolicy>) -> InForce {
    let pool = &declaration.pool;
    let resolved = PoolPolicy::resolve(&pool.annotations, last);
    InForce {
        version: pool.version,
        policy: resolved.policy,
        settings: resolved.settings,
        faults: resolved.faults,
        app_protocol: pool.app_protocol,
        catalog: declaration.catalog.clone(),
        lacks: declaration.endpoints.is_empty().then(|| match declaration.pods {
            None => "none is declared".to_owned(),
            Some(0) => "no pod has the labels of its selector".to_owned(),
            Some(pods) => format!("of {pods} with the labels of its selector no pod is Ready on its ports"),
        }),
    }
}

/// Whether a decision depends on the model's name: then a body is read until it is known.
fn names_matter(in_force: &InForce, snapshot: &Snapshot, now: Duration) -> bool {
    in_force.catalog.model_matters() || snapshot.reports_lora || snapshot.serving("", now).models_differ
}

/// Which entries of `snapshot` a subset names, by address or by host alone.
fn members_of(subset: &[String], snapshot: &Snapshot) -> Vec<bool> {
    let named: HashSet<&str> =
        subset.iter().map(|name| name.trim().trim_start_matches('[').trim_end_matches(']')).collect();
    let is_named = |endpoint: &Endpoint| {
        let authority = endpoint.authority();
        named.contains(&*endpoint.spec.host) || named.contains(authority.trim_start_matches('['))
    };
    snapshot.entries.iter().map(|entry| is_named(&entry.endpoint)).collect()
}

/// `best`, and after those it ranks the others of `all`.
fn with_fallbacks(mut best: Decision, all: Decision) -> Decision {
    for ranked in all.ranked {
        if best.ranked.len() <= FALLBACKS_MAX && best.ranked.iter().all(|other| other.entry != ranked.entry) {
            best.ranked.push(ranked);
        }
    }
    best.candidates = all.candidates;
    best
}

fn scrape_config(policy: &PoolPolicy) -> ScrapeConfig {
    ScrapeConfig { runtime: policy.runtime, target: policy.metrics.clone() }
}

/// The first of `ranks` whose endpoint may take a request now, or the first at all: one that was left out is tried
/// by one request at a time.
fn first_admitted(
    decision: &Decision,
    snapshot: &Snapshot,
    ranks: impl IntoIterator<Item = usize> + Clone,
    now: Duration,
) -> Option<usize> {
    let endpoint = |rank: usize| &snapshot.entries[decision.ranked[rank].entry as usize].endpoint;
    let mut in_order = ranks.clone().into_iter();
    in_order.find(|&rank| endpoint(rank).health.admits(now)).or_else(|| ranks.into_iter().next())
}

fn forget_endpoint(metrics: &Metrics, endpoint: &Endpoint) {
    let reasons = PickReason::ALL.iter().map(|reason| reason.as_str()).chain([RETRY]);
    metrics.forget_endpoint(endpoint.authority(), reasons);
}

/// A text from a client, bounded for messages.
fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 120;
    if text.chars().count() <= CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(CHARS_MAX).chain(['…']).collect()
}

/// The settings that differ, `key: before -> after`.
fn describe_change(before: &[Setting], after: &[Setting]) -> String {
    let pairs = before.iter().zip(after).filter(|(before, after)| before.value != after.value);
    let changes: Vec<_> =
        pairs.map(|(before, after)| format!("{}: {} -> {}", after.key, before.value, after.value)).collect();
    changes.join(", ")
}
