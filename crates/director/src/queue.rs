//! Where requests wait while nobody has room: the core's queue behind a lock, and the task that lets them go.
//!
//! ```text
//! admit ── there is room, nobody waits ──────────────────────> Pick
//!   └─ flow::Queue ── room came, by priority ── pick, book ──> Pick      by the one dispatcher
//!        ├── too long, no place, switched off, stopped ──────> Refusal
//!        └── its client is gone: Wait is dropped
//! ```
//!
//! Invariants
//! - Room is looked for and taken under the router's lock: what is sent on never exceeds it.
//! - Nobody who comes overtakes anybody who waits.
//! - The queue's lock is held for a batch of picks at most, and never across an await; answers are sent outside of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use endpoints::Clock;
use flow::{Arrival, Band, Left, Limits, Queue, Rate, Ticket, Verdict};
use parking_lot::Mutex;
use pool::{PoolPolicy, QueueingPolicy};
use telemetry::Metrics;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use crate::reason::{Reason, Refusal};
use crate::served_pool::{NoPick, Pick, Question, ServedPool};

/// How many leave under one hold of the lock: some tens of microseconds.
const BATCH: usize = 32;
/// How many may wait, whatever the size of their bodies.
const WAITING_MAX: usize = 100_000;
/// The label of requests that left for an endpoint.
const DISPATCHED: &str = "dispatched";

/// What decides when a request goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rank<'a> {
    pub(crate) priority: i64,
    /// Whose it is.
    pub(crate) fairness_id: &'a str,
    /// Of its body.
    pub(crate) bytes: u64,
    /// In tokens.
    pub(crate) work: u64,
}

/// The queue of one pool.
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Told when somebody came, or what is in force changed.
    nudge: Notify,
}

struct State {
    queue: Queue<Waiter>,
    rate: Rate,
    /// Set once nobody may wait any more: why.
    closed: Option<Reason>,
}

/// A request that waits.
struct Waiter {
    model: Option<String>,
    blocks: Vec<u64>,
    prompt_tokens: u32,
    subset: Option<Vec<String>>,
    /// What it is told when it leaves.
    outcome: Option<Result<Pick, Refusal>>,
    answer: oneshot::Sender<Result<Pick, Refusal>>,
}

/// A request's wait. Dropped before its end it leaves the queue.
struct Wait<'a> {
    pool: &'a ServedPool,
    clock: Clock,
    metrics: &'a Metrics,
    ticket: Ticket,
    answer: oneshot::Receiver<Result<Pick, Refusal>>,
}

/// What becomes of a request that comes.
#[expect(clippy::large_enum_variant, reason = "moved once, and never stored")]
enum Entered {
    Goes(Pick),
    Waits(Ticket, oneshot::Receiver<Result<Pick, Refusal>>),
}

/// The queue as it is now.
pub(crate) struct QueueView {
    pub(crate) waiting: usize,
    pub(crate) bytes: u64,
    pub(crate) oldest: Duration,
    pub(crate) dispatch_rate: f64,
    pub(crate) bands: Vec<Band>,
}

impl Gate {
    pub(crate) fn new(policy: &QueueingPolicy) -> Gate {
        let state = State { queue: Queue::new(limits(policy)), rate: Rate::default(), closed: None };
        Gate { state: Mutex::new(state), nudge: Notify::new() }
    }

    pub(crate) fn view(&self, now: Duration) -> QueueView {
        let state = self.state.lock();
        QueueView {
            waiting: state.queue.len(),
            bytes: state.queue.bytes(),
            oldest: state.queue.oldest().map_or(Duration::ZERO, |at| now.saturating_sub(at)),
            dispatch_rate: state.rate.per_second(now),
            bands: state.queue.bands().collect(),
        }
    }

    /// Takes a changed policy in force, also for those that wait.
    pub(crate) fn change(&self, policy: &QueueingPolicy, now: Duration, metrics: &Metrics) {
        let mut left = Vec::new();
        let mut state = self.state.lock();
        state.queue.set_limits(now, limits(policy), &mut left);
        for discarded in &mut left {
            discarded.waiter.outcome = Some(Err(state.discarded(now, discarded.priority)));
        }
        drop(state);
        self.nudge.notify_one();
        tell(left, metrics);
    }

    /// From now on nobody waits: those that do are refused for `reason`, as are those that would have to.
    pub(crate) fn close(&self, reason: Reason, now: Duration, metrics: &Metrics) {
        let mut left = Vec::new();
        let mut state = self.state.lock();
        state.closed = Some(reason);
        state.queue.dispatch(now, usize::MAX, |_, _| Verdict::Go, &mut left);
        drop(state);
        for closed in &mut left {
            closed.waiter.outcome = Some(Err(closed_for(reason)));
        }
        tell(left, metrics);
    }
}

impl State {
    fn retry_after(&self, now: Duration, priority: i64) -> Duration {
        self.rate.retry_after(now, self.queue.ahead(priority))
    }

    fn discarded(&self, now: Duration, priority: i64) -> Refusal {
        let message = "the queue is full, and this request made room for one of its own or a higher priority";
        Refusal::new(Reason::QueueFull, message).after(self.retry_after(now, priority))
    }
}

impl ServedPool {
    /// Picks an endpoint for a request, now or when its turn has come.
    ///
    /// # Errors
    /// When there is nobody to pick, and when it may not wait, or no longer.
    pub(crate) async fn admit(
        &self,
        question: &Question<'_>,
        rank: Rank<'_>,
        clock: Clock,
        metrics: &Metrics,
    ) -> Result<Pick, Refusal> {
        let now = clock.now();
        let in_force = self.in_force();
        if !in_force.policy.queueing.enabled {
            if rank.priority < 0 && self.room(now).is_saturated() {
                return Err(shed().after(self.gate.state.lock().retry_after(now, rank.priority)));
            }
            return self.pick_at_once(question, now);
        }
        let mut discarded = Vec::new();
        let entered = self.enter(question, rank, &in_force.policy, now, &mut discarded);
        tell(discarded, metrics);
        match entered? {
            Entered::Goes(pick) => Ok(pick),
            Entered::Waits(ticket, answer) => {
                self.gate.nudge.notify_one();
                Wait { pool: self, clock, metrics, ticket, answer }.until_told().await
            }
        }
    }

    fn enter(
        &self,
        question: &Question<'_>,
        rank: Rank<'_>,
        policy: &PoolPolicy,
        now: Duration,
        discarded: &mut Vec<Left<Waiter>>,
    ) -> Result<Entered, Refusal> {
        let mut state = self.gate.state.lock();
        if state.queue.is_empty() {
            match self.pick(question, policy, true, now) {
                Ok(pick) => return Ok(Entered::Goes(pick)),
                Err(NoPick::Nobody) => return Err(self.no_endpoint()),
                Err(NoPick::NoRoom { .. }) => {}
            }
        } else if self.is_empty() {
            return Err(self.no_endpoint());
        }
        if let Some(reason) = state.closed {
            return Err(closed_for(reason));
        }
        let (answer, told) = oneshot::channel();
        let flow = self.flow_of(question, rank.fairness_id, now);
        let arrival = Arrival { priority: rank.priority, flow: &flow, bytes: rank.bytes, work: rank.work };
        match state.queue.arrive(now, &arrival, Waiter::new(question, answer), discarded) {
            Ok(ticket) => {
                for left in discarded {
                    left.waiter.outcome = Some(Err(state.discarded(now, left.priority)));
                }
                Ok(Entered::Waits(ticket, told))
            }
            Err(_) => {
                let message = format!(
                    "the queue is full: a body of {} bytes does not fit beside requests of higher priority in the {} bytes of \
                     total-queue-capacity",
                    rank.bytes, policy.queueing.capacity_bytes
                );
                Err(Refusal::new(Reason::QueueFull, message).after(state.retry_after(now, rank.priority)))
            }
        }
    }

    /// Whose turn a request waits for. Where endpoints serve different models those of one model are not held up by those
    /// of another.
    fn flow_of<'a>(&self, question: &Question<'_>, fairness_id: &'a str, now: Duration) -> Cow<'a, str> {
        match question.model {
            Some(model) if self.snapshot().serving(model, now).models_differ => {
                Cow::Owned(format!("{fairness_id}\0{model}"))
            }
            _ => Cow::Borrowed(fairness_id),
        }
    }

    /// Lets those go for whom there is room, and those whose time is over. Runs until the pool is stopped.
    pub(crate) async fn dispatch_for_ever(self: Arc<Self>, clock: Clock, metrics: Arc<Metrics>) {
        let mut blind = false;
        loop {
            if self.dispatch(clock.now(), &metrics) {
                // Lets in who comes meanwhile.
                tokio::task::yield_now().await;
                continue;
            }
            let due = self.gate.state.lock().queue.next_expiry();
            self.want_room(due.is_some());
            let Some(due) = due else {
                self.gate.nudge.notified().await;
                continue;
            };
            self.tell_blindness(&mut blind, clock.now());
            tokio::select! {
                () = self.gate.nudge.notified() => {}
                () = self.room_may_have_come() => {}
                () = sleep(due.saturating_sub(clock.now())) => {}
            }
        }
    }

    /// One batch. True if there may be more to do.
    fn dispatch(&self, now: Duration, metrics: &Metrics) -> bool {
        let in_force = self.in_force();
        let queueing = in_force.policy.queueing.enabled;
        let mut left = Vec::new();
        let mut guard = self.gate.state.lock();
        let State { queue, rate, .. } = &mut *guard;
        left.extend(std::iter::from_fn(|| queue.expire(now)).take(BATCH));
        for late in &mut left {
            let retry_after = rate.retry_after(now, queue.ahead(late.priority));
            late.waiter.outcome = Some(Err(too_late(retry_after, late.waited)));
        }
        let expired = left.len();
        let mut gone = Vec::new();
        let shed_until = rate.retry_after(now, 0);
        let admit = |waiter: &mut Waiter, priority: i64| {
            if waiter.answer.is_closed() {
                return Verdict::Go;
            }
            let picked = if !queueing && priority < 0 && self.room(now).is_saturated() {
                Err(shed().after(shed_until))
            } else {
                match self.pick(&waiter.question(), &in_force.policy, queueing, now) {
                    Ok(pick) => Ok(pick),
                    Err(NoPick::Nobody) => Err(self.no_endpoint()),
                    Err(NoPick::NoRoom { saturated: true }) => return Verdict::Nobody,
                    Err(NoPick::NoRoom { saturated: false }) => return Verdict::NotThis,
                }
            };
            waiter.outcome = Some(picked);
            Verdict::Go
        };
        let more = queue.dispatch(now, BATCH, admit, &mut gone);
        gone.iter().filter(|left| matches!(left.waiter.outcome, Some(Ok(_)))).for_each(|_| rate.count(now));
        drop(guard);
        left.append(&mut gone);
        tell(left, metrics);
        more || expired == BATCH
    }

    /// Says it once when those that wait are let go by our own count alone, and once when that is over.
    fn tell_blindness(&self, blind: &mut bool, now: Duration) {
        let room = self.room(now);
        let is_blind = room.counted > 0 && room.unknown == room.counted;
        if is_blind == std::mem::replace(blind, is_blind) {
            return;
        }
        if is_blind {
            tracing::warn!(pool = %self.id(), "no endpoint's metrics can be read: requests wait by what is in flight alone");
        } else {
            tracing::info!(pool = %self.id(), "metrics are read again: requests wait by the endpoints' load");
        }
    }
}

impl Waiter {
    fn new(question: &Question<'_>, answer: oneshot::Sender<Result<Pick, Refusal>>) -> Waiter {
        Waiter {
            model: question.model.map(str::to_owned),
            blocks: question.blocks.to_vec(),
            prompt_tokens: question.prompt_tokens,
            subset: question.subset.map(<[String]>::to_vec),
            outcome: None,
            answer,
        }
    }

    fn question(&self) -> Question<'_> {
        Question {
            model: self.model.as_deref(),
            blocks: &self.blocks,
            prompt_tokens: self.prompt_tokens,
            subset: self.subset.as_deref(),
        }
    }
}

impl Wait<'_> {
    async fn until_told(mut self) -> Result<Pick, Refusal> {
        let told = (&mut self.answer).await;
        // Whoever lets a request go tells it, unless the whole process ends.
        told.unwrap_or_else(|_| Err(closed_for(Reason::ShuttingDown)))
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        // Nothing is found where it was told.
        let left = self.pool.gate.state.lock().queue.remove(self.clock.now(), self.ticket);
        tell(left, self.metrics);
    }
}

/// Tells requests that left what became of them. One without an outcome left because its client did.
fn tell(left: impl IntoIterator<Item = Left<Waiter>>, metrics: &Metrics) {
    for Left { waiter, waited, .. } in left {
        metrics.queue_duration.observe(waited.as_secs_f64());
        let reason = match &waiter.outcome {
            Some(Ok(_)) => DISPATCHED,
            Some(Err(refusal)) => refusal.reason.word(),
            None => Reason::ClientGone.word(),
        };
        metrics.count_queue_left(reason);
        if let Some(outcome) = waiter.outcome {
            // A client that left in this moment is told nothing; what was booked for it is released.
            let _ = waiter.answer.send(outcome);
        }
    }
}

fn limits(policy: &QueueingPolicy) -> Limits {
    Limits { capacity_bytes: policy.capacity_bytes, ttl: policy.ttl, waiting_max: WAITING_MAX }
}

fn shed() -> Refusal {
    Refusal::new(
        Reason::Shed,
        "every endpoint is saturated, and requests of negative priority are refused then; ask again later",
    )
}

fn too_late(retry_after: Duration, waited: Duration) -> Refusal {
    let message =
        format!("no endpoint had room for {:.1} s (queue-ttl); ask again later", waited.as_secs_f64());
    Refusal::new(Reason::QueueTimeout, message).after(retry_after)
}

fn closed_for(reason: Reason) -> Refusal {
    let message = match reason {
        Reason::PoolGone => "the InferencePool was replaced while the request waited; ask again",
        _ => "the process stops, and no endpoint had room; ask again: another replica answers",
    };
    Refusal::new(reason, message)
}
