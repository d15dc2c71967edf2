//! One history: the world of a plan is built, runs until all is over, and is asked whether its books balance.

use std::sync::Arc;
use std::time::Duration;

use director::{Clock, Declaration, Director, Endpoint};
use gateway::{ClientHeaders, Gateway, Upstream};
use parking_lot::Mutex;
use pool::{Catalog, EndpointSpec};
use telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::Sim;

use crate::client::Asker;
use crate::draw::Draw;
use crate::history::History;
use crate::plan::{Declared, ENDPOINT_HOST, ENDPOINT_PORT, Fault, Host, OBJECTIVES, Plan, What};
use crate::server::Server;
use crate::tap::{PORT, Tapped, dial};

const TICK: Duration = Duration::from_millis(5);
/// Longer than any client waits.
const BUSY_MAX: Duration = Duration::from_secs(120);
/// Longer than every timeout of the gateway, one after the other, and its keeping of idle connections (4 s).
const SETTLE_MAX: Duration = Duration::from_secs(14);
/// How long a stopped process may take beyond its drain: last requests (1 s), what is cut off (1 s), and some.
const STOP_MAX: Duration = Duration::from_secs(3);
/// So long before the end of its drain a stopped process lets nobody wait any more.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often the books are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The gateway's inside, seen from outside the simulated network.
#[derive(Clone)]
pub(crate) struct Inside {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: CancellationToken,
    pub(crate) seen: Arc<Mutex<Seen>>,
    /// A connection to a server may never get its last bytes out: turmoil sends nothing again, and knows no
    /// TCP_USER_TIMEOUT, which ends such a one in the world. HTTP/2 says goodbye before it closes; HTTP/1 just closes.
    loses_acknowledgements: bool,
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) director: Option<Arc<Director>>,
    /// Every endpoint that was ever declared.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// Whether all requests in flight ended by themselves.
    pub(crate) drained: Option<bool>,
}

/// Runs the world of `plan` to its end.
pub(crate) fn run(plan: &Plan, history: &History) -> Inside {
    let mut sim = build(plan);
    let inside = Inside {
        metrics: Arc::new(Metrics::new("simulation")),
        stop: CancellationToken::new(),
        seen: Arc::default(),
        loses_acknowledgements: plan.servers_http2 && plan.troubles_servers(),
    };
    let root = Draw::new(plan.seed);
    for (number, temper) in plan.servers.iter().enumerate() {
        let (draw, history) = (root.of(&format!("server {number}")), history.clone());
        let server = Server { number, temper: *temper, http2: plan.servers_http2, draw, history };
        sim.host(format!("server-{number}"), move || server.clone().run());
    }
    sim.client("door", serve(plan.clone(), history.clone(), inside.clone()));
    for host in 0..plan.client_hosts {
        sim.client(format!("clients-{host}"), ask_all(plan, host, history));
    }
    set_losses(&mut sim, plan);
    let mut world = World { sim, plan, history, inside: inside.clone() };
    world.run();
    inside
}

struct World<'a> {
    sim: Sim<'a>,
    plan: &'a Plan,
    history: &'a History,
    inside: Inside,
}

impl World<'_> {
    fn run(&mut self) {
        let mut faults: Vec<(Duration, bool, Fault)> = Vec::new();
        for fault in &self.plan.faults {
            faults.extend([(fault.from, true, *fault), (fault.until, false, *fault)]);
        }
        faults.sort_by_key(|(at, ..)| *at);
        let mut faults = faults.into_iter().peekable();
        let history = self.history.clone();
        let busy = |world: &mut Self| {
            while let Some((_, begins, fault)) = faults.next_if(|(at, ..)| *at <= world.sim.elapsed()) {
                world.apply(fault, begins);
            }
            if world.plan.stop_at.is_some_and(|at| at <= world.sim.elapsed()) {
                world.inside.stop.cancel();
            }
            (faults.peek().is_some() || history.lock().busy > 0).then(|| "clients wait".to_owned())
        };
        self.step_until(BUSY_MAX, Duration::ZERO, busy);
        self.step_until(SETTLE_MAX, LOOK_EVERY, |world| world.inside.unbalanced(world.history));
        self.inside.stop.cancel();
        self.step_until(self.plan.drain + STOP_MAX, LOOK_EVERY, |world| {
            world.inside.seen.lock().drained.is_none().then(|| "the gateway does not end".to_owned())
        });
    }

    /// Lets time pass until `open` finds nothing any more; that it finds something after `most` is a violation.
    fn step_until(
        &mut self,
        most: Duration,
        every: Duration,
        mut open: impl FnMut(&mut Self) -> Option<String>,
    ) {
        let end = self.sim.elapsed() + most;
        let mut next = self.sim.elapsed();
        loop {
            if self.sim.elapsed() >= next {
                next += every;
                match open(self) {
                    None => return,
                    Some(what) if self.sim.elapsed() >= end => return self.history.violated(what),
                    Some(_) => {}
                }
            }
            if let Err(error) = self.sim.step() {
                return self.history.violated(format!("a host failed: {error}"));
            }
        }
    }

    fn apply(&mut self, fault: Fault, begins: bool) {
        let host = match fault.host {
            Host::Server(number) => format!("server-{number}"),
            Host::Clients(number) => format!("clients-{number}"),
        };
        let (host, door) = (host.as_str(), "door");
        let sim = &mut self.sim;
        match (fault.what, begins) {
            (What::Partition, true) => sim.partition(host, door),
            (What::Partition, false) => sim.repair(host, door),
            (What::PartitionTo, true) => sim.partition_oneway(door, host),
            (What::PartitionTo, false) => sim.repair_oneway(door, host),
            (What::PartitionFrom, true) => sim.partition_oneway(host, door),
            (What::PartitionFrom, false) => sim.repair_oneway(host, door),
            (What::Hold, true) => sim.hold(host, door),
            (What::Hold, false) => sim.release(host, door),
            (What::Slow, _) => {
                let factor = if begins { 6 } else { 1 };
                sim.set_link_latency(host, door, (self.plan.latency + TICK) * factor);
            }
            (What::Crash, true) => sim.crash(host),
            (What::Crash, false) => sim.bounce(host),
        }
    }
}

impl Inside {
    /// What the gateway still holds, if anything.
    pub(crate) fn unbalanced(&self, history: &History) -> Option<String> {
        let page = self.metrics.encode().unwrap();
        let mut open: Vec<String> = Vec::new();
        for gauge in ["pointsman_requests_in_flight", "pointsman_bodies_bytes", "pointsman_connections"]
            .into_iter()
            .chain(["inference_objective_running_requests", "inference_extension_flow_control_queue_"])
        {
            let lines = page.lines().filter(|line| line.starts_with(gauge));
            open.extend(
                lines.filter(|line| !line.ends_with(" 0") && !line.ends_with(" 0.0")).map(str::to_owned),
            );
        }
        for endpoint in &self.seen.lock().endpoints {
            let (requests, tokens) = (endpoint.ledger.requests(), endpoint.ledger.prefill_tokens());
            if (requests, tokens) != (0, 0) {
                open.push(format!("{} has {requests} requests, {tokens} tokens", endpoint.authority()));
            }
        }
        let upstream = history.lock().upstream_open;
        if upstream > 0 && !self.loses_acknowledgements {
            open.push(format!("{upstream} connections to servers"));
        }
        (!open.is_empty()).then(|| format!("the books do not balance: {}", open.join("; ")))
    }

    /// The value of a series; 0 where it is absent.
    pub(crate) fn counted(&self, series: &str) -> u64 {
        let page = self.metrics.encode().unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |count| count.parse().unwrap())
    }
}

fn build<'a>(plan: &Plan) -> Sim<'a> {
    turmoil::Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(plan.latency)
        .max_message_latency(plan.latency)
        .tcp_capacity(plan.window_segments)
        .repair_rate(0.2)
        .build()
}

fn set_losses(sim: &mut Sim<'_>, plan: &Plan) {
    if plan.loss_ratio > 0.0 {
        for number in 0..plan.servers.len() {
            sim.set_link_fail_rate(format!("server-{number}"), "door", plan.loss_ratio);
        }
    }
}

fn ask_all(plan: &Plan, host: usize, history: &History) -> impl Future<Output = turmoil::Result> + 'static {
    let clients = TaskTracker::new();
    let askers: Vec<Asker> = (plan.clients.iter().enumerate())
        .filter(|(_, client)| client.host == host)
        .map(|(number, client)| Asker { number, plan: client.clone(), history: history.clone() })
        .collect();
    let mut record = history.lock();
    record.busy += askers.len();
    for asking in askers.iter().flat_map(|asker| &asker.plan.requests) {
        record.intents.insert(asking.tag.clone(), (asking.path.to_owned(), asking.body.clone()));
    }
    async move {
        for asker in askers {
            clients.spawn(asker.run(clients.clone()));
        }
        clients.close();
        clients.wait().await;
        Ok(())
    }
}

/// The gateway's host.
async fn serve(plan: Plan, history: History, inside: Inside) -> turmoil::Result {
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    let metrics = Arc::clone(&inside.metrics);
    let director =
        Director::new(metrics, Clock::start(), plan.shared, plan.seed, tracker.clone(), cancel.clone());
    inside.seen.lock().director = Some(Arc::clone(&director));
    tracker.spawn(declare_all(plan.clone(), Arc::clone(&director), Arc::clone(&inside.seen)));
    let (waits, stop, drain) = (Arc::clone(&director), inside.stop.clone(), plan.drain);
    tracker.spawn(async move {
        stop.cancelled().await;
        tokio::time::sleep(drain.saturating_sub(LAST_WORDS)).await;
        waits.stop_waiting();
    });
    let upstream = Upstream::new(&dial(&history), &tls::trusting()?, plan.limits.connect);
    let gateway = Gateway::new(director, upstream, plan.limits, ClientHeaders::Trust);
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    let drained =
        gateway::serve(Tapped { listener, history }, None, gateway, inside.stop.clone(), plan.drain).await;
    inside.seen.lock().drained = Some(drained);
    cancel.cancel();
    std::future::pending().await
}

async fn declare_all(plan: Plan, director: Arc<Director>, seen: Arc<Mutex<Seen>>) {
    let begun = tokio::time::Instant::now();
    for (at, declared) in &plan.declarations {
        tokio::time::sleep_until(begun + *at).await;
        let pool = director.declare(&declaration(declared, plan.servers_http2));
        let now = pool.snapshot().entries.iter().map(|entry| Arc::clone(&entry.endpoint)).collect::<Vec<_>>();
        seen.lock().endpoints.extend(now);
    }
}

fn declaration(declared: &Declared, http2: bool) -> Declaration {
    let protocol = if http2 { "kubernetes.io/h2c" } else { "http" };
    let (group, env) = ("inference.networking.x-k8s.io", "inference-epp-env.networking.x-k8s.io");
    let mut annotations = Vec::new();
    if let Some((block_bytes, capacity)) = declared.prefix {
        annotations.push(format!("{group}/routing-strategy: PREFIX_CACHE"));
        annotations.push(format!("{env}/prefix-cache-hash-block-size: \"{block_bytes}\""));
        annotations.push(format!("{env}/prefix-cache-lru-capacity: \"{capacity}\""));
    }
    if let Some((capacity_bytes, ttl)) = declared.queueing {
        annotations.push(format!("{group}/queueing: enabled"));
        annotations.push(format!("{env}/total-queue-capacity: \"{capacity_bytes}\""));
        annotations.push(format!("{env}/queue-ttl: {}ms", ttl.as_millis()));
    }
    let (name, annotations) = (declared.pool, annotations.join(", "));
    let mut text = format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\n\
         metadata: {{name: {name}, annotations: {{{annotations}}}}}\n\
         spec: {{selector: {{matchLabels: {{app: x}}}}, targetPorts: [{{number: 8000}}], appProtocol: {protocol}}}\n"
    );
    for (objective, priority) in OBJECTIVES {
        text += &format!(
            "---\napiVersion: {group}/v1alpha2\nkind: InferenceObjective\nmetadata: {{name: {objective}}}\n\
             spec: {{priority: {priority}, poolRef: {{name: {name}}}}}\n"
        );
    }
    let all = pool::assemble([&pool::parse("p.yaml", &text).unwrap()]);
    assert!(all.is_whole(), "{:?}", all.faults);
    let pool = all.pools[0].clone();
    let catalog = Catalog::of(&pool.id, &all);
    let spec = |server: &usize| EndpointSpec {
        name: format!("server-{server}").into(),
        host: ENDPOINT_HOST.into(),
        port: ENDPOINT_PORT + u16::try_from(*server).unwrap(),
        tls: false,
    };
    let endpoints = declared.endpoints.iter().map(spec).collect();
    Declaration { pool, catalog, endpoints, pods: None }
}
