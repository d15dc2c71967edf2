//! Which series of each runtime's page tell what: data, no code per engine.

use pool::Runtime;

use crate::exposition::Sample;

/// Where a runtime's quantities are.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// The series to read. Several with one reading are alternatives: other versions, other servers.
    pub(crate) series: &'static [Series],
    /// The label that tells independent engines on one page apart: their queues add up.
    pub(crate) rank_label: &'static str,
}

/// One series, or those of its lines that carry a label.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    only: Option<(&'static str, &'static str)>,
    pub(crate) reading: Reading,
}

/// What a series tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Requests in the queue.
    Waiting,
    /// Requests being computed.
    Running,
    /// Share of the KV cache in use, 0 to 1.
    KvUsage,
    /// Tokens in a block.
    BlockSize,
    /// Blocks of the cache.
    Blocks,
    /// Block size and blocks, as the labels of those names.
    Geometry { block_size: &'static str, blocks: &'static str },
    /// LoRA adapters as labels; the value is a time.
    Lora,
}

impl Recipe {
    pub(crate) fn of(runtime: Runtime) -> &'static Self {
        match runtime {
            Runtime::Vllm => &VLLM,
            Runtime::Sglang => &SGLANG,
            Runtime::TrtLlm => &TRT_LLM,
        }
    }

    /// A series of that name, if any is to be read.
    pub(crate) fn wanted(&self, name: &[u8]) -> Option<&'static Series> {
        self.series.iter().find(|series| series.name.as_bytes() == name)
    }

    /// The series that tell `reading`, as a person writes them.
    pub(crate) fn names_of(&self, reading: Reading) -> Vec<String> {
        let tells = self.series.iter().filter(|series| series.reading == reading);
        tells
            .map(|series| match series.only {
                Some((label, value)) => format!("{}{{{label}={value:?}}}", series.name),
                None => series.name.to_owned(),
            })
            .collect()
    }
}

impl Series {
    pub(crate) fn matches(&self, sample: &Sample<'_>) -> bool {
        self.only.is_none_or(|(label, value)| sample.labels.value(label).is_some_and(|found| found == value))
    }
}

const fn series(name: &'static str, reading: Reading) -> Series {
    Series { name, only: None, reading }
}

const fn labelled(name: &'static str, label: &'static str, value: &'static str, reading: Reading) -> Series {
    Series { name, only: Some((label, value)), reading }
}

static VLLM: Recipe = Recipe {
    series: &[
        series("vllm:num_requests_waiting", Reading::Waiting),
        series("vllm:num_requests_running", Reading::Running),
        series("vllm:kv_cache_usage_perc", Reading::KvUsage),
        // The name until 0.10; some versions write both.
        series("vllm:gpu_cache_usage_perc", Reading::KvUsage),
        series(
            "vllm:cache_config_info",
            Reading::Geometry { block_size: "block_size", blocks: "num_gpu_blocks" },
        ),
        series("vllm:lora_requests_info", Reading::Lora),
    ],
    rank_label: "engine",
};

static SGLANG: Recipe = Recipe {
    series: &[
        series("sglang:num_queue_reqs", Reading::Waiting),
        series("sglang:num_running_reqs", Reading::Running),
        series("sglang:token_usage", Reading::KvUsage),
        series(
            "sglang:cache_config_info",
            Reading::Geometry { block_size: "page_size", blocks: "num_pages" },
        ),
    ],
    rank_label: "dp_rank",
};

const TRITON_REQUESTS: &str = "nv_trt_llm_request_metrics";
const TRITON_BLOCKS: &str = "nv_trt_llm_kv_cache_block_metrics";

/// Triton's backend and trtllm-serve, whichever answers.
static TRT_LLM: Recipe = Recipe {
    series: &[
        labelled(TRITON_REQUESTS, "request_type", "waiting", Reading::Waiting),
        labelled(TRITON_REQUESTS, "request_type", "scheduled", Reading::Running),
        labelled(TRITON_BLOCKS, "kv_cache_block_type", "fraction", Reading::KvUsage),
        labelled(TRITON_BLOCKS, "kv_cache_block_type", "tokens_per", Reading::BlockSize),
        labelled(TRITON_BLOCKS, "kv_cache_block_type", "max", Reading::Blocks),
        series("trtllm_num_requests_waiting", Reading::Waiting),
        series("trtllm_num_requests_running", Reading::Running),
        series("trtllm_kv_cache_utilization", Reading::KvUsage),
        series("trtllm_kv_cache_tokens_per_block", Reading::BlockSize),
        series("trtllm_kv_cache_max_blocks", Reading::Blocks),
    ],
    rank_label: "model",
};
