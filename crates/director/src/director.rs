//! The director: which pools are in service, and the way in for every request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use endpoints::Clock;
use parking_lot::Mutex;
use pool::PoolId;
use telemetry::{Limit, Metrics};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::budget::RetryBudget;
use crate::ending::Ending;
use crate::gauges::Gauges;
use crate::limits::{Bounded, HeldBytes, Limits};
use crate::reason::{Reason, Refusal};
use crate::request::{Head, Intake};
use crate::served_pool::{Declaration, ServedPool};

/// Takes requests from a door and sends them where they are answered soonest. One per process.
pub struct Director {
    clock: Clock,
    metrics: Arc<Metrics>,
    limits: Limits,
    seed: u64,
    shares: AtomicU64,
    budget: RetryBudget,
    bodies: Bounded,
    in_flight: Bounded,
    cut_off: AtomicBool,
    /// By namespace and name. One, but in a picker of many.
    pools: ArcSwap<Vec<Arc<ServedPool>>>,
    /// One declaration is taken in force at a time.
    declaring: Mutex<()>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Director {
    /// A director without a pool. Its background tasks run on `tracker` until `cancel`; `seed` settles what is equal
    /// otherwise.
    #[must_use]
    pub fn new(
        metrics: Arc<Metrics>,
        clock: Clock,
        limits: Limits,
        seed: u64,
        tracker: TaskTracker,
        cancel: CancellationToken,
    ) -> Arc<Director> {
        Arc::new_cyclic(|director| {
            metrics.register_collector(Box::new(Gauges::new(Weak::clone(director))));
            Director {
                clock,
                metrics,
                limits,
                seed,
                shares: AtomicU64::new(seed),
                budget: RetryBudget::default(),
                bodies: Bounded::new(limits.bodies_bytes_max),
                in_flight: Bounded::new(limits.requests_max),
                cut_off: AtomicBool::new(false),
                pools: ArcSwap::default(),
                declaring: Mutex::new(()),
                tracker,
                cancel,
            }
        })
    }

    /// Takes a declaration in force: a change of the only pool in service, or another pool in its place. Requests in
    /// flight keep what they began with. Must be called within a tokio runtime.
    pub fn declare(&self, declaration: &Declaration) -> Arc<ServedPool> {
        let _one_at_a_time = self.declaring.lock();
        let last = self.pools.load_full();
        let label = &declaration.pool.id.name;
        let (pool, others): (Vec<_>, Vec<_>) =
            last.iter().cloned().partition(|pool| *pool.id() == declaration.pool.id);
        let pool = self.change_or_start(pool.into_iter().next(), declaration, label);
        self.pools.store(Arc::new(vec![Arc::clone(&pool)]));
        others.iter().for_each(|other| other.stop(&self.metrics));
        pool
    }

    /// Takes the declaration of one of many pools in force; the others stay. As [`Director::declare`] otherwise.
    pub fn declare_beside(&self, declaration: &Declaration) -> Arc<ServedPool> {
        let _one_at_a_time = self.declaring.lock();
        let last = self.pools.load_full();
        let id = &declaration.pool.id;
        let at = last.binary_search_by(|pool| pool.id().cmp(id));
        let known = at.ok().map(|at| Arc::clone(&last[at]));
        let pool = self.change_or_start(known, declaration, &id.to_string());
        if let Err(at) = at {
            let mut pools = last.to_vec();
            pools.insert(at, Arc::clone(&pool));
            self.pools.store(Arc::new(pools));
        }
        pool
    }

    fn change_or_start(
        &self,
        known: Option<Arc<ServedPool>>,
        declaration: &Declaration,
        label: &str,
    ) -> Arc<ServedPool> {
        if let Some(pool) = known {
            pool.change(declaration, &self.metrics);
            return pool;
        }
        let cancel = self.cancel.child_token();
        ServedPool::start(declaration, label, self.clock, self.seed, &self.metrics, &self.tracker, cancel)
    }

    /// Takes the pool out of service: those that wait are refused, requests in flight go on. True if it was in service.
    pub fn withdraw(&self, id: &PoolId) -> bool {
        let _one_at_a_time = self.declaring.lock();
        let last = self.pools.load_full();
        let (gone, stay): (Vec<_>, Vec<_>) = last.iter().cloned().partition(|pool| pool.id() == id);
        if gone.is_empty() {
            return false;
        }
        self.pools.store(Arc::new(stay));
        gone.iter().for_each(|pool| pool.stop(&self.metrics));
        true
    }

    /// The pools in service, by namespace and name.
    #[must_use]
    pub fn pools(&self) -> Arc<Vec<Arc<ServedPool>>> {
        self.pools.load_full()
    }

    /// The pool in service, where there is one only.
    #[must_use]
    pub fn pool(&self) -> Option<Arc<ServedPool>> {
        self.pools.load().first().cloned()
    }

    /// The pool that a request is for.
    fn pool_of(&self, named: Option<&str>) -> Result<Arc<ServedPool>, Refusal> {
        let Some(named) = named else { return self.pool().ok_or_else(no_pool) };
        let wanted = named.split_once('/').unwrap_or_default();
        let pools = self.pools.load();
        let found = pools.binary_search_by(|pool| {
            let id = pool.id();
            (id.namespace.as_str(), id.name.as_str()).cmp(&wanted)
        });
        match found {
            Ok(at) => Ok(Arc::clone(&pools[at])),
            Err(_) if named.is_empty() => Err(Refusal::new(
                Reason::NoEndpoint,
                "the gateway does not say for which InferencePool it asks",
            )),
            Err(_) => {
                Err(Refusal::new(Reason::NoEndpoint, format!("no InferencePool {named} is declared now")))
            }
        }
    }

    /// A request's head came.
    ///
    /// # Errors
    /// When no pool is in service, or the announced body is larger than the limit.
    pub fn begin(self: &Arc<Director>, head: Head<'_>) -> Result<Intake, Refusal> {
        self.budget.deposit();
        let mut ending = Ending::new(Arc::clone(self));
        let refusal = if head.content_length.is_some_and(|bytes| bytes > self.limits.body_bytes_max) {
            self.body_too_large()
        } else {
            match self.pool_of(head.pool) {
                Ok(pool) => return Ok(Intake::new(Arc::clone(self), pool, head, ending)),
                Err(refusal) => refusal,
            }
        };
        ending.end(refusal.reason);
        Err(refusal)
    }

    /// A request is refused by its head alone: counted, and no more.
    #[must_use]
    pub fn refuse(self: &Arc<Director>, refusal: Refusal) -> Refusal {
        Ending::new(Arc::clone(self)).end(refusal.reason);
        refusal
    }

    /// The memory of one more request's body, nothing taken yet.
    #[must_use]
    pub fn held_bytes(self: &Arc<Director>) -> HeldBytes {
        HeldBytes::new(Arc::clone(self))
    }

    /// A body is larger than it may be: counts it and says so.
    #[must_use]
    pub fn body_too_large(&self) -> Refusal {
        self.metrics.limits.reached(Limit::BodyBytes);
        Refusal::body_too_large(self.limits.body_bytes_max)
    }

    /// From now on requests that are dropped end because the process stops, not because their clients hung up.
    pub fn cut_off(&self) {
        self.cut_off.store(true, Relaxed);
    }

    /// The process stops soon: whoever waits is refused, and nobody waits from now on.
    pub fn stop_waiting(&self) {
        for pool in self.pools().iter() {
            pool.gate.close(Reason::ShuttingDown, self.clock.now(), &self.metrics);
        }
    }

    /// The models of all endpoints, merged, in the shape of OpenAI's `GET /v1/models`.
    ///
    /// # Errors
    /// When no endpoint has told its models within the last ten seconds.
    pub async fn models(&self) -> Result<String, Refusal> {
        match self.pool() {
            Some(pool) => pool.models(self.clock.now()).await,
            None => Err(no_pool()),
        }
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The program's clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The program's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The next of a sequence that fills the range evenly at every length (additive recurrence by the golden ratio, Knuth
    /// 6.4): what is split by weight keeps to the weights from the first requests on.
    pub(crate) fn next_share(&self) -> u64 {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        self.shares.fetch_add(GOLDEN, Relaxed)
    }

    pub(crate) fn budget(&self) -> &RetryBudget {
        &self.budget
    }

    pub(crate) fn bodies(&self) -> &Bounded {
        &self.bodies
    }

    pub(crate) fn in_flight(&self) -> &Bounded {
        &self.in_flight
    }

    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Relaxed)
    }
}

/// A seed that differs from process to process.
#[must_use]
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn no_pool() -> Refusal {
    Refusal::new(Reason::NoEndpoint, "no InferencePool is known now")
}
