//! What the gateway costs and withstands beside plain Envoy, in one run: the same model servers, the same clients,
//! rounds of both in turn. The CPU time is that of the proxy's process alone.
//!
//! `bench gateway [cost | latency | streams | churn | idle | faults]`; all of them without a name.

mod backend;
mod client;
mod cost;
mod faults;
mod memory;
pub(crate) mod stand;

use std::time::Duration;

use anyhow::bail;

/// Model servers behind the proxies, where a step does not say otherwise.
const ENDPOINTS: usize = 4;

/// Runs the steps named, or all.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<()> {
    if let ["backend", latencies_ms] = arguments {
        return backend::run(latencies_ms);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = ["cost", "latency", "streams", "churn", "idle", "faults"];
    for step in if arguments.is_empty() { &all } else { arguments } {
        match *step {
            "cost" => runtime.block_on(cost::run())?,
            "latency" => runtime.block_on(cost::latency())?,
            "streams" => runtime.block_on(memory::streams())?,
            "churn" => runtime.block_on(memory::churn())?,
            "idle" => runtime.block_on(memory::idle())?,
            "faults" => runtime.block_on(faults::run())?,
            _ => bail!("usage: bench gateway [{}]", all.join(" | ")),
        }
    }
    Ok(())
}

/// The middle of `numbers` with the lowest and the highest.
fn spread(numbers: &[f64]) -> (f64, String) {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let ends = (sorted.first().copied().unwrap_or_default(), sorted.last().copied().unwrap_or_default());
    (middle, format!("{middle:.1} ({:.1}-{:.1})", ends.0, ends.1))
}

/// How long a round is measured.
const ROUND: Duration = Duration::from_secs(3);
