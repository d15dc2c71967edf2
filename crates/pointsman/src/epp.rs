//! `pointsman epp`: the endpoint picker in front of any Envoy.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use grpc::{Call, Code, Health, Server, Service, Settings, Status};
use operator::{PoolSource, PoolsSource};
use picker::{HEALTH_SERVICES, LIVENESS, Options, Picker};
use tls::ServingCertificate;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::{Believed, Epp};
use crate::files::{Files, Wanted};
use crate::house::{Ground, House, Source, Stop};
use crate::listen;
use crate::logging::LogControl;

/// What gRPC over TLS is agreed on by.
const ALPN: [&str; 1] = ["h2"];
/// The names that `--cert-path` holds, as Kubernetes' TLS secrets have them.
const CERT_FILE: &str = "tls.crt";
const KEY_FILE: &str = "tls.key";
/// How a message of ext_proc can be larger than the body in it: headers, metadata, framing.
const MESSAGE_BYTES_BESIDES: u64 = 1 << 20;

/// The health port: nothing but health.
struct HealthDoor(Health);

impl Service for HealthDoor {
    async fn serve(&self, call: Call) {
        if let Err(call) = self.0.clone().answer(call).await {
            call.finish(&Status::new(Code::Unimplemented, "this port serves grpc.health.v1.Health alone"));
        }
    }
}

/// Runs until SIGTERM or ctrl-c.
pub(crate) async fn run(flags: &Epp, log: LogControl) -> anyhow::Result<()> {
    tell_without_meaning(flags);
    listen::raise_open_files_max();
    let source = source(flags).await?;
    let certificate = certificate(flags)?;
    let at = |port| SocketAddr::from((flags.bind, port));
    let listener = listen::bind(at(flags.grpc_port), "--grpc-port", false)?;
    let health_listener = listen::bind(at(flags.grpc_health_port), "--grpc-health-port", false)?;
    let admin_listener = listen::bind(at(flags.metrics_port), "--metrics-port", false)?;
    let addresses = [listener.local_addr()?, health_listener.local_addr()?, admin_listener.local_addr()?];

    let limits = flags.limits();
    let house = House::build(Ground::default(), source, limits).await?;
    let view = serde_json::json!({
        "body_bytes_max": limits.body_bytes_max,
        "bodies_bytes_max": limits.bodies_bytes_max,
        "requests_max": limits.requests_max,
    });
    house.serve_admin(admin_listener, view, log);
    if let Some(certificate) = &certificate {
        house.watch_certificate(certificate);
    }

    let serving = tell_health(&house);
    let health = Health::new(HEALTH_SERVICES, LIVENESS, serving);
    let settings = Settings {
        threads: flags.threads.into(),
        message_bytes_max: usize::try_from(limits.body_bytes_max.saturating_add(MESSAGE_BYTES_BESIDES))
            .unwrap_or(usize::MAX),
        ..Settings::default()
    };
    let options = Options {
        fallback_endpoints: flags.fallback_endpoints.into(),
        control_headers: matches!(flags.client_headers, Believed::Trust),
        all_pools: flags.all_pools,
        conformance: flags.conformance,
    };
    let (accepting, health_until) = (CancellationToken::new(), CancellationToken::new());
    let picker = Picker::new(Arc::clone(&house.director), options, health.clone(), accepting.clone());
    let server = Server::new(picker, settings, certificate);
    let health_server = Server::new(Arc::new(HealthDoor(health)), Settings::default(), None);

    let (drain, until) = (flags.drain, health_until.clone());
    let told_health = async move {
        if let Err(error) = health_server.serve(health_listener, until, std::time::Duration::ZERO).await {
            tracing::error!(%error, "health is no longer served");
        }
    };
    let picking = {
        let accepting = accepting.clone();
        async move {
            let drained = server.serve(listener, accepting, drain).await;
            health_until.cancel();
            drained.unwrap_or_else(|error| {
                tracing::error!(%error, "streams cannot be served");
                false
            })
        }
    };
    tell_ready(addresses)?;
    let serving = async { tokio::join!(picking, told_health).0 };
    house.run(serving, accepting, Stop { delay: flags.drain_delay, drain: flags.drain }).await;
    Ok(())
}

/// Where the pool is declared.
async fn source(flags: &Epp) -> anyhow::Result<Source> {
    if !flags.files.is_empty() {
        let wanted = match flags.pool() {
            _ if flags.all_pools => Wanted::All,
            Some(id) => Wanted::Named(id),
            None => Wanted::Only,
        };
        return Ok(Source::Files(Files::open(&flags.files, wanted)?));
    }
    if flags.all_pools {
        let client = operator::connect(flags.kubeconfig.as_deref()).await?;
        return Ok(Source::AllOfCluster(Box::new(PoolsSource::new(&client))));
    }
    let Some(id) = flags.pool() else {
        bail!(
            "which pool? --pool-name (and --pool-namespace) names an InferencePool of a cluster, --all-pools means every \
             one, --file the files that declare one"
        );
    };
    let client = operator::connect(flags.kubeconfig.as_deref()).await?;
    Ok(Source::Cluster(Box::new(PoolSource::new(client, id, flags.pool_group))))
}

/// Whether requests can be decided: a pool is known, and the process goes on.
fn tell_health(house: &House) -> watch::Receiver<bool> {
    let mut known = house.known.clone();
    let (tell, serving) = watch::channel(*known.borrow_and_update());
    let stopping = house.stopping.clone();
    house.beside(async move {
        let follow = async {
            while known.changed().await.is_ok() {
                tell.send_replace(*known.borrow_and_update());
            }
            std::future::pending::<()>().await;
        };
        stopping.run_until_cancelled(follow).await;
        tell.send_replace(false);
        // Kept: who watches is to see NOT_SERVING until the process ends, and not an end of the watch.
        std::future::pending::<()>().await;
    });
    serving
}

/// What the port is served with, where it is to be over TLS.
fn certificate(flags: &Epp) -> anyhow::Result<Option<Arc<ServingCertificate>>> {
    if !flags.secure_serving {
        return Ok(None);
    }
    let certificate = match &flags.cert_path {
        Some(folder) => ServingCertificate::open(&folder.join(CERT_FILE), &folder.join(KEY_FILE), &ALPN)
            .context("--cert-path")?,
        None => ServingCertificate::self_signed("pointsman-epp", &ALPN)?,
    };
    Ok(Some(Arc::new(certificate)))
}

fn tell_without_meaning(flags: &Epp) {
    if flags.kubeconfig.is_some() && !flags.files.is_empty() {
        tracing::info!("--kubeconfig has no meaning beside --file and is passed over");
    }
    for (flag, instead) in flags.upstream.given() {
        tracing::info!("--{flag} has no meaning here and is passed over; instead: {instead}");
    }
}

/// One line for programs.
fn tell_ready([grpc, health, metrics]: [SocketAddr; 3]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready grpc={grpc} health={health} metrics={metrics}")?;
    stdout.flush()
}
