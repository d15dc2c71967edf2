//! `pointsman up`: the whole thing on one machine.

use std::collections::HashSet;
use std::future::Future;
use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use director::{Clock, Declaration, Director};
use gateway::{ClientHeaders, Gateway, Upstream};
use pool::{Declared, EndpointSpec, InferencePool, PoolPolicy};
use telemetry::Metrics;
use telemetry::admin::{self, Subject};
use tls::ServingCertificate;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::{Believed, LimitFlags, LogFormat, Up};
use crate::listen;
use crate::logging::LogControl;
use crate::shutdown::{self, Signals};
use crate::sim;
use crate::sources::{LOOK_EVERY, Sources};

/// What runs beside the requests, until the process stops.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

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
pub(crate) async fn run(flags: &Up, log: LogControl) -> anyhow::Result<()> {
    let sources = Sources::open(&flags.files)?;
    let declared = declared(&sources)?;
    let pool = the_one_pool(&declared)?;
    let mut told = HashSet::new();
    tell_unused(&declared, &mut told);
    let limits = flags.limits.fit(listen::raise_open_files_max());
    let certificate = certificate(flags)?;
    let upstream = upstream(flags, &limits)?;
    let listener = listen::bind(flags.listen, "--listen", flags.reuse_port)?;
    let admin_listener = listen::bind(flags.admin, "--admin", false)?;
    let addresses = (listener.local_addr()?, admin_listener.local_addr()?);
    let (tracker, background, stopping) =
        (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());

    let runtime = PoolPolicy::resolve(&pool.annotations, None).policy.runtime;
    let mut extra = flags.endpoints.clone();
    extra.extend(sim::start_for_up(sims_wanted(flags), runtime, &tracker, &background).await?);

    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    let director = Director::new(
        Arc::clone(&metrics),
        Clock::start(),
        limits.of_director(),
        tracker.clone(),
        background.clone(),
    );
    director.declare(&declaration(pool, &declared, &extra)).settled(SETTLE_MAX).await;

    let in_background = |task: Task| {
        let until = background.clone();
        tracker.spawn(async move { until.run_until_cancelled(task).await });
    };
    let watch =
        Watch { sources, told, extra, director: Arc::clone(&director), metrics: Arc::clone(&metrics) };
    in_background(Box::pin(watch.run()));
    if let Some(certificate) = &certificate {
        in_background(Box::pin(Arc::clone(certificate).watch()));
    }
    let subject = Arc::new(Program {
        director: Arc::clone(&director),
        stopping: stopping.clone(),
        limits: limits.view(),
        log,
    });
    let until = background.clone().cancelled_owned();
    tracker.spawn(async move {
        if let Err(error) = admin::serve(admin_listener, metrics, subject, until).await {
            tracing::error!(%error, "the admin address is no longer served");
        }
    });

    if flags.reuse_port {
        listen::take_over(&listener).context("--reuse-port: new connections cannot be taken over")?;
    }
    let client_headers = match flags.client_headers {
        Believed::Trust => ClientHeaders::Trust,
        Believed::Distrust => ClientHeaders::Distrust,
    };
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let gateway = Gateway::new(director, upstream, limits.of_gateway(), client_headers);
    let accepting = CancellationToken::new();
    let serving = gateway::serve(listener, certificate, gateway, accepting.clone(), flags.drain);
    let mut signals = Signals::listen()?;
    tell_ready(scheme, addresses, flags.logging.log_format)?;
    let stopped = async {
        let signal = signals.next().await;
        tracing::info!(signal, drain = ?flags.drain, "stopping: no new request, those in flight end");
        stopping.cancel();
        tokio::select! {
            () = tokio::time::sleep(flags.drain_delay) => accepting.cancel(),
            signal = signals.next() => return signal,
        }
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

/// The certificate that the flags name.
fn certificate(flags: &Up) -> anyhow::Result<Option<Arc<ServingCertificate>>> {
    let (Some(cert), Some(key)) = (&flags.tls_cert, &flags.tls_key) else { return Ok(None) };
    let certificate = ServingCertificate::open(cert, key, &gateway::ALPN).context("--tls-cert, --tls-key")?;
    Ok(Some(Arc::new(certificate)))
}

/// The connections to model servers, trusting whom the flags say.
fn upstream(flags: &Up, limits: &LimitFlags) -> anyhow::Result<Upstream> {
    let trust = if flags.upstream_insecure_skip_verify {
        tls::trusting()?
    } else {
        match tls::roots(flags.upstream_ca.as_deref()) {
            Ok(roots) => tls::verifying(roots)?,
            // Nobody may ever speak TLS to a model server: then no root is needed.
            Err(_) if flags.upstream_ca.is_none() => tls::verifying(tls::no_roots())?,
            Err(error) => return Err(error).context("--upstream-ca"),
        }
    };
    Ok(Upstream::new(&gateway::dial_tcp(limits.of_gateway().connect), &trust))
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

/// The program as the admin door shows it.
struct Program {
    director: Arc<Director>,
    stopping: CancellationToken,
    limits: serde_json::Value,
    log: LogControl,
}

impl Subject for Program {
    fn ready(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() {
            return Err("shutting down".into());
        }
        self.director.ready()
    }

    fn state(&self) -> serde_json::Value {
        let mut state = self.director.state();
        state["limits"] = self.limits.clone();
        state
    }

    fn log_level(&self) -> String {
        self.log.level()
    }

    fn set_log_level(&self, level: &str) -> Result<(), String> {
        self.log.set_level(level)
    }
}

/// One line for programs; on a terminal, what a person needs next.
fn tell_ready(
    scheme: &str,
    (gateway, admin): (SocketAddr, SocketAddr),
    format: LogFormat,
) -> std::io::Result<()> {
    let (gateway, admin) = (admin::url(scheme, gateway), admin::url("http", admin));
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
