//! `pointsman up`: the whole thing on one machine.

use std::collections::HashSet;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use director::{Clock, Declaration, Director, Limits};
use gateway::{Gateway, Timeouts};
use pool::{Declared, EndpointSpec, InferencePool, PoolPolicy};
use telemetry::Metrics;
use telemetry::admin::{self, Subject};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{LogFormat, Up};
use crate::shutdown::{self, Signals};
use crate::sim;
use crate::sources::{LOOK_EVERY, Sources};

/// Simulated model servers when nothing else is named.
const SIM_DEFAULT: u16 = 3;
/// How long the first scrape of every endpoint may hold up the start.
const SETTLE_MAX: Duration = Duration::from_millis(1500);
/// The pool of those who give no manifest: default settings.
const DEFAULT_POOL: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: default, namespace: default}
spec:
  selector: {matchLabels: {pool: default}}
  targetPorts: [{number: 8000}]
";

/// Runs until SIGTERM or ctrl-c.
pub(crate) async fn run(flags: &Up) -> anyhow::Result<()> {
    let sources = Sources::open(&flags.files)?;
    let declared = declared(&sources)?;
    let pool = the_one_pool(&declared)?;
    let mut told = HashSet::new();
    tell_unused(&declared, &mut told);
    let listener = bind(flags.listen, "--listen").await?;
    let admin_listener = bind(flags.admin, "--admin").await?;
    let addresses = (listener.local_addr()?, admin_listener.local_addr()?);
    let (tracker, background, stopping) =
        (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());

    let runtime = PoolPolicy::resolve(&pool.annotations, None).policy.runtime;
    let mut extra = flags.endpoints.clone();
    extra.extend(sim::start_for_up(sims_wanted(flags), runtime, &tracker, &background).await?);

    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    let limits = Limits { body_bytes_max: flags.body_bytes_max };
    let director =
        Director::new(Arc::clone(&metrics), Clock::start(), limits, tracker.clone(), background.clone());
    director.declare(&declaration(pool, &declared, &extra)).settled(SETTLE_MAX).await;

    let watch =
        Watch { sources, told, extra, director: Arc::clone(&director), metrics: Arc::clone(&metrics) };
    let until = background.clone();
    tracker.spawn(async move { until.run_until_cancelled(watch.run()).await });
    let subject = Arc::new(UntilStopping { director: Arc::clone(&director), stopping: stopping.clone() });
    let until = background.clone().cancelled_owned();
    tracker.spawn(async move {
        if let Err(error) = admin::serve(admin_listener, metrics, subject, until).await {
            tracing::error!(%error, "the admin address is no longer served");
        }
    });

    let timeouts = Timeouts { first_byte: flags.first_byte_timeout, ..Timeouts::default() };
    let serving = gateway::serve(listener, Gateway::new(director, timeouts), stopping.clone(), flags.drain);
    let mut signals = Signals::listen()?;
    tell_ready(addresses, flags.logging.log_format)?;
    let stopped = async {
        let signal = signals.next().await;
        tracing::info!(signal, drain = ?flags.drain, "stopping: no new request, those in flight end");
        stopping.cancel();
        signals.next().await
    };
    tokio::select! {
        drained = serving => if !drained {
            tracing::warn!(drain = ?flags.drain, "requests were still in flight when the drain time was over");
        },
        signal = stopped => tracing::warn!(signal, "asked to stop once more: requests in flight are cut off"),
    }
    background.cancel();
    shutdown::finish(&tracker).await;
    Ok(())
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}: cannot be listened on (port 0 takes a free one)"))
}

fn sims_wanted(flags: &Up) -> u16 {
    let alone = flags.files.is_empty() && flags.endpoints.is_empty();
    flags.sim.unwrap_or(if alone { SIM_DEFAULT } else { 0 })
}

/// All that the files declare; the default pool where there are no files.
fn declared(sources: &Sources) -> anyhow::Result<Declared> {
    if sources.is_empty() {
        return Ok(pool::assemble([&pool::parse("default", DEFAULT_POOL)?]));
    }
    Ok(pool::assemble(sources.manifests()))
}

/// Tells what of the files is not used, each fact once, wherever in its file it moves to: `told` are the facts of
/// the last time.
fn tell_unused(declared: &Declared, told: &mut HashSet<String>) {
    let mut facts = HashSet::new();
    for object in &declared.passed_over {
        let fact = format!("{} {}", object.kind, object.name);
        if !told.contains(&fact) {
            tracing::info!("{}: {fact} has no meaning here and is passed over", object.position);
        }
        facts.insert(fact);
    }
    for fault in &declared.faults {
        let fact = format!("{}: {}", fault.key, fault.what);
        if !told.contains(&fact) {
            tracing::warn!("{fault}");
        }
        facts.insert(fact);
    }
    *told = facts;
}

/// The pool to serve. Nothing but the path could tell two pools' requests apart here, and all have the same path.
fn the_one_pool(declared: &Declared) -> anyhow::Result<&InferencePool> {
    match declared.pools.as_slice() {
        [pool] => Ok(pool),
        [] => bail!("no InferencePool is declared in the files given with --file"),
        [first, second, ..] => bail!(
            "two InferencePools would answer the same request: {} ({}) and {} ({}); run one `pointsman up` for each",
            first.id,
            first.position,
            second.id,
            second.position
        ),
    }
}

fn declaration(pool: &InferencePool, declared: &Declared, extra: &[EndpointSpec]) -> Declaration {
    let mut endpoints = pool.endpoints(&declared.slices);
    endpoints.extend_from_slice(extra);
    let models = declared.models.iter().filter(|model| model.pool == pool.id).map(|model| &model.model_name);
    let rewrites = declared
        .rewrites
        .iter()
        .filter(|rewrite| rewrite.pool == pool.id)
        .flat_map(|rewrite| rewrite.rules.iter().flat_map(|rule| &rule.models));
    let named_models: HashSet<String> = models.chain(rewrites).cloned().collect();
    Declaration { pool: pool.clone(), named_models, endpoints }
}

/// Takes changes of the files in force.
struct Watch {
    sources: Sources,
    told: HashSet<String>,
    /// Endpoints named by flags.
    extra: Vec<EndpointSpec>,
    director: Arc<Director>,
    metrics: Arc<Metrics>,
}

impl Watch {
    /// For ever, where there are files.
    async fn run(mut self) {
        if self.sources.is_empty() {
            return;
        }
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            tokio::task::block_in_place(|| self.look());
        }
    }

    fn look(&mut self) {
        let mut faults = Vec::new();
        let changed = self.sources.look(&mut faults);
        for fault in faults {
            self.refuse(&fault.into());
        }
        if changed && let Err(error) = self.take_in_force() {
            self.refuse(&error);
        }
    }

    fn take_in_force(&mut self) -> anyhow::Result<()> {
        let declared = declared(&self.sources)?;
        let pool = the_one_pool(&declared)?;
        tell_unused(&declared, &mut self.told);
        self.director.declare(&declaration(pool, &declared, &self.extra));
        Ok(())
    }

    fn refuse(&self, error: &anyhow::Error) {
        self.metrics.reload_failures.inc();
        tracing::error!("{error:#}; what ran keeps running");
    }
}

/// The director as the admin door shows it, until the process stops.
struct UntilStopping {
    director: Arc<Director>,
    stopping: CancellationToken,
}

impl Subject for UntilStopping {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("shutting down".into());
        }
        self.director.ready()
    }

    fn state(&self) -> serde_json::Value {
        self.director.state()
    }
}

/// One line for programs; on a terminal, what a person needs next.
fn tell_ready((gateway, admin): (SocketAddr, SocketAddr), format: LogFormat) -> std::io::Result<()> {
    let (gateway, admin) = (admin::url(gateway), admin::url(admin));
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready gateway={gateway} admin={admin}")?;
    if stdout.is_terminal() && format == LogFormat::Text {
        writeln!(
            stdout,
            "\nask:      curl -s {gateway}/v1/models\n          curl -sN {gateway}/v1/chat/completions -H 'content-type: application/json' \\\n            \
             -d '{{\"stream\":true,\"max_tokens\":32,\"messages\":[{{\"role\":\"user\",\"content\":\"Which track?\"}}]}}'\n\
             metrics:  {admin}/metrics\nstate:    {admin}/state\nstop:     ctrl-c"
        )?;
    }
    stdout.flush()
}
