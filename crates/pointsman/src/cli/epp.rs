//! The flags of `pointsman epp`. Names and defaults are those that upstream's charts, manifests and conformance suite
//! pass; those without a meaning here are taken with a line in the log.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};
use pool::{PoolId, PoolVersion};

use super::{Believed, LogFormat, Logging};

/// Bounds of a picker's own; the rest are those of any door.
#[derive(Args)]
pub(crate) struct Epp {
    /// A manifest file or a folder of them, as for `up`, instead of Kubernetes; repeatable. Watched.
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
    /// The InferencePool to pick for, on Kubernetes; with --file: which, where the files declare several.
    #[arg(long, value_name = "NAME")]
    pub(crate) pool_name: Option<String>,
    /// Pick for every InferencePool of the cluster, or of the files: each ext_proc stream names its own in the metadata
    /// x-pointsman-pool, as namespace/name.
    #[arg(long, conflicts_with = "pool_name")]
    pub(crate) all_pools: bool,
    /// The namespace of the InferencePool.
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    pub(crate) pool_namespace: String,
    /// The API group of the InferencePool: inference.networking.k8s.io (v1) or inference.networking.x-k8s.io (v1alpha2).
    #[arg(long, value_name = "GROUP", default_value = "inference.networking.k8s.io", value_parser = pool_version)]
    pub(crate) pool_group: PoolVersion,
    /// How to reach the API server; without it by the service account of the pod.
    #[arg(long, value_name = "PATH")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The address of all three ports.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0")]
    pub(crate) bind: IpAddr,
    /// ext_proc, Envoy's access log and gRPC health; port 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    pub(crate) grpc_port: u16,
    /// gRPC health in the clear; port 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 9003)]
    pub(crate) grpc_health_port: u16,
    /// The admin door: /metrics, /healthz, /readyz, /state, /log; port 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    pub(crate) metrics_port: u16,
    /// Whether --grpc-port speaks TLS; without --cert-path by a certificate signed by itself.
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) secure_serving: bool,
    /// A folder with tls.crt and tls.key, in PEM. Read again when they change.
    #[arg(long, value_name = "PATH")]
    pub(crate) cert_path: Option<PathBuf>,
    /// How many endpoints are named after the pick, for Envoy to fall back on; 0 for gateways that send to an
    /// ORIGINAL_DST cluster.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=7))]
    pub(crate) fallback_endpoints: u8,
    /// Threads that serve --grpc-port.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: u16,
    /// How long requests in flight may take to end after --drain-delay.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = pool::parse_duration)]
    pub(crate) drain: Duration,
    /// How long new streams are still served after SIGTERM, while health says NOT_SERVING: as long as endpoints take to
    /// leave.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = pool::parse_duration)]
    pub(crate) drain_delay: Duration,
    /// Obey the header test-epp-endpoint-selection and tell who served: for upstream's conformance suite, never for
    /// production.
    #[arg(long)]
    pub(crate) conformance: bool,
    /// Whether clients are believed in control headers (x-gateway-inference-objective, -fairness-id,
    /// x-gateway-model-name-rewrite), or nobody reads them. Model servers never see them.
    #[arg(long, value_name = "WHETHER", default_value = "trust")]
    pub(crate) client_headers: Believed,
    /// Largest request body, in bytes; 413 beyond.
    #[arg(long, value_name = "BYTES", default_value_t = director::Limits::default().body_bytes_max)]
    pub(crate) body_bytes_max: u64,
    /// Memory for the bodies of all requests, in bytes; 429 beyond.
    #[arg(long, value_name = "BYTES", default_value_t = director::Limits::default().bodies_bytes_max)]
    pub(crate) bodies_bytes_max: u64,
    /// Requests sent on to model servers and not ended; 429 beyond.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1..=16_777_216))]
    pub(crate) requests_max: u64,
    #[command(flatten)]
    logging: Logging,
    #[command(flatten)]
    pub(crate) upstream: UpstreamFlags,
}

impl Epp {
    /// The pool to pick for, where it is named.
    pub(crate) fn pool(&self) -> Option<PoolId> {
        self.pool_name.as_ref().map(|name| PoolId::new(&self.pool_namespace, name))
    }

    /// How to log: upstream's flags, where they say more than ours.
    pub(crate) fn logging(&self) -> Logging {
        let mut logging = self.logging.clone();
        match self.upstream.verbosity {
            Some(5..) => logging.log = "trace".into(),
            Some(3..) => logging.log = "debug".into(),
            _ => {}
        }
        match self.upstream.zap_encoder {
            Some(ZapEncoder::Json) => logging.log_format = LogFormat::Json,
            Some(ZapEncoder::Console) => logging.log_format = LogFormat::Text,
            None => {}
        }
        logging
    }

    pub(crate) fn limits(&self) -> director::Limits {
        director::Limits {
            body_bytes_max: self.body_bytes_max,
            bodies_bytes_max: self.bodies_bytes_max,
            requests_max: self.requests_max,
        }
    }
}

/// The version of the pools of an API group.
fn pool_version(group: &str) -> Result<PoolVersion, String> {
    match group {
        "inference.networking.k8s.io" => Ok(PoolVersion::V1),
        "inference.networking.x-k8s.io" => Ok(PoolVersion::V1Alpha2),
        _ => Err("expected inference.networking.k8s.io or inference.networking.x-k8s.io".into()),
    }
}

/// Formats of the log, as upstream calls them.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ZapEncoder {
    /// An object a line.
    Json,
    /// Text.
    Console,
}

/// Declares flags of upstream that have no meaning here, and which of them were given.
macro_rules! without_meaning {
    ($($field:ident $flag:literal $instead:literal),* $(,)?) => {
        /// Flags of upstream's pickers that are taken and have no meaning here.
        #[derive(Args)]
        pub(crate) struct UpstreamFlags {
            $(
                #[arg(long = $flag, hide = true, value_name = "VALUE", num_args = 0..=1, default_missing_value = "")]
                $field: Option<String>,
            )*
            /// The log's verbosity: 3 and more is debug, 5 and more trace.
            #[arg(short, long = "v", value_name = "N", num_args = 1)]
            pub(crate) verbosity: Option<u8>,
            /// The format of the log.
            #[arg(long, value_name = "FORMAT")]
            pub(crate) zap_encoder: Option<ZapEncoder>,
        }

        impl UpstreamFlags {
            /// Those that were given: the flag, and what to use instead.
            pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
                [$((self.$field.is_some(), $flag, $instead)),*]
                    .into_iter()
                    .filter_map(|(given, flag, instead)| given.then_some((flag, instead)))
            }
        }
    };
}

without_meaning! {
    cache_info_metric "cache-info-metric" "the pool's annotation model-server-runtime",
    config_file "config-file" "the pool's annotations",
    config_text "config-text" "the pool's annotations",
    enable_cert_reload "enable-cert-reload" "certificates are always read again",
    enable_pprof "enable-pprof" "perf",
    endpoint_selector "endpoint-selector" "an InferencePool, with --file",
    endpoint_target_ports "endpoint-target-ports" "an InferencePool, with --file",
    ha_enable_leader_election "ha-enable-leader-election" "all replicas are active",
    health_checking "health-checking" "health is always served",
    kv_cache_usage_percentage_metric "kv-cache-usage-percentage-metric" "the pool's annotation model-server-runtime",
    lora_info_metric "lora-info-metric" "the pool's annotation model-server-runtime",
    metrics_endpoint_auth "metrics-endpoint-auth" "a NetworkPolicy",
    metrics_staleness_threshold "metrics-staleness-threshold" "it is 3 s",
    model_server_metrics_https_insecure_skip_verify "model-server-metrics-https-insecure-skip-verify" "the pool's annotation of that name",
    model_server_metrics_path "model-server-metrics-path" "the pool's annotation of that name",
    model_server_metrics_port "model-server-metrics-port" "the pool's annotation of that name",
    model_server_metrics_scheme "model-server-metrics-scheme" "the pool's annotation of that name",
    refresh_metrics_interval "refresh-metrics-interval" "endpoints are read as often as their load asks for",
    refresh_prometheus_metrics_interval "refresh-prometheus-metrics-interval" "gauges are computed when they are read",
    total_queued_requests_metric "total-queued-requests-metric" "the pool's annotation model-server-runtime",
    total_running_requests_metric "total-running-requests-metric" "the pool's annotation model-server-runtime",
    tracing "tracing" "x-request-id in the log",
    zap_devel "zap-devel" "--log and --log-format",
    zap_log_level "zap-log-level" "--log",
    zap_stacktrace_level "zap-stacktrace-level" "nothing",
    zap_time_encoding "zap-time-encoding" "nothing",
}
