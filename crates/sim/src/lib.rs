//! A model server that is not real: OpenAI API, engine metrics, a model of prefill, decode and KV cache.
