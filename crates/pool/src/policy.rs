//! What is in force for one pool: the policy, and where each of its settings comes from.
//!
//! A [`PoolPolicy`] is parsed once from a pool's annotations and never mutated; a hot update swaps it whole.

use std::fmt;
use std::time::Duration;

use crate::fault::Fault;

/// Which pool: its namespace and its name. Prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId {
    /// The Kubernetes namespace; `default` where the manifest names none.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// Which of the two served versions an InferencePool was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolVersion {
    /// `inference.networking.k8s.io/v1`
    V1,
    /// `inference.networking.x-k8s.io/v1alpha2`
    V1Alpha2,
}

/// What the endpoints of a pool speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// `http`: HTTP/1.1.
    #[default]
    Http,
    /// `kubernetes.io/h2c`: HTTP/2 in the clear, with prior knowledge.
    H2c,
}

/// By what an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RoutingStrategy {
    /// By the live load of the model servers.
    #[default]
    Default,
    /// The same, and requests that share a prompt prefix go to the server that holds it, as long as load allows.
    PrefixCache,
}

/// How prompts are cut and remembered under [`RoutingStrategy::PrefixCache`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixCachePolicy {
    /// A prompt is cut in blocks of this many bytes; a shorter tail is ignored. 1 to 65536.
    pub block_size_bytes: u32,
    /// At most this many leading blocks of one request are matched. 1 to 65536.
    pub prefix_blocks_max: u32,
    /// How many blocks are remembered for each endpoint, least recently used out first. 1 to 10,000,000.
    pub lru_capacity_blocks: u32,
}

/// Whether and how long requests wait while every endpoint is saturated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueingPolicy {
    /// False: a request of negative priority is refused under saturation, all others go through.
    pub enabled: bool,
    /// Sum of the bytes of all queued request bodies. 1 to 2^40.
    pub capacity_bytes: u64,
    /// The longest wait; above zero, at most what int64 nanoseconds hold.
    pub ttl: Duration,
}

/// Whose metrics the endpoints of a pool expose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// vLLM, v0 and v1 engine.
    #[default]
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM, behind Triton or `trtllm-serve`.
    TrtLlm,
}

/// How an endpoint's metrics page is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MetricsScheme {
    /// In the clear.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

/// Where on an endpoint its metrics are read: our addition, the names follow upstream's flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsTarget {
    /// In the clear or over TLS.
    pub scheme: MetricsScheme,
    /// `None`: the endpoint's own port.
    pub port: Option<u16>,
    /// Begins with `/`.
    pub path: String,
    /// True, as upstream has it: pods rarely hold certificates for their IPs.
    pub https_insecure_skip_verify: bool,
}

/// Everything a pool's annotations decide, parsed and in range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolPolicy {
    /// By what an endpoint is chosen.
    pub routing_strategy: RoutingStrategy,
    /// How prompts are cut and remembered.
    pub prefix_cache: PrefixCachePolicy,
    /// Whether and how long requests wait.
    pub queueing: QueueingPolicy,
    /// Whose metrics are read.
    pub runtime: Runtime,
    /// Where they are read.
    pub metrics: MetricsTarget,
    /// The ConfigMap, in the pool's namespace, that reshapes the picker's own objects.
    pub epp_overlay: Option<String>,
}

/// What [`PoolPolicy::resolve`] makes of a pool's annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What is in force.
    pub policy: PoolPolicy,
    /// One entry for each setting we know, in the order of the settings table.
    pub settings: Vec<Setting>,
    /// What is wrong, in the order of positions.
    pub faults: Vec<Fault>,
}

/// One setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The whole annotation key, prefix included.
    pub key: &'static str,
    /// The value in force, as an operator would write it; empty where there is none.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where the value of a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Nobody set it, or it was set badly and there is no earlier value.
    Default,
    /// The annotation.
    Annotation,
    /// The annotation is bad: this is the value from before it was.
    LastValid,
}

impl PoolId {
    /// The id of the pool `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for PoolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V1Alpha2 => "v1alpha2",
        })
    }
}

impl Default for PrefixCachePolicy {
    fn default() -> Self {
        Self { block_size_bytes: 64, prefix_blocks_max: 128, lru_capacity_blocks: 50_000 }
    }
}

impl Default for QueueingPolicy {
    fn default() -> Self {
        Self { enabled: false, capacity_bytes: 100 << 20, ttl: Duration::from_secs(30) }
    }
}

impl Default for MetricsTarget {
    fn default() -> Self {
        Self {
            scheme: MetricsScheme::Http,
            port: None,
            path: "/metrics".to_owned(),
            https_insecure_skip_verify: true,
        }
    }
}
