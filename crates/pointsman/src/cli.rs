//! The flags. Contract: names and defaults as operators' scripts know them.

mod epp;
mod limits;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pool::EndpointSpec;
use sim::engine;
use sim::server::{EngineKind, ServerConfig, TrtLlmPage};

use crate::endpoint_flag::endpoint;

pub(crate) use epp::Epp;
pub(crate) use limits::LimitFlags;

/// An inference gateway: sends each request to the model server that will answer it soonest.
#[derive(Parser)]
#[command(name = "pointsman", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the gateway on this machine. Without flags: in front of three simulated model servers.
    Up(Box<Up>),
    /// Run the endpoint picker in front of an Envoy.
    Epp(Box<Epp>),
    /// Run the operator: InferencePools in, running pickers out.
    Controller(Box<Controller>),
    /// Run simulated model servers.
    Sim(Sim),
    /// Check manifests offline: what would be in force, and every fault.
    Check(Check),
    /// Print the objects that the controller makes of InferencePools and their overlays, offline.
    Render(Render),
}

#[derive(Args)]
pub(crate) struct Up {
    /// A manifest file or a folder of them (InferencePool, InferenceObjective, InferenceModel,
    /// InferenceModelRewrite, EndpointSlice); repeatable. Watched: a change is in force within a second.
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
    /// An endpoint of the pool; repeatable.
    #[arg(long = "endpoint", value_name = "[https://]HOST:PORT", value_parser = endpoint)]
    pub(crate) endpoints: Vec<EndpointSpec>,
    /// Start N simulated model servers on loopback and route to them [default: 3 when neither --file nor
    /// --endpoint is given].
    #[arg(long, value_name = "N")]
    pub(crate) sim: Option<u16>,
    /// Where the gateway listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Where /metrics, /healthz, /readyz and /state are served.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub(crate) admin: SocketAddr,
    /// How long requests in flight may take to end after SIGTERM or ctrl-c.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = pool::parse_duration)]
    pub(crate) drain: Duration,
    /// How long the process goes on taking connections after SIGTERM, while /readyz already says no: time for whoever
    /// balances load in front to notice.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = pool::parse_duration)]
    pub(crate) drain_delay: Duration,
    /// Share --listen with the process that listens there now (it needs this flag too) and take its new connections
    /// over; then stop the other one.
    #[arg(long)]
    pub(crate) reuse_port: bool,
    /// Whether clients are believed in control headers (x-gateway-…), x-forwarded-… and x-request-id, or those are
    /// dropped.
    #[arg(long, value_name = "WHETHER", default_value = "trust")]
    pub(crate) client_headers: Believed,
    /// A certificate chain in PEM: the gateway is served over TLS. Read again when it changes.
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, in PEM.
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Roots, in PEM, that vouch for model servers that speak TLS [default: the system's].
    #[arg(long, value_name = "PATH")]
    pub(crate) upstream_ca: Option<PathBuf>,
    /// Take any certificate from model servers that speak TLS.
    #[arg(long, conflicts_with = "upstream_ca")]
    pub(crate) upstream_insecure_skip_verify: bool,
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
    #[command(flatten)]
    pub(crate) logging: Logging,
}

#[derive(Args)]
pub(crate) struct Sim {
    /// How many servers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) count: u16,
    /// Where the first listens; the others take the next ports. Port 0 takes free ones.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub(crate) listen: SocketAddr,
    /// Whose metrics page to print: vllm, sglang or trt-llm.
    #[arg(long, default_value_t = EngineKind::Vllm)]
    pub(crate) engine: EngineKind,
    /// Which of TensorRT-LLM's pages: triton or trtllm-serve.
    #[arg(long, default_value_t = TrtLlmPage::Triton)]
    pub(crate) trt_llm_page: TrtLlmPage,
    /// The base model's name.
    #[arg(long, default_value = "sim")]
    pub(crate) model: String,
    /// A LoRA adapter that is served from the start; repeatable.
    #[arg(long = "adapter", value_name = "NAME")]
    pub(crate) adapters: Vec<String>,
    /// LoRA adapters resident at once.
    #[arg(long, value_name = "N", default_value_t = engine::Config::default().max_loras)]
    pub(crate) max_loras: u32,
    /// How many times faster than real time the engine computes.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) speed: f64,
    /// Microseconds to compute one prompt token that is not cached.
    #[arg(long, value_name = "US", default_value_t = engine::Config::default().prefill_us_per_token)]
    pub(crate) prefill_us_per_token: f64,
    /// Microseconds of a step of the engine, whatever it computes: about the time of one token.
    #[arg(long, value_name = "US", default_value_t = engine::Config::default().step_base_us)]
    pub(crate) step_base_us: f64,
    /// Microseconds that each decoding sequence adds to a step.
    #[arg(long, value_name = "US", default_value_t = engine::Config::default().decode_us_per_seq)]
    pub(crate) decode_us_per_seq: f64,
    /// Sequences that may run at once; others wait.
    #[arg(long, value_name = "N", default_value_t = engine::Config::default().max_num_seqs)]
    pub(crate) max_num_seqs: u32,
    /// Blocks of the KV cache.
    #[arg(long, value_name = "N", default_value_t = engine::Config::default().num_gpu_blocks)]
    pub(crate) num_gpu_blocks: u32,
    /// Tokens in one block of the KV cache.
    #[arg(long, value_name = "TOKENS", default_value_t = engine::Config::default().block_size)]
    pub(crate) block_size: u32,
    /// Do not reuse cached prefixes.
    #[arg(long)]
    pub(crate) no_prefix_caching: bool,
    /// Decides answers' texts and lengths, and jitter.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) logging: Logging,
}

impl Sim {
    /// The flags as the simulator's configuration.
    pub(crate) fn config(&self) -> ServerConfig {
        ServerConfig {
            model: self.model.clone(),
            adapters: self.adapters.clone(),
            engine_kind: self.engine,
            trt_llm_page: self.trt_llm_page,
            seed: self.seed,
            engine: engine::Config {
                block_size: self.block_size,
                num_gpu_blocks: self.num_gpu_blocks,
                enable_prefix_caching: !self.no_prefix_caching,
                max_num_seqs: self.max_num_seqs,
                max_loras: self.max_loras,
                step_base_us: self.step_base_us,
                prefill_us_per_token: self.prefill_us_per_token,
                decode_us_per_seq: self.decode_us_per_seq,
                speed: self.speed,
                ..engine::Config::default()
            },
            ..ServerConfig::default()
        }
    }
}

/// Whether clients are believed what they say of themselves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Believed {
    /// They are.
    Trust,
    /// They are not.
    Distrust,
}

#[derive(Args)]
pub(crate) struct Check {
    /// A manifest file or a folder of them; repeatable.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// A field that the controller is told to let overlays set, as there; repeatable.
    #[arg(long, value_name = "PATH", value_parser = operator::overlay::field_path)]
    pub(crate) allow_overlay: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Render {
    /// A manifest file or a folder of them (InferencePool, ConfigMap); repeatable.
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) pickers: Pickers,
}

#[derive(Args)]
pub(crate) struct Controller {
    #[command(flatten)]
    pub(crate) made: Pickers,
    /// Whose picker a pool has: its own where the Service that it names is there, else ours (auto); always ours; always its own.
    #[arg(long, value_name = "WHOSE", default_value = "auto")]
    pub(crate) pickers: Whose,
    /// A picker for each pool, or one for all pools that have no overlay: the Deployment pointsman-picker, which the printed
    /// installation holds.
    #[arg(long, value_name = "MODE", default_value = "per-pool")]
    pub(crate) epp_mode: EppMode,
    /// Print the manifests of a whole installation of this controller with these flags, namespaces and CRDs included, and end:
    /// for `kubectl apply --server-side -f -`.
    #[arg(long)]
    pub(crate) install: bool,
    /// Of several controllers only one works: who holds the Lease pointsman-controller in the gateway's namespace.
    #[arg(long)]
    pub(crate) leader_elect: bool,
    /// The address of --metrics-port.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0")]
    pub(crate) bind: std::net::IpAddr,
    /// The admin door: /metrics, /healthz, /readyz, /log; port 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    pub(crate) metrics_port: u16,
    /// The hooks of Envoy Gateway, and the endpoints that its Envoys ask for; port 0 takes a free one. 5005 unless given, or a free one
    /// where that is taken.
    #[arg(long, value_name = "PORT")]
    pub(crate) extension_port: Option<u16>,
    /// Where Envoys reach --extension-port; by default the Service of the printed installation.
    #[arg(long, value_name = "HOST:PORT", value_parser = discovery_address)]
    pub(crate) discovery_address: Option<(String, u16)>,
    /// How to reach the API server; without it by the service account of the pod.
    #[arg(long, value_name = "PATH")]
    pub(crate) kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) logging: Logging,
}

/// How many pools one picker serves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EppMode {
    /// One.
    PerPool,
    /// All that have no overlay.
    Shared,
}

/// Whose picker a pool has.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Whose {
    /// The pool's, where the Service that it names is there; else ours.
    Auto,
    /// Ours.
    Managed,
    /// The pool's.
    SelfHosted,
}

/// A host, by name or address, and a port.
fn discovery_address(text: &str) -> Result<(String, u16), String> {
    let expected = || "expected HOST:PORT, an IPv6 address as [ADDR]:PORT".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_name = |char: char| char.is_ascii_alphanumeric() || char == '.' || char == '-';
    let fits = bare.parse::<std::net::IpAddr>().is_ok() || (!bare.is_empty() && bare.chars().all(is_name));
    let port = port.parse().ok().filter(|port| *port != 0);
    port.filter(|_| fits).map(|port| (bare.to_owned(), port)).ok_or_else(expected)
}

/// A name as namespaces have it (RFC 1123).
fn namespace(name: &str) -> Result<String, String> {
    let is_inner = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-';
    let fits = (1..=63).contains(&name.len()) && name.chars().all(is_inner);
    if fits && !name.starts_with('-') && !name.ends_with('-') {
        return Ok(name.to_owned());
    }
    Err("expected 1 to 63 of a-z, 0-9 and -, and - neither first nor last".to_owned())
}

/// How the controller makes pickers.
#[derive(Args)]
pub(crate) struct Pickers {
    /// The namespace of Envoy Gateway, where pickers run.
    #[arg(long, value_name = "NAMESPACE", default_value = "envoy-gateway-system", value_parser = namespace)]
    pub(crate) gateway_namespace: String,
    /// The image of pickers.
    #[arg(long, value_name = "IMAGE", default_value = concat!("pointsman:", env!("CARGO_PKG_VERSION")), value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) epp_image: String,
    /// A field that overlays may set though it is closed to them, as deployment.spec.template.spec.hostNetwork; repeatable.
    #[arg(long, value_name = "PATH", value_parser = operator::overlay::field_path)]
    pub(crate) allow_overlay: Vec<String>,
    /// Pickers take part in upstream's conformance suite.
    #[arg(long)]
    pub(crate) conformance: bool,
}

impl Pickers {
    /// What the objects are rendered with.
    pub(crate) fn options(&self) -> operator::render::Options {
        operator::render::Options {
            gateway_namespace: self.gateway_namespace.clone(),
            epp_image: self.epp_image.clone(),
            conformance: self.conformance,
        }
    }
}

#[derive(Args, Clone)]
pub(crate) struct Logging {
    /// The format of the log, on stderr.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// error, warn, info, debug or trace; or directives such as `info,director=debug`.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
