//! `pointsman up`: the whole thing on one machine.

use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use gateway::{ClientHeaders, Gateway, Upstream};
use pool::PoolPolicy;
use telemetry::admin;
use tls::ServingCertificate;
use tokio_util::sync::CancellationToken;

use crate::cli::{Believed, LimitFlags, LogFormat, Up};
use crate::files::{Files, Wanted};
use crate::house::{Ground, House, Source, Stop};
use crate::listen;
use crate::logging::LogControl;
use crate::sim;

/// Simulated model servers when nothing else is named.
const SIM_DEFAULT: u16 = 3;
/// Runs until SIGTERM or ctrl-c.
pub(crate) async fn run(flags: &Up, log: LogControl) -> anyhow::Result<()> {
    let mut files = Files::open(&flags.files, Wanted::Only)?;
    let limits = flags.limits.fit(listen::raise_open_files_max());
    let certificate = certificate(flags)?;
    let upstream = upstream(flags, &limits)?;
    let listener = listen::bind(flags.listen, "--listen", flags.reuse_port)?;
    let admin_listener = listen::bind(flags.admin, "--admin", false)?;
    let addresses = (listener.local_addr()?, admin_listener.local_addr()?);

    let ground = Ground::default();
    let runtime = PoolPolicy::resolve(&files.pool()?.annotations, None).policy.runtime;
    files.add_endpoints(flags.endpoints.iter().cloned());
    files.add_endpoints(sim::start_for_up(sims_wanted(flags), runtime, &ground).await?);
    let house = House::build(ground, Source::Files(files), limits.of_director()).await?;
    house.serve_admin(admin_listener, limits.view(), log);
    if let Some(certificate) = &certificate {
        house.watch_certificate(certificate);
    }

    if flags.reuse_port {
        listen::take_over(&listener).context("--reuse-port: new connections cannot be taken over")?;
    }
    let client_headers = match flags.client_headers {
        Believed::Trust => ClientHeaders::Trust,
        Believed::Distrust => ClientHeaders::Distrust,
    };
    let scheme = if certificate.is_some() { "https" } else { "http" };
    let gateway = Gateway::new(Arc::clone(&house.director), upstream, limits.of_gateway(), client_headers);
    let accepting = CancellationToken::new();
    let serving = gateway::serve(listener, certificate, gateway, accepting.clone(), flags.drain);
    tell_ready(scheme, addresses, flags.logging.log_format)?;
    house.run(serving, accepting, Stop { delay: flags.drain_delay, drain: flags.drain }).await;
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
    let connect_timeout = limits.of_gateway().connect;
    Ok(Upstream::new(&gateway::dial_tcp(connect_timeout), &trust, connect_timeout))
}

fn sims_wanted(flags: &Up) -> u16 {
    let alone = flags.files.is_empty() && flags.endpoints.is_empty();
    flags.sim.unwrap_or(if alone { SIM_DEFAULT } else { 0 })
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
