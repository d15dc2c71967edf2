//! What a simulated server is: the model it claims to serve, and as which engine.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::engine;

/// One simulated server. Everything has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Sent back in `x-sim-server`. Of several servers the second is `NAME-1` and so on, the first `NAME-0`.
    pub name: String,
    /// The base model.
    pub model: String,
    /// LoRA adapters that are there from the start, served under these names.
    pub adapters: Vec<String>,
    /// Whose metrics page to print.
    pub engine_kind: EngineKind,
    /// Which of TensorRT-LLM's two pages, when it is that engine's.
    pub trt_llm_page: TrtLlmPage,
    /// Decides texts and their lengths, and each server's jitter. Servers with one seed answer a request with the
    /// same text.
    pub seed: u64,
    /// Length of an answer that the client does not limit, in tokens: drawn between these two, both included, by the
    /// prompt.
    pub output_tokens_min: u32,
    /// See `output_tokens_min`.
    pub output_tokens_max: u32,
    /// Limits, costs and speed of the engine.
    pub engine: engine::Config,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            name: "sim".into(),
            model: "sim".into(),
            adapters: Vec::new(),
            engine_kind: EngineKind::Vllm,
            trt_llm_page: TrtLlmPage::Triton,
            seed: 0,
            output_tokens_min: 24,
            output_tokens_max: 96,
            engine: engine::Config::default(),
        }
    }
}

/// The engine that a server pretends to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// vLLM 0.32.
    Vllm,
    /// SGLang 0.5.
    Sglang,
    /// TensorRT-LLM.
    TrtLlm,
}

/// The page that TensorRT-LLM's metrics are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrtLlmPage {
    /// Triton's, with names that begin with `nv_`.
    Triton,
    /// That of `trtllm-serve`, with names that begin with `trtllm_`; also at `/prometheus/metrics`.
    TrtllmServe,
}

/// A name that is none of those known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown name `{given}`: expected {expected}")]
pub struct UnknownName {
    /// What was given.
    pub given: String,
    /// The names known, separated by `|`.
    pub expected: &'static str,
}

impl FromStr for EngineKind {
    type Err = UnknownName;

    fn from_str(given: &str) -> Result<Self, UnknownName> {
        match given {
            "vllm" => Ok(Self::Vllm),
            "sglang" => Ok(Self::Sglang),
            "trt-llm" => Ok(Self::TrtLlm),
            _ => Err(UnknownName { given: given.into(), expected: "vllm|sglang|trt-llm" }),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::TrtLlm => "trt-llm",
        })
    }
}

impl FromStr for TrtLlmPage {
    type Err = UnknownName;

    fn from_str(given: &str) -> Result<Self, UnknownName> {
        match given {
            "triton" => Ok(Self::Triton),
            "trtllm-serve" => Ok(Self::TrtllmServe),
            _ => Err(UnknownName { given: given.into(), expected: "triton|trtllm-serve" }),
        }
    }
}

impl fmt::Display for TrtLlmPage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Triton => "triton",
            Self::TrtllmServe => "trtllm-serve",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_printed_and_as_serde_writes_them() {
        for kind in [EngineKind::Vllm, EngineKind::Sglang, EngineKind::TrtLlm] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
        for page in [TrtLlmPage::Triton, TrtLlmPage::TrtllmServe] {
            assert_eq!(page.to_string().parse(), Ok(page));
            assert_eq!(serde_json::to_value(page).unwrap(), page.to_string());
        }
        assert!("llama".parse::<EngineKind>().unwrap_err().to_string().contains("vllm|sglang|trt-llm"));
    }
}
