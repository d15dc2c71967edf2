//! Metrics pages: [`PageReader`] against the slow parser and sums made one line after the other.

use std::sync::Arc;

use endpoints::{CacheGeometry, EngineMetrics, LINE_BYTES_MAX, Lora, PageError, PageReader};
use pool::Runtime;

use crate::exposition::{self, Line, Sample};

/// The largest count, and the largest KV cache use, that the reader says it believes.
const COUNT_MAX: f64 = 1e9;
const USAGE_MAX: f64 = 1.0001;
const RANKS_MAX: usize = 256;

/// Reads the page in these pieces, in one and byte by byte, and holds what comes out against the oracle.
pub(crate) fn check(runtime: Runtime, page: &[u8], pieces: &[&[u8]]) {
    let read = read(runtime, pieces.iter().copied());
    // As text: an error may hold a NaN, which is not equal to itself.
    let said = format!("{read:?}");
    assert_eq!(format!("{:?}", self::read(runtime, [page])), said, "cuts matter");
    let step = page.len() / 8192 + 1;
    assert_eq!(format!("{:?}", self::read(runtime, page.chunks(step))), said, "cuts matter");

    if let Ok(metrics) = &read {
        assert!((0.0..=1.0).contains(&metrics.kv_usage_ratio), "{metrics:?}");
        assert!(metrics.cache.is_none_or(|cache| cache.block_size_tokens > 0 && cache.blocks > 0));
    }
    match Expected::of(runtime, page) {
        Expected::Anything => {}
        Expected::Refusal(why) => assert!(read.is_err(), "{why}, but {read:?}"),
        Expected::Metrics(metrics) => assert_eq!(read, Ok(metrics)),
    }
}

fn read<'a>(
    runtime: Runtime,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<EngineMetrics, PageError> {
    let mut reader = PageReader::new(runtime);
    for piece in pieces {
        reader.feed(piece)?;
    }
    reader.finish()
}

/// What a reader must make of a page.
enum Expected {
    Metrics(EngineMetrics),
    Refusal(&'static str),
    /// A line that matters is odd: a lenient reader may take it or refuse it.
    Anything,
}

/// What a sample tells.
#[derive(Clone, Copy)]
enum Tells {
    Waiting,
    Running,
    KvUsage,
    BlockSize,
    Blocks,
    /// Both, in these labels.
    Geometry(&'static str, &'static str),
    Lora,
    /// It has the name of a series that matters and is none of those that do.
    Nothing,
}

/// Whether a series of that name matters, and what this line of it tells.
fn tells(runtime: Runtime, name: &str, label: impl Fn(&str) -> Option<String>) -> Option<Tells> {
    let by_label = |label_name: &str, known: &[(&str, Tells)]| {
        let value = label(label_name);
        known
            .iter()
            .find(|(word, _)| value.as_deref() == Some(word))
            .map_or(Tells::Nothing, |(_, tells)| *tells)
    };
    Some(match (runtime, name) {
        (Runtime::Vllm, "vllm:num_requests_waiting") => Tells::Waiting,
        (Runtime::Vllm, "vllm:num_requests_running") => Tells::Running,
        (Runtime::Vllm, "vllm:kv_cache_usage_perc" | "vllm:gpu_cache_usage_perc") => Tells::KvUsage,
        (Runtime::Vllm, "vllm:cache_config_info") => Tells::Geometry("block_size", "num_gpu_blocks"),
        (Runtime::Vllm, "vllm:lora_requests_info") => Tells::Lora,
        (Runtime::Sglang, "sglang:num_queue_reqs") => Tells::Waiting,
        (Runtime::Sglang, "sglang:num_running_reqs") => Tells::Running,
        (Runtime::Sglang, "sglang:token_usage") => Tells::KvUsage,
        (Runtime::Sglang, "sglang:cache_config_info") => Tells::Geometry("page_size", "num_pages"),
        (Runtime::TrtLlm, "nv_trt_llm_request_metrics") => {
            by_label("request_type", &[("waiting", Tells::Waiting), ("scheduled", Tells::Running)])
        }
        (Runtime::TrtLlm, "nv_trt_llm_kv_cache_block_metrics") => by_label(
            "kv_cache_block_type",
            &[("fraction", Tells::KvUsage), ("tokens_per", Tells::BlockSize), ("max", Tells::Blocks)],
        ),
        (Runtime::TrtLlm, "trtllm_num_requests_waiting") => Tells::Waiting,
        (Runtime::TrtLlm, "trtllm_num_requests_running") => Tells::Running,
        (Runtime::TrtLlm, "trtllm_kv_cache_utilization") => Tells::KvUsage,
        (Runtime::TrtLlm, "trtllm_kv_cache_tokens_per_block") => Tells::BlockSize,
        (Runtime::TrtLlm, "trtllm_kv_cache_max_blocks") => Tells::Blocks,
        _ => return None,
    })
}

impl Expected {
    fn of(runtime: Runtime, page: &[u8]) -> Self {
        let lines: Vec<&[u8]> = page.split(|&byte| byte == b'\n').collect();
        let (unended, whole) = lines.split_last().expect("split gives at least one");
        if lines.iter().any(|line| line.len() > LINE_BYTES_MAX) {
            return Self::Refusal("a line is too long");
        }
        let matters = |line: &[u8]| name_matters(runtime, line);
        if lines.iter().any(|line| matters(line) && exposition::read(line) == Line::Odd) {
            return Self::Anything;
        }
        if matters(unended) {
            return Self::Refusal("the last line has no end");
        }
        let mut sums = Sums { runtime, ..Sums::default() };
        for line in whole {
            if let Line::Sample(sample) = exposition::read(line)
                && let Err(why) = sums.add(&sample)
            {
                return Self::Refusal(why);
            }
        }
        sums.total().map_or_else(Self::Refusal, Self::Metrics)
    }
}

/// Whether the line begins, blanks aside, with a name that matters.
fn name_matters(runtime: Runtime, line: &[u8]) -> bool {
    let line = line.trim_ascii_start();
    let end = line.iter().position(|byte| b"{ \t".contains(byte)).unwrap_or(line.len());
    std::str::from_utf8(&line[..end]).is_ok_and(|name| tells(runtime, name, |_| None).is_some())
}

/// What has been added up, rank by rank in the order in which they came.
#[derive(Default)]
struct Sums {
    runtime: Runtime,
    waiting: Ranks,
    running: Ranks,
    kv_usage: Ranks,
    block_size: Ranks,
    blocks: Ranks,
    lora: Option<(f64, Lora)>,
    model_name: Option<String>,
}

/// The largest value of each rank.
#[derive(Default)]
struct Ranks(Vec<(String, f64)>);

impl Ranks {
    fn add(&mut self, rank: &str, value: f64, max: f64) -> Result<(), &'static str> {
        if !(value >= 0.0 && value <= max) {
            return Err("a value cannot be");
        }
        match self.0.iter().position(|(known, _)| known == rank) {
            Some(at) if self.0[at].1 < value => self.0[at].1 = value,
            Some(_) => {}
            None if self.0.len() == RANKS_MAX => return Err("there are too many ranks"),
            None => self.0.push((rank.to_owned(), value)),
        }
        Ok(())
    }

    fn sum(&self) -> u32 {
        let mut sum = 0.0;
        for (_, value) in &self.0 {
            sum += value;
        }
        if sum >= f64::from(u32::MAX) { u32::MAX } else { sum.round() as u32 }
    }

    fn max(&self) -> f64 {
        self.0.iter().fold(0.0, |max, (_, value)| if *value > max { *value } else { max })
    }
}

impl Sums {
    fn add(&mut self, sample: &Sample) -> Result<(), &'static str> {
        let label = |name: &str| sample.label(name).map(str::to_owned);
        let Some(tells) = tells(self.runtime, &sample.name, label) else { return Ok(()) };
        let rank_label = match self.runtime {
            Runtime::Vllm => "engine",
            Runtime::Sglang => "dp_rank",
            Runtime::TrtLlm => "model",
        };
        let (rank, value) = (sample.label(rank_label).unwrap_or_default(), sample.value);
        match tells {
            Tells::Waiting => {
                self.waiting.add(rank, value, COUNT_MAX)?;
                if self.model_name.is_none() {
                    self.model_name = label("model_name");
                }
            }
            Tells::Running => self.running.add(rank, value, COUNT_MAX)?,
            Tells::KvUsage => self.kv_usage.add(rank, value, USAGE_MAX)?,
            Tells::BlockSize => self.block_size.add(rank, value, COUNT_MAX)?,
            Tells::Blocks => self.blocks.add(rank, value, COUNT_MAX)?,
            Tells::Geometry(block_size, blocks) => {
                let number = |name| sample.label(name)?.parse::<u32>().ok();
                if let (Some(block_size), Some(blocks)) = (number(block_size), number(blocks)) {
                    self.block_size.add(rank, block_size.into(), f64::MAX)?;
                    self.blocks.add(rank, blocks.into(), f64::MAX)?;
                }
            }
            Tells::Lora => self.add_lora(sample)?,
            Tells::Nothing => {}
        }
        Ok(())
    }

    fn add_lora(&mut self, sample: &Sample) -> Result<(), &'static str> {
        if !(sample.value >= 0.0 && sample.value.is_finite()) {
            return Err("a time cannot be");
        }
        if self.lora.as_ref().is_some_and(|(newest, _)| sample.value < *newest) {
            return Ok(());
        }
        let max = sample.label("max_lora").and_then(|max| max.parse().ok()).ok_or("max_lora is no number")?;
        let mut active: Vec<Arc<str>> = Vec::new();
        for label in ["running_lora_adapters", "waiting_lora_adapters"] {
            for name in sample.label(label).unwrap_or_default().split(',').map(str::trim) {
                if !name.is_empty() && !active.iter().any(|known| **known == *name) {
                    active.push(name.into());
                }
            }
        }
        self.lora = Some((sample.value, Lora { max, active }));
        Ok(())
    }

    fn total(self) -> Result<EngineMetrics, &'static str> {
        if [&self.waiting, &self.running, &self.kv_usage].iter().any(|ranks| ranks.0.is_empty()) {
            return Err("a series is missing");
        }
        let (block_size_tokens, blocks) = (self.block_size.max().round() as u32, self.blocks.sum());
        Ok(EngineMetrics {
            waiting: self.waiting.sum(),
            running: self.running.sum(),
            kv_usage_ratio: self.kv_usage.max().min(1.0) as f32,
            cache: (block_size_tokens > 0 && blocks > 0)
                .then_some(CacheGeometry { block_size_tokens, blocks }),
            lora: self.lora.map(|(_, lora)| lora),
            model_name: self.model_name.map(Arc::from),
        })
    }
}
