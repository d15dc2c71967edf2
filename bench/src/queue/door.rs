//! What clients meet: our gateway, or Envoy with a picker behind it, ours or the Go one (bench/peers/gaie.sh).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::gateway::stand::{Process, beside, leashed, scratch};

const START_MAX: Duration = Duration::from_secs(120);
/// Between looks whether a program listens.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// `pointsman up`.
    Gateway,
    /// Envoy and `pointsman epp`.
    OurPicker,
    /// Envoy and the picker of GAIE 1.5.0 with its flow control.
    GoPicker,
}

/// A door that is open.
pub(crate) struct Open {
    /// What decides; the other one is Envoy, where there is one.
    pub(crate) decider: Process,
    _envoy: Option<Process>,
    pub(crate) gateway: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Door {
    /// Opens it before these engines; `manifest` holds the pool and the objectives.
    pub(crate) async fn open(
        self,
        manifest: &Path,
        engines: &[SocketAddr],
        flags: &[&str],
    ) -> anyhow::Result<Open> {
        let ready = |program: &mut Process| program.first_line();
        match self {
            Door::Gateway => {
                let mut command = ours("up", manifest);
                command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).args(flags);
                for endpoint in engines {
                    command.args(["--endpoint", &endpoint.to_string()]);
                }
                let mut decider = Process::start(&mut command)?;
                let ready = ready(&mut decider)?;
                let gateway = word(&ready, "gateway=http://")?.parse()?;
                let admin = word(&ready, "admin=http://")?.parse()?;
                Ok(Open { decider, _envoy: None, gateway, admin })
            }
            Door::OurPicker => {
                // It reads its endpoints from slices: one each, since they differ in address and share the port.
                fs::write(manifest, fs::read_to_string(manifest)? + &slice(engines))?;
                let mut command = ours("epp", manifest);
                command.args(["--bind", "127.0.0.1", "--secure-serving=false", "--fallback-endpoints", "0"]);
                command
                    .args(["--grpc-port", "0", "--grpc-health-port", "0", "--metrics-port", "0"])
                    .args(flags);
                let mut decider = Process::start(&mut command)?;
                let ready = ready(&mut decider)?;
                let admin = word(&ready, "metrics=")?.parse()?;
                let (envoy, gateway) = envoy(word(&ready, "grpc=")?.parse()?).await?;
                Ok(Open { decider, _envoy: Some(envoy), gateway, admin })
            }
            Door::GoPicker => {
                let picker = free()?;
                let listed: Vec<String> = engines.iter().map(SocketAddr::to_string).collect();
                let mut command = leashed(PathBuf::from("bench/peers/gaie.sh"));
                command.args([&picker.port().to_string(), &listed.join(","), "flow-control"]);
                let decider = Process::start(&mut command)?;
                listens(picker).await?;
                let admin = SocketAddr::new(picker.ip(), picker.port() + 2);
                let (envoy, gateway) = envoy(picker).await?;
                Ok(Open { decider, _envoy: Some(envoy), gateway, admin })
            }
        }
    }
}

fn ours(command: &str, manifest: &Path) -> Command {
    let mut program = leashed(beside("pointsman").unwrap_or_default());
    program.args([command, "--log", "error", "--file"]).arg(manifest);
    program
}

fn slice(engines: &[SocketAddr]) -> String {
    let listed: Vec<String> = engines.iter().map(|it| format!("{{addresses: [{}]}}", it.ip())).collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: bench, labels: {{app: bench}}}}\naddressType: IPv4\n\
         endpoints: [{}]\n",
        listed.join(", ")
    )
}

pub(crate) fn word<'a>(ready: &'a str, before: &str) -> anyhow::Result<&'a str> {
    let found = ready.split(' ').find_map(|word| word.strip_prefix(before));
    found.with_context(|| format!("not ready: {ready:?}"))
}

pub(crate) fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?.local_addr()?)
}

async fn listens(at: SocketAddr) -> anyhow::Result<()> {
    let until = Instant::now() + START_MAX;
    while TcpStream::connect(at).is_err() {
        if Instant::now() > until {
            bail!("nothing listens at {at} within {START_MAX:?}");
        }
        sleep(LOOK).await;
    }
    Ok(())
}

/// Envoy as examples/envoy/full-duplex.yaml has it, in the clear and without health checks.
async fn envoy(picker: SocketAddr) -> anyhow::Result<(Process, SocketAddr)> {
    let program = std::env::var_os("POINTSMAN_ENVOY")
        .context("POINTSMAN_ENVOY names no Envoy: `cargo xtask bench queue` installs one")?;
    let listen = free()?;
    let file = scratch("queue-envoy.json")?;
    fs::write(&file, configuration(listen, picker).to_string())?;
    let mut command = leashed(PathBuf::from(program));
    command.args(["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c"]);
    let process = Process::start(command.arg(file))?;
    listens(listen).await?;
    Ok((process, listen))
}

fn configuration(listen: SocketAddr, picker: SocketAddr) -> Value {
    let at =
        |it: SocketAddr| json!({"socket_address": {"address": it.ip().to_string(), "port_value": it.port()}});
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let unbounded = json!({"thresholds": [{"max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536}]});
    let picks = json!({
        "@type": typed("filters.http.ext_proc.v3.ExternalProcessor"),
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
        "message_timeout": "60s",
        "processing_mode": {
            "request_header_mode": "SEND", "request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND",
            "response_header_mode": "SEND", "response_body_mode": "FULL_DUPLEX_STREAMED", "response_trailer_mode": "SEND",
        },
    });
    let manager = json!({
        "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": picks},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": typed("filters.http.router.v3.Router")}},
        ],
        "route_config": {"virtual_hosts": [{
            "name": "bench", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "pool", "timeout": "0s"}}],
        }]},
    });
    let http2 = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": typed("upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }});
    json!({"static_resources": {
        "listeners": [{
            "name": "bench", "address": at(listen),
            "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
            ]}],
        }],
        "clusters": [
            {
                "name": "pool", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "circuit_breakers": unbounded,
                "original_dst_lb_config": {"use_http_header": true, "http_header_name": "x-gateway-destination-endpoint"},
            },
            {
                "name": "picker", "type": "STATIC", "circuit_breakers": unbounded, "typed_extension_protocol_options": http2,
                "load_assignment": {"cluster_name": "picker", "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": at(picker)}}]},
                ]},
            },
        ],
    }})
}
