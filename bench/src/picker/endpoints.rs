//! Endpoints for a picker to know: addresses of loopback that answer `/metrics` with a captured page of vLLM and
//! `/v1/models` with one model. They run on a thread of their own and cost as little as can be.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// 58 KB, as a real server gives them; under load then, idle as [`idle`] makes it.
const METRICS: &str = include_str!("../../../tests/data/vllm-0.32-metrics.txt");
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// Endpoints that answer until this is dropped.
pub(crate) struct Endpoints {
    pub(crate) addresses: Vec<SocketAddr>,
    folder: tempfile::TempDir,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Endpoints {
    /// So many endpoints, 127.0.1.1 and upwards on one port, and a manifest that names them.
    pub(crate) fn start(count: u8, model: &str) -> anyhow::Result<Endpoints> {
        let (mut listeners, mut port) = (Vec::new(), 0);
        for number in 1..=count {
            let address = SocketAddr::from((Ipv4Addr::new(127, 0, 1, number), port));
            let listener = std::net::TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}"))?;
            listener.set_nonblocking(true)?;
            port = listener.local_addr()?.port();
            listeners.push(listener);
        }
        let addresses =
            listeners.iter().map(std::net::TcpListener::local_addr).collect::<std::io::Result<Vec<_>>>()?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("pool.yaml"), manifest(&addresses))?;
        let stop = CancellationToken::new();
        let pages = Arc::new(Pages::new(model));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let mut servers = JoinSet::new();
                for listener in listeners {
                    let pages = Arc::clone(&pages);
                    servers.spawn(async move { serve(TcpListener::from_std(listener)?, pages).await });
                }
                stopped.cancelled().await;
            });
        });
        Ok(Endpoints { addresses, folder, stop, thread: Some(thread) })
    }

    /// An InferencePool and the EndpointSlice with these endpoints.
    pub(crate) fn manifest(&self) -> std::path::PathBuf {
        Path::new(self.folder.path()).join("pool.yaml")
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn manifest(addresses: &[SocketAddr]) -> String {
    let port = addresses.first().map_or(8000, SocketAddr::port);
    let mut text = format!(
        "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata:\n  name: bench\n  namespace: default\n  \
         annotations:\n    inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE\n    \
         inference.networking.x-k8s.io/model-server-runtime: vllm\nspec:\n  selector: {{matchLabels: {{app: bench}}}}\n  \
         targetPorts: [{{number: {port}}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
         name: bench\n  namespace: default\n  labels: {{app: bench}}\naddressType: IPv4\nendpoints:\n"
    );
    for address in addresses {
        let _ = writeln!(text, "- {{addresses: [{}], conditions: {{ready: true}}}}", address.ip());
    }
    text
}

struct Pages {
    metrics: Vec<u8>,
    models: Vec<u8>,
}

impl Pages {
    fn new(model: &str) -> Pages {
        let page = |kind: &str, body: &str| {
            let length = body.len();
            format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}")
                .into_bytes()
        };
        let models =
            format!(r#"{{"object":"list","data":[{{"id":"{model}","object":"model","owned_by":"bench"}}]}}"#);
        Pages {
            metrics: page("text/plain; version=1.0.0; charset=utf-8", &idle(METRICS)),
            models: page("application/json", &models),
        }
    }
}

/// The page of a server on which nothing runs: no request of ours ever reaches one.
fn idle(page: &str) -> String {
    const LOADS: [&str; 3] =
        ["vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{"];
    let mut idle = String::with_capacity(page.len());
    for line in page.lines() {
        let load = LOADS.iter().any(|load| line.starts_with(load));
        let (series, value) = line.rsplit_once(' ').unwrap_or((line, ""));
        let _ = writeln!(idle, "{series} {}", if load { "0.0" } else { value });
    }
    idle
}

async fn serve(listener: TcpListener, pages: Arc<Pages>) -> std::io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let pages = Arc::clone(&pages);
        connections.spawn(async move { answer(stream, &pages).await });
        while connections.try_join_next().is_some() {}
    }
}

/// Answers requests without a body, one after the other.
async fn answer(mut stream: TcpStream, pages: &Pages) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::with_capacity(1024);
    while stream.read_buf(&mut request).await? > 0 {
        if request.ends_with(b"\r\n\r\n") {
            let page = if request.starts_with(b"GET /v1/models") { &pages.models } else { &pages.metrics };
            stream.write_all(page).await?;
            request.clear();
        } else if request.len() > REQUEST_BYTES_MAX {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};

    use super::*;

    #[test]
    fn every_endpoint_answers_over_a_kept_connection() {
        let endpoints = Endpoints::start(3, "tiny").expect("endpoints");
        for address in &endpoints.addresses {
            let mut stream = BufReader::new(std::net::TcpStream::connect(address).expect("a connection"));
            for (path, needle) in [("/metrics", "vllm:num_requests_running"), ("/v1/models", "\"tiny\"")] {
                write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("a request");
                let (mut length, mut line) = (0, String::new());
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).expect("a line");
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.trim().parse().expect("a length");
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).expect("a body");
                assert!(String::from_utf8_lossy(&body).contains(needle), "{path}");
            }
        }
        let manifest = std::fs::read_to_string(endpoints.manifest()).expect("the manifest");
        assert!(manifest.contains("127.0.1.3"));
    }
}
