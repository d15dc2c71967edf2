//! The processes of a benchmark: model servers, Envoy, Pointsman. All end with it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Worker threads of Envoy; Pointsman has as many as the machine has cores, which is the same on the one measured.
const ENVOY_WORKERS: &str = "2";
const START_MAX: Duration = Duration::from_secs(10);
/// Linux tells CPU time to programs in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

/// A child process; killed when dropped.
pub(crate) struct Process {
    child: Child,
}

/// A proxy under test.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

/// How Envoy is told to treat its upstreams.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EnvoyConfig {
    /// Round robin and nothing else.
    Plain,
    /// Least request, retries and outlier detection.
    Resilient,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Process> {
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Process { child })
    }

    /// CPU time used since it began, in user and kernel mode.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, which may hold blanks, ends at the last bracket; utime and stime are fields 14 and 15.
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u32 = behind_name.split_whitespace().skip(11).take(2).flat_map(str::parse::<u32>).sum();
        Ok(TICK * ticks)
    }

    /// Memory that is resident now.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let row = status.lines().find_map(|row| row.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kb: u64 = row.trim().trim_end_matches(" kB").parse()?;
        Ok(kb * 1024)
    }

    pub(crate) fn first_line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().context("stdout is piped")?).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program that dies with this one.
pub(crate) fn leashed(program: PathBuf) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// A program that is built beside this one.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let program = match std::env::var_os("POINTSMAN_BIN_DIR") {
        Some(folder) => PathBuf::from(folder).join(name),
        None => std::env::current_exe()?.with_file_name(name),
    };
    if !program.exists() {
        bail!("{} is missing: `cargo xtask bench gateway` builds it", program.display());
    }
    Ok(program)
}

/// Model servers that answer after so many milliseconds each.
pub(crate) fn backends(latencies_ms: &[u64]) -> anyhow::Result<(Process, Vec<SocketAddr>)> {
    let latencies = latencies_ms.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let mut process =
        Process::start(leashed(std::env::current_exe()?).args(["gateway", "backend", &latencies]))?;
    let addresses = process.first_line()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
    Ok((process, addresses))
}

/// `pointsman up` with prefix routing in front of `endpoints`.
pub(crate) fn pointsman(endpoints: &[SocketAddr]) -> anyhow::Result<Proxy> {
    let manifest = scratch("pool.yaml")?;
    fs::write(
        &manifest,
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata:\n  name: bench\n  annotations: \
         {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}\nspec:\n  selector: {matchLabels: {app: \
         bench}}\n  targetPorts: [{number: 8000}]\n",
    )?;
    let mut command = leashed(beside("pointsman")?);
    command.args(["up", "--log", "error", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--file"]);
    command.arg(manifest);
    for endpoint in endpoints {
        command.args(["--endpoint", &endpoint.to_string()]);
    }
    let mut process = Process::start(&mut command)?;
    let ready = process.first_line()?;
    let gateway = ready.split(' ').find_map(|word| word.strip_prefix("gateway=http://"));
    let address = gateway.with_context(|| format!("pointsman is not ready: {ready:?}"))?.parse()?;
    Ok(Proxy { name: "Pointsman", address, process })
}

/// Envoy in front of `endpoints`.
pub(crate) fn envoy(endpoints: &[SocketAddr], config: EnvoyConfig) -> anyhow::Result<Proxy> {
    let program = std::env::var_os("POINTSMAN_ENVOY")
        .context("POINTSMAN_ENVOY names no Envoy: `cargo xtask bench gateway` installs one")?;
    // It does not tell which port it took of itself.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let file = scratch("envoy.json")?;
    File::create(&file)?.write_all(envoy_config(address, endpoints, config).to_string().as_bytes())?;
    let mut command = leashed(PathBuf::from(program));
    command.args(["--concurrency", ENVOY_WORKERS, "--log-level", "error", "--use-dynamic-base-id", "-c"]);
    let process = Process::start(command.arg(file))?;
    let until = Instant::now() + START_MAX;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > until {
            bail!("Envoy does not listen within {START_MAX:?}");
        }
        sleep(Duration::from_millis(20));
    }
    Ok(Proxy { name: "Envoy", address, process })
}

fn envoy_config(listen: SocketAddr, endpoints: &[SocketAddr], config: EnvoyConfig) -> serde_json::Value {
    let address = |at: &SocketAddr| serde_json::json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}});
    let resilient = config == EnvoyConfig::Resilient;
    let mut route = serde_json::json!({"cluster": "servers", "timeout": "0s"});
    let mut cluster = serde_json::json!({
        "name": "servers", "type": "STATIC", "connect_timeout": "1s", "lb_policy": "ROUND_ROBIN",
        "circuit_breakers": {"thresholds": [{"max_connections": 100_000, "max_pending_requests": 100_000,
            "max_requests": 100_000, "max_retries": 1000}]},
        "load_assignment": {"cluster_name": "servers", "endpoints": [{"lb_endpoints": endpoints.iter()
            .map(|at| serde_json::json!({"endpoint": {"address": address(at)}})).collect::<Vec<_>>()}]},
    });
    if resilient {
        route["retry_policy"] = serde_json::json!({
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [502, 503], "num_retries": 3,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
            "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
            "host_selection_retry_max_attempts": 3,
        });
        cluster["lb_policy"] = "LEAST_REQUEST".into();
        cluster["outlier_detection"] = serde_json::json!({
            "consecutive_5xx": 5, "consecutive_gateway_failure": 5, "interval": "1s", "base_ejection_time": "2s",
            "max_ejection_percent": 50,
        });
    }
    serde_json::json!({"static_resources": {
        "listeners": [{"name": "door", "address": address(&listen), "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "door", "codec_type": "AUTO", "use_remote_address": true, "stream_idle_timeout": "0s",
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
                "http_filters": [{"name": "envoy.filters.http.router", "typed_config":
                    {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
            }}]}]}],
        "clusters": [cluster],
    }})
}

/// A file of this process alone.
pub(crate) fn scratch(name: &str) -> anyhow::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("pointsman-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder.join(name))
}

/// The fault-injecting proxy in front of `endpoints` with these rules, and where it listens for each.
pub(crate) fn fault_proxy(
    endpoints: &[SocketAddr],
    rules: &str,
) -> anyhow::Result<(Process, Vec<SocketAddr>)> {
    let mut command = leashed(beside("faults")?);
    command.args(["--rules", rules]);
    for endpoint in endpoints {
        command.args(["--to", &endpoint.to_string()]);
    }
    let mut process = Process::start(&mut command)?;
    let ready = process.first_line()?;
    let routes = ready.split(' ').find_map(|word| word.strip_prefix("routes="));
    let routes = routes.with_context(|| format!("faults is not ready: {ready:?}"))?;
    Ok((process, routes.split(',').map(str::parse).collect::<Result<_, _>>()?))
}
