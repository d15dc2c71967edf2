//! Markdown tables on stdout, and the clock.

use std::io::Write;
use std::time::{Duration, Instant};

/// Items timed together: few enough that most batches run undisturbed, enough that reading the clock costs nothing.
const BATCH: usize = 100;

/// A table with a title; rows are printed as they come, so that a long benchmark shows its progress.
pub(crate) struct Table;

impl Table {
    pub(crate) fn new(title: &str, columns: &[&str]) -> anyhow::Result<Self> {
        line(&format!("\n### {title}\n"))?;
        line(&format!("| {} |", columns.join(" | ")))?;
        line(&format!("|{}", "---|".repeat(columns.len())))?;
        Ok(Self)
    }

    pub(crate) fn row(&self, cells: &[String]) -> anyhow::Result<()> {
        line(&format!("| {} |", cells.join(" | ")))
    }
}

/// A line on stdout.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// How long `work` takes.
pub(crate) fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// How long `work` takes on all of `items`: the sum over short batches, each at the best of `times` runs, which is
/// what the machine can do when nobody disturbs.
pub(crate) fn best_of<T>(times: usize, items: &[T], mut work: impl FnMut(&T)) -> Duration {
    let batches = items.chunks(BATCH);
    let mut best = |batch: &[T]| (0..times).map(|_| time(|| batch.iter().for_each(&mut work))).min();
    batches.map(|batch| best(batch).unwrap_or_default()).sum()
}

/// Nanoseconds for each of `count`, as a number without decimals.
pub(crate) fn ns_each(total: Duration, count: usize) -> String {
    format!("{:.0}", total.as_nanos() as f64 / count as f64)
}

/// Millions a second.
pub(crate) fn millions_per_s(total: Duration, count: usize) -> String {
    format!("{:.2}", count as f64 / total.as_secs_f64() / 1e6)
}
