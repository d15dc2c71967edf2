//! What an engine's metrics page says, whatever the engine.

use std::sync::Arc;

/// The load of one model server, read from one page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EngineMetrics {
    /// Requests in the engine's own waiting queue, summed over its data-parallel ranks.
    pub waiting: u32,
    /// Requests the engine is computing, summed over its ranks.
    pub running: u32,
    /// Share of the KV cache in use, 0 to 1: that of its fullest rank.
    pub kv_usage_ratio: f32,
    /// Size of the KV cache, where the engine tells.
    pub cache: Option<CacheGeometry>,
    /// LoRA adapters, where the engine tells.
    pub lora: Option<Lora>,
    /// The base model's name, where the engine tells.
    pub model_name: Option<Arc<str>>,
}

/// The KV cache's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheGeometry {
    /// Tokens in a block.
    pub block_size_tokens: u32,
    /// Blocks, summed over ranks.
    pub blocks: u32,
}

/// The LoRA adapters of one model server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lora {
    /// Adapters that can be active at once.
    pub max: u32,
    /// Adapters that running or waiting requests use, each once, in the engine's order.
    pub active: Vec<Arc<str>>,
}
