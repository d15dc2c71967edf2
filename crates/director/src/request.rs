//! One request: [`Intake`] while its body comes in, [`Exchange`] once an endpoint is picked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use endpoints::Endpoint;
use http::StatusCode;
use inference::{AnswerKind, Api, Asked, BodyScan, Malformed, Progress};
use pool::RoutingStrategy;
use twox_hash::XxHash3_64;

use crate::director::Director;
use crate::ending::Ending;
use crate::limits::Place;
use crate::queue::Rank;
use crate::reason::{Reason, Refusal};
use crate::rename::Rename;
use crate::served_pool::{InForce, Pick, Question, RETRY, ServedPool};

/// A decision that does not wait for an endpoint may yet ask endpoints for their models.
const PATIENCE_MIN: Duration = Duration::from_secs(3);

/// Tokens that a request is taken to generate that does not say how many at most.
const OUTPUT_TOKENS: u64 = 256;
/// More is not believed: what is asked for at most is seldom generated.
const OUTPUT_TOKENS_MAX: u64 = 4096;

/// What a door knows when a request's head has come.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The path, without the query.
    pub path: &'a str,
    /// Whether its method is safe (RFC 9110, section 9.2.1): it asks about models and runs none, so it never waits.
    pub safe: bool,
    /// `content-length`, where the client announced one.
    pub content_length: Option<u64>,
    /// Whether the body is text that can be scanned: neither compressed nor a form.
    pub readable: bool,
    /// What its control headers say.
    pub control: Control<'a>,
    /// The pool it is for, `namespace/name`, where there are many; empty: nobody said.
    pub pool: Option<&'a str>,
}

/// What a client says by control headers; they are for Pointsman alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Control<'a> {
    /// `x-gateway-inference-objective`: the InferenceObjective that tells how urgent the request is.
    pub objective: Option<&'a str>,
    /// `x-gateway-inference-fairness-id`: who asks.
    pub fairness_id: Option<&'a str>,
    /// `x-gateway-model-name-rewrite`: the model to ask for in place of the one in the body.
    pub model_rewrite: Option<&'a str>,
}

/// A request whose body is coming in and whose endpoint is not picked yet.
pub struct Intake {
    director: Arc<Director>,
    pool: Arc<ServedPool>,
    in_force: Arc<InForce>,
    /// Whether the decision depends on the model's name.
    names_matter: bool,
    scan: Option<BodyScan>,
    progress: Progress,
    announced_bytes: Option<u64>,
    subset: Option<Vec<String>>,
    objective: Option<String>,
    fairness_id: Option<String>,
    model_rewrite: Option<String>,
    safe: bool,
    /// Time of ours so far, without waiting for the client.
    inside: Duration,
    /// Taken when the request is sent on, or refused.
    ending: Option<Ending>,
}

/// Why an attempt failed before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection could be made.
    Connect,
    /// The connection broke before the answer's first byte.
    Reset,
    /// No first byte came in time.
    Timeout,
    /// The endpoint answered 502.
    BadGateway,
    /// The endpoint answered 503.
    Unavailable,
}

impl Failure {
    /// Whether an answer's status says that another endpoint should be asked.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Option<Failure> {
        match status {
            StatusCode::BAD_GATEWAY => Some(Failure::BadGateway),
            StatusCode::SERVICE_UNAVAILABLE => Some(Failure::Unavailable),
            _ => None,
        }
    }

    /// The word of labels and logs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Failure::Connect => "connect",
            Failure::Reset => "reset",
            Failure::Timeout => "timeout",
            Failure::BadGateway => "bad_gateway",
            Failure::Unavailable => "unavailable",
        }
    }

    /// How the request ends if no other endpoint is tried.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Failure::Connect | Failure::Reset => Reason::UpstreamUnreachable,
            Failure::Timeout => Reason::UpstreamTimeout,
            Failure::BadGateway | Failure::Unavailable => Reason::FailedByServer,
        }
    }
}

/// A request that is booked on an endpoint.
pub struct Exchange {
    director: Arc<Director>,
    pool: Arc<ServedPool>,
    in_force: Arc<InForce>,
    pick: Pick,
    blocks: Vec<u64>,
    streamed: bool,
    rename: Option<Rename>,
    answered: bool,
    _place: Place,
    ending: Ending,
}

impl Intake {
    pub(crate) fn new(
        director: Arc<Director>,
        pool: Arc<ServedPool>,
        head: Head<'_>,
        ending: Ending,
    ) -> Intake {
        let in_force = pool.in_force();
        let mut need = pool.need(&in_force, director.clock().now());
        need.model_required |= head.control.model_rewrite.is_some();
        let api = Api::from_path(head.path).filter(|_| head.readable);
        Intake {
            director,
            pool,
            in_force,
            names_matter: need.model_required,
            scan: api.map(|api| BodyScan::new(api, need)),
            progress: Progress::More,
            announced_bytes: head.content_length,
            subset: None,
            objective: head.control.objective.map(str::to_owned),
            fairness_id: head.control.fairness_id.map(str::to_owned),
            model_rewrite: head.control.model_rewrite.map(str::to_owned),
            safe: head.safe,
            inside: Duration::ZERO,
            ending: Some(ending),
        }
    }

    /// Picks among these alone: `host:port` each, or a host for all its ports. Nobody, where none is in the pool.
    pub fn restrict(&mut self, subset: Vec<String>) {
        self.subset = Some(subset);
    }

    /// The longest that [`Self::route`] may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        let queueing = &self.in_force.policy.queueing;
        PATIENCE_MIN + if queueing.enabled && !self.safe { queueing.ttl } else { Duration::ZERO }
    }

    /// Whether the request may be sent on as one for another model, as far as its head tells.
    #[must_use]
    pub fn may_rename(&self) -> bool {
        self.scan.is_some() && (self.model_rewrite.is_some() || self.in_force.catalog.may_rename())
    }

    /// Whether the decision can be made without (more of) the body.
    #[must_use]
    pub fn progress(&self) -> Progress {
        if self.scan.is_some() { self.progress } else { Progress::Enough }
    }

    /// The next part of the body.
    ///
    /// # Errors
    /// When the body is larger than the limit, or is not what its path promises.
    pub fn push(&mut self, chunk: &[u8]) -> Result<Progress, Refusal> {
        if let Some(ending) = &mut self.ending {
            ending.request_bytes(chunk.len());
        }
        if self.bytes() > self.director.limits().body_bytes_max {
            let refusal = self.director.body_too_large();
            return Err(self.refuse(refusal));
        }
        let begun = Instant::now();
        let scanned = self.scan.as_mut().map(|scan| scan.push(chunk));
        self.inside += begun.elapsed();
        match scanned {
            Some(Ok(progress)) => {
                self.progress = progress;
                Ok(progress)
            }
            Some(Err(malformed)) => Err(self.refuse(refusal_of(&malformed))),
            None => Ok(Progress::Enough),
        }
    }

    /// The body ended before there was enough: what was not found is absent.
    ///
    /// # Errors
    /// When the body is not what its path promises.
    pub fn end_of_body(&mut self) -> Result<(), Refusal> {
        match self.scan.as_mut().map(BodyScan::finish) {
            Some(Err(malformed)) => Err(self.refuse(refusal_of(&malformed))),
            _ => Ok(()),
        }
    }

    /// The same at a door whose clients name a model in every body, whoever reads it. It is never waited for.
    ///
    /// # Errors
    /// When the body is not what its path promises, or names no model.
    pub fn end_of_body_with_model(&mut self) -> Result<(), Refusal> {
        self.end_of_body()?;
        match &self.scan {
            Some(scan) if !scan.names_model() => Err(self.refuse(refusal_of(&Malformed::MissingModel))),
            _ => Ok(()),
        }
    }

    /// Picks an endpoint and books the work on it; waits for one where that is the policy. Whoever drops the future, or
    /// refuses afterwards, ends the request.
    ///
    /// # Errors
    /// When no endpoint serves the model, the pool has none, or too many requests are in flight or wait.
    pub async fn route(&mut self) -> Result<Exchange, Refusal> {
        let routed = self.route_or_refuse().await;
        routed.map_err(|refusal| self.refuse(refusal))
    }

    async fn route_or_refuse(&mut self) -> Result<Exchange, Refusal> {
        let asked = self.scan.take().map(BodyScan::into_asked).unwrap_or_default();
        let rename = self.rename(&asked);
        let model = rename.as_ref().map(Rename::target).or(asked.model.as_deref());
        if let Some(model) = model {
            self.pool.check_model(&self.in_force, model, self.director.clock().now()).await?;
        }
        if let Some(ending) = &mut self.ending {
            ending.name_model(asked.model.as_deref(), model);
        }
        let begun = Instant::now();
        let blocks = self.blocks(&asked.prompt, model);
        let question = Question {
            model,
            blocks: &blocks,
            prompt_tokens: self.prompt_tokens(),
            subset: self.subset.as_deref(),
        };
        let rank = Rank {
            priority: self.in_force.catalog.priority(self.objective.as_deref(), asked.model.as_deref()),
            fairness_id: self.fairness_id.as_deref().unwrap_or_default(),
            bytes: self.announced_bytes.unwrap_or_else(|| self.bytes()),
            work: u64::from(question.prompt_tokens)
                + asked.max_tokens.unwrap_or(OUTPUT_TOKENS).min(OUTPUT_TOKENS_MAX),
        };
        let prepared = begun.elapsed();
        let (metrics, clock) = (self.director.metrics(), self.director.clock());
        let pick = if self.safe {
            self.pool.pick_at_once(&question, clock.now())?
        } else {
            self.pool.admit(&question, rank, clock, metrics).await?
        };
        let place = Place::take(&self.director)?;
        metrics.inside_duration.observe((self.inside + prepared + pick.took).as_secs_f64());
        metrics.scheduler_duration.observe(pick.took.as_secs_f64());
        let mut ending = self.ending.take().unwrap_or_else(|| Ending::new(Arc::clone(&self.director)));
        ending.sent_on();
        let exchange = Exchange {
            director: Arc::clone(&self.director),
            pool: Arc::clone(&self.pool),
            in_force: Arc::clone(&self.in_force),
            pick,
            blocks,
            streamed: asked.stream,
            rename,
            answered: false,
            _place: place,
            ending,
        };
        exchange.tell_pick();
        Ok(exchange)
    }

    /// Ends the request with a refusal that the door made itself.
    #[must_use]
    pub fn refuse(&mut self, refusal: Refusal) -> Refusal {
        if let Some(mut ending) = self.ending.take() {
            if refusal.reason == Reason::UnknownModel {
                // Names that no endpoint knows would fill the label set.
                ending.name_model(Some("other"), None);
            }
            ending.end(refusal.reason);
        }
        refusal
    }

    /// The chained hashes of the prompt's blocks. The model is part of the prefix where models differ in what they
    /// keep (adapters, several base models): each has a KV cache of its own.
    fn blocks(&self, prompt: &[u8], model: Option<&str>) -> Vec<u64> {
        let policy = &self.in_force.policy;
        if policy.routing_strategy == RoutingStrategy::Default || prompt.is_empty() {
            return Vec::new();
        }
        let model = model.filter(|_| self.names_matter).unwrap_or_default();
        let seed = XxHash3_64::oneshot(model.as_bytes());
        let mut blocks = Vec::with_capacity(prompt.len() / policy.prefix_cache.block_size_bytes as usize);
        routing::block_hashes(prompt, seed, &policy.prefix_cache, &mut blocks);
        blocks
    }

    /// The model to ask for, where it is not the one that the body names.
    fn rename(&self, asked: &Asked) -> Option<Rename> {
        let (model, span) = (asked.model.as_deref()?, asked.model_span.clone()?);
        let catalog = &self.in_force.catalog;
        let wanted = self.model_rewrite.as_deref();
        if wanted.is_none() && !catalog.model_matters() {
            return None;
        }
        let target = catalog.target(model, wanted, self.director.next_share());
        (target != model).then(|| Rename::new(model, target, span))
    }

    /// Bytes of the body so far.
    fn bytes(&self) -> u64 {
        self.ending.as_ref().map_or(0, Ending::request_bytes_so_far)
    }

    /// The prompt's length, as well as it is known before the body's end.
    fn prompt_tokens(&self) -> u32 {
        let bytes = self.announced_bytes.unwrap_or_else(|| self.bytes());
        u32::try_from(bytes / routing::BYTES_PER_TOKEN).unwrap_or(u32::MAX)
    }
}

impl Exchange {
    /// The endpoint that the request is booked on now.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.pick.booking.endpoint()
    }

    /// The pick and up to `fallbacks_max` endpoints after it, best first: who should be asked in this order.
    pub fn ranked(&self, fallbacks_max: usize) -> impl Iterator<Item = &Arc<Endpoint>> {
        let entries = &self.pick.snapshot.entries;
        let ranked = self.pick.decision.ranked.iter().skip(self.pick.rank);
        ranked.take(fallbacks_max.saturating_add(1)).map(|ranked| &entries[ranked.entry as usize].endpoint)
    }

    /// Who served the request, as whoever sends it on tells it: `host:port`. Where that is not the pick, the pick
    /// failed, and the work is booked where it is done.
    pub fn served_by(&mut self, authority: &str) {
        if self.endpoint().authority() == authority {
            return;
        }
        let picked = Arc::clone(self.endpoint());
        if self.pool.pick_served(&mut self.pick, authority, &self.blocks) {
            picked.health.failed(self.director.clock().now());
            self.director.metrics().count_pick(self.endpoint().label(), RETRY);
        }
    }

    /// Whether the request asks for a streamed answer, as far as its body was read: then a first byte comes as soon
    /// as the first token. One that is not streamed has its first byte when all is generated.
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        self.streamed
    }

    /// The change of the model's name, where another is to be asked for.
    #[must_use]
    pub fn rename(&self) -> Option<&Rename> {
        self.rename.as_ref()
    }

    /// What the pool's endpoints speak.
    #[must_use]
    pub fn app_protocol(&self) -> pool::AppProtocol {
        self.in_force.app_protocol
    }

    /// The program's metrics.
    #[must_use]
    pub fn metrics(&self) -> &telemetry::Metrics {
        self.director.metrics()
    }

    /// Bytes of the request's body that came in all, once it is known.
    pub fn request_bytes(&mut self, bytes: u64) {
        self.ending.set_request_bytes(bytes);
    }

    /// The present endpoint has, or is about to have, the whole request. May be said more than once.
    pub fn delivered(&self) {
        self.pick.booking.delivered();
    }

    /// The present endpoint failed before its first byte.
    pub fn failed(&mut self, failure: Failure) {
        let endpoint = self.endpoint();
        tracing::debug!(endpoint = endpoint.authority(), failure = failure.word(), "an attempt failed");
        endpoint.health.failed(self.director.clock().now());
    }

    /// Books the request on the next endpoint of its list, because of `failure`. False when there is none, or the
    /// retry budget is spent; the request is then still the door's to end.
    pub fn next_endpoint(&mut self, failure: Failure) -> bool {
        let now = self.director.clock().now();
        let metrics = self.director.metrics();
        if !self.pool.has_next(&self.pick) {
            return false;
        }
        if !self.director.budget().withdraw(now) {
            metrics.retries_refused.inc();
            return false;
        }
        if !self.pool.pick_next(&mut self.pick, &self.blocks, now) {
            return false;
        }
        metrics.count_retry(failure.word());
        metrics.count_pick(self.endpoint().label(), RETRY);
        true
    }

    /// The answer's head and first byte are here and will be passed on: no other endpoint is tried from now on.
    /// `kind` tells how the answer's usage can be read, if it can.
    pub fn answer(&mut self, status: StatusCode, kind: Option<AnswerKind>) {
        self.pick.booking.first_byte();
        if Failure::of_status(status).is_none() {
            self.answered = true;
            self.endpoint().health.succeeded();
        }
        self.ending.answer(kind);
    }

    /// A part of the answer's body is passed on.
    pub fn answer_bytes(&mut self, bytes: &[u8]) {
        self.ending.answer_bytes(bytes);
    }

    /// The length of an answer's body that did not come by here, in bytes.
    pub fn answer_length(&mut self, bytes: u64) {
        self.ending.set_answer_bytes(bytes);
    }

    /// Nobody will tell what came of the request: it is taken to have been answered by whom it was sent to.
    pub fn unwatched(&mut self) {
        self.answered = true;
    }

    /// How the request ended. The first word stands; without one the client hung up.
    pub fn end(&mut self, reason: Reason) {
        self.ending.end(reason);
    }

    /// The first choice, for metrics and the log.
    fn tell_pick(&self) {
        let metrics = self.director.metrics();
        let ranked = &self.pick.decision.ranked[self.pick.rank];
        metrics.count_pick(self.endpoint().label(), self.pick.decision.reason.as_str());
        if !self.blocks.is_empty() {
            let matched = f64::from(ranked.matched_blocks);
            #[expect(clippy::cast_precision_loss, reason = "at most 65,536 blocks")]
            metrics.prefix_hit_ratio.observe(matched / self.blocks.len() as f64);
            let block_bytes = f64::from(self.in_force.policy.prefix_cache.block_size_bytes);
            metrics.prefix_hit_bytes.observe(matched * block_bytes);
        }
        tracing::debug!(
            endpoint = self.endpoint().authority(),
            reason = self.pick.decision.reason.as_str(),
            matched_blocks = ranked.matched_blocks,
            blocks = self.blocks.len(),
            cost = ?ranked.cost,
            load = ?ranked.load,
            candidates = self.pick.decision.candidates,
            "pick"
        );
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // No byte ever came from the endpoint: it does not hold the prefix.
        if !self.answered
            && let Some(receipt) = self.pick.receipt.take()
        {
            self.pool.unrecord(&receipt, &self.blocks);
        }
    }
}

fn refusal_of(malformed: &Malformed) -> Refusal {
    Refusal::new(Reason::Malformed, malformed.to_string())
}
