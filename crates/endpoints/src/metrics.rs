//! What an engine's metrics page says, whatever the engine.
//!
//! Invariant: a value that cannot be (NaN, infinite, negative, absurdly large) or a page without the needed series is an
//! error, never a zero: a liar must not look like the emptiest endpoint.

use std::sync::Arc;

use pool::Runtime;

use crate::exposition::{LineError, Lines, Sample, split_name};
use recipe::{Reading, Recipe, Series};

mod recipe;

/// The largest count believed.
const COUNT_MAX: f64 = 1e9;
/// The largest KV cache use believed: 1 and a rounding error.
const USAGE_MAX: f64 = 1.0001;
/// The most ranks of one endpoint that are told apart.
const RANKS_MAX: usize = 256;

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
    /// Adapters that running or waiting requests use, each once, running ones first.
    pub active: Vec<Arc<str>>,
}

/// Reads one page as it arrives.
#[derive(Debug)]
pub struct PageReader {
    recipe: &'static Recipe,
    lines: Lines,
    found: Found,
    page_bytes: u64,
}

/// Why a page tells no load.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PageError {
    /// A line without an end within the bound.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The line of a needed series is not in Prometheus' format.
    #[error("{series}: {source}")]
    Malformed {
        /// The series.
        series: &'static str,
        /// What is wrong with the line.
        source: LineError,
    },
    /// A value that cannot be.
    #[error("{series} is {value}: expected a finite number from 0 to {max}")]
    BadValue {
        /// The series.
        series: &'static str,
        /// What it says.
        value: f64,
        /// The largest value believed.
        max: f64,
    },
    /// A label that should hold a number does not.
    #[error("{series}: label {label} is {value:?}: expected a whole number")]
    BadLabel {
        /// The series.
        series: &'static str,
        /// The label.
        label: &'static str,
        /// What it says, at most 64 characters of it.
        value: String,
    },
    /// More ranks than an endpoint can have.
    #[error("{series} has more than {RANKS_MAX} ranks")]
    TooManyRanks {
        /// The series.
        series: &'static str,
    },
    /// The page is not that of the runtime, or not a metrics page at all.
    #[error("no {missing} in a page of {page_bytes} bytes: is model-server-runtime right?")]
    MissingSeries {
        /// What was looked for and not found; alternatives are joined by "or".
        missing: String,
        /// The size of the page.
        page_bytes: u64,
    },
}

/// What has been seen of a page.
#[derive(Debug, Default)]
struct Found {
    waiting: PerRank,
    running: PerRank,
    kv_usage: PerRank,
    block_size: PerRank,
    blocks: PerRank,
    /// The newest so far, with its time.
    lora: Option<(f64, Lora)>,
    model_name: Option<Arc<str>>,
}

/// One quantity of each rank. Several series of one rank (its tensor- or pipeline-parallel workers) tell the same
/// queue: the largest counts.
#[derive(Debug, Default)]
struct PerRank(Vec<(Box<str>, f64)>);

impl PageReader {
    /// A reader of a page of `runtime`'s.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        let recipe = Recipe::of(runtime);
        Self { recipe, lines: Lines::default(), found: Found::default(), page_bytes: 0 }
    }

    /// Reads the next part of the page; parts may be cut anywhere.
    ///
    /// # Errors
    /// Any [`PageError`] but [`PageError::MissingSeries`]; the page is then of no further use.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), PageError> {
        self.page_bytes += chunk.len() as u64;
        let (recipe, found) = (self.recipe, &mut self.found);
        self.lines.feed(chunk, |line| found.read_line(recipe, line))
    }

    /// What the page said.
    ///
    /// # Errors
    /// Any [`PageError`].
    pub fn finish(self) -> Result<EngineMetrics, PageError> {
        let unended = split_name(self.lines.unended()).and_then(|(name, _)| self.recipe.wanted(name));
        if let Some(series) = unended {
            return Err(PageError::Malformed { series: series.name, source: LineError::Unended });
        }
        let missing = self.found.missing(self.recipe);
        if !missing.is_empty() {
            return Err(PageError::MissingSeries { missing, page_bytes: self.page_bytes });
        }
        Ok(self.found.into_metrics())
    }
}

impl Found {
    fn read_line(&mut self, recipe: &'static Recipe, line: &[u8]) -> Result<(), PageError> {
        let Some((name, after_name)) = split_name(line) else { return Ok(()) };
        let Some(Series { name, .. }) = recipe.wanted(name) else { return Ok(()) };
        let sample =
            Sample::parse(after_name).map_err(|source| PageError::Malformed { series: name, source })?;
        // One name may tell several quantities apart by a label.
        let series = recipe.series.iter().find(|series| series.name == *name && series.matches(&sample));
        series.map_or(Ok(()), |series| self.read_sample(recipe, series, &sample))
    }

    fn read_sample(
        &mut self,
        recipe: &Recipe,
        series: &'static Series,
        sample: &Sample<'_>,
    ) -> Result<(), PageError> {
        let (quantity, value) = match series.reading {
            Reading::Waiting => (&mut self.waiting, count(series.name, sample.value)?),
            Reading::Running => (&mut self.running, count(series.name, sample.value)?),
            Reading::KvUsage => (&mut self.kv_usage, believable(series.name, sample.value, USAGE_MAX)?),
            Reading::BlockSize => (&mut self.block_size, count(series.name, sample.value)?),
            Reading::Blocks => (&mut self.blocks, count(series.name, sample.value)?),
            Reading::Geometry { block_size, blocks } => {
                // An engine that has not sized its cache yet writes `None`: not known, and no fault.
                let number = |label| sample.labels.value(label)?.parse::<u32>().ok().map(f64::from);
                let (Some(block_size), Some(blocks)) = (number(block_size), number(blocks)) else {
                    return Ok(());
                };
                let rank = sample.labels.value(recipe.rank_label).unwrap_or_default();
                self.block_size.record(series.name, &rank, block_size)?;
                return self.blocks.record(series.name, &rank, blocks);
            }
            Reading::Lora => return self.read_lora(series.name, sample),
        };
        if series.reading == Reading::Waiting && self.model_name.is_none() {
            self.model_name = sample.labels.value("model_name").map(Arc::from);
        }
        let rank = sample.labels.value(recipe.rank_label).unwrap_or_default();
        quantity.record(series.name, &rank, value)
    }

    /// vLLM leaves a series behind for each set of adapters it ever had; the value is when it was true.
    fn read_lora(&mut self, series: &'static str, sample: &Sample<'_>) -> Result<(), PageError> {
        let at = believable(series, sample.value, f64::MAX)?;
        if self.lora.as_ref().is_some_and(|(newest, _)| *newest > at) {
            return Ok(());
        }
        let label = "max_lora";
        let max = sample.labels.value(label).unwrap_or_default();
        let Ok(max) = max.parse() else {
            let value = max.chars().take(64).collect();
            return Err(PageError::BadLabel { series, label, value });
        };
        let mut active: Vec<Arc<str>> = Vec::new();
        for label in ["running_lora_adapters", "waiting_lora_adapters"] {
            let names = sample.labels.value(label).unwrap_or_default();
            for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                if !active.iter().any(|known| &**known == name) {
                    active.push(name.into());
                }
            }
        }
        self.lora = Some((at, Lora { max, active }));
        Ok(())
    }

    /// The names of the needed series that are not there.
    fn missing(&self, recipe: &Recipe) -> String {
        let needed = [
            (Reading::Waiting, &self.waiting),
            (Reading::Running, &self.running),
            (Reading::KvUsage, &self.kv_usage),
        ];
        let absent = needed.iter().filter(|(_, quantity)| quantity.0.is_empty());
        let names = absent.map(|(reading, _)| recipe.names_of(*reading).join(" or "));
        names.collect::<Vec<_>>().join(", ")
    }

    fn into_metrics(self) -> EngineMetrics {
        let (block_size_tokens, blocks) = (to_u32(self.block_size.max()), to_u32(self.blocks.sum()));
        let geometry = CacheGeometry { block_size_tokens, blocks };
        EngineMetrics {
            waiting: to_u32(self.waiting.sum()),
            running: to_u32(self.running.sum()),
            kv_usage_ratio: self.kv_usage.max().min(1.0) as f32,
            cache: (block_size_tokens > 0 && blocks > 0).then_some(geometry),
            lora: self.lora.map(|(_, lora)| lora),
            model_name: self.model_name,
        }
    }
}

impl PerRank {
    fn record(&mut self, series: &'static str, rank: &str, value: f64) -> Result<(), PageError> {
        if let Some((_, largest)) = self.0.iter_mut().find(|(known, _)| **known == *rank) {
            *largest = largest.max(value);
        } else if self.0.len() < RANKS_MAX {
            self.0.push((rank.into(), value));
        } else {
            return Err(PageError::TooManyRanks { series });
        }
        Ok(())
    }

    fn sum(&self) -> f64 {
        self.0.iter().map(|(_, value)| value).sum()
    }

    fn max(&self) -> f64 {
        self.0.iter().map(|(_, value)| *value).fold(0.0, f64::max)
    }
}

fn count(series: &'static str, value: f64) -> Result<f64, PageError> {
    believable(series, value, COUNT_MAX)
}

fn believable(series: &'static str, value: f64, max: f64) -> Result<f64, PageError> {
    // NaN is in no range.
    if (0.0..=max).contains(&value) { Ok(value) } else { Err(PageError::BadValue { series, value, max }) }
}

/// The nearest whole number; sums beyond `u32` saturate.
fn to_u32(value: f64) -> u32 {
    value.round() as u32
}
