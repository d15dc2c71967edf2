//! `pointsman sim`: model servers that are not real; also those that `pointsman up` starts for itself.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use pool::{EndpointSpec, Runtime};
use sim::server::{EngineKind, ServerConfig, SimServer, start_many};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli::Sim;
use crate::house::Ground;
use crate::shutdown::{self, Signals};

/// Runs until SIGTERM or ctrl-c.
pub(crate) async fn run(flags: &Sim) -> anyhow::Result<()> {
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    let config = flags.config();
    let servers =
        start_many(&config, flags.count, flags.listen, &tracker, &cancel).await.with_context(|| {
            format!("--listen {}: cannot be listened on (port 0 takes free ones)", flags.listen)
        })?;
    let mut signals = Signals::listen()?;
    tell_ready(&servers)?;
    signals.next().await;
    cancel.cancel();
    shutdown::finish(&tracker).await;
    Ok(())
}

/// Starts `count` servers on free ports of loopback, as engines of `runtime`.
pub(crate) async fn start_for_up(
    count: u16,
    runtime: Runtime,
    ground: &Ground,
) -> anyhow::Result<Vec<EndpointSpec>> {
    let engine_kind = match runtime {
        Runtime::Vllm => EngineKind::Vllm,
        Runtime::Sglang => EngineKind::Sglang,
        Runtime::TrtLlm => EngineKind::TrtLlm,
    };
    let config = ServerConfig { engine_kind, ..ServerConfig::default() };
    let base = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let servers =
        start_many(&config, count, base, &ground.tracker, &ground.background).await.context("--sim")?;
    let spec = |(number, server): (usize, &SimServer)| EndpointSpec {
        name: format!("{}-{number}", config.name).into(),
        host: server.addr().ip().to_string().into(),
        port: server.addr().port(),
        tls: false,
    };
    Ok(servers.iter().enumerate().map(spec).collect())
}

fn tell_ready(servers: &[SimServer]) -> std::io::Result<()> {
    let urls: Vec<_> = servers.iter().map(|server| format!("http://{}", server.addr())).collect();
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready servers={}", urls.join(","))?;
    stdout.flush()
}
