//! Rounds of one step, put side by side: medians, spread, and ratios to the first subject.

use std::collections::BTreeMap;
use std::time::Duration;

use super::arithmetic::{Spread, percentile};
use super::load::Samples;
use super::process::Usage;

/// One round of one subject.
pub(crate) struct Round {
    pub(crate) samples: Samples,
    /// What the server used; none where its process is not known.
    pub(crate) server: Option<Usage>,
    pub(crate) peak_mb: Option<f64>,
    /// What the generator itself used.
    pub(crate) own: Usage,
}

/// The columns of [`Summary::cells`], of which `first` names what the ratios are to.
pub(crate) fn columns(first: &str) -> Vec<String> {
    let cpu = format!("CPU x {first}");
    let p99 = format!("p99 x {first}");
    [
        "server",
        "requests/s",
        "CPU us a request (least to most)",
        &cpu,
        "of it in the kernel",
        "wakes a request",
        "pick p50 / p99 / p99.9 ms",
        &p99,
        "whole p50 / p99 ms",
        "pick before the body's end",
        "peak MB",
        "generator us",
        "late p99 ms",
        "faults",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What a table has no room for: refusals, changed bodies and each fault, with how often it was seen.
pub(crate) fn notes(rounds: &[Round]) -> Vec<String> {
    let mut counts = BTreeMap::<String, u64>::new();
    for samples in rounds.iter().map(|round| &round.samples) {
        let refused =
            samples.refused.iter().map(|(status, count)| (format!("refused with {status}"), *count));
        let changed = ("request bodies came back changed".to_owned(), samples.changed);
        let faults = samples.faults.iter().map(|(fault, count)| (format!("fault: {fault}"), *count));
        for (what, count) in refused.chain([changed]).chain(faults).filter(|(_, count)| *count > 0) {
            *counts.entry(what).or_default() += count;
        }
    }
    counts.into_iter().map(|(what, count)| format!("{what} ({count} times)")).collect()
}

/// The rounds of one subject, as medians over rounds.
pub(crate) struct Summary {
    name: String,
    per_second: Spread,
    cpu_us: Option<Spread>,
    kernel_ratio: f64,
    wakes: f64,
    pick_ms: [f64; 3],
    whole_ms: [f64; 2],
    /// Of an open loop.
    late_ms: Option<f64>,
    /// Where the end of the body was held back.
    early_ratio: f64,
    peak_mb: Option<f64>,
    own_us: f64,
    faults: u64,
}

impl Summary {
    pub(crate) fn new(name: &str, rounds: &mut [Round]) -> Summary {
        for round in &mut *rounds {
            for times in [&mut round.samples.pick, &mut round.samples.whole, &mut round.samples.late] {
                times.sort_unstable();
            }
        }
        let rounds = &*rounds;
        let over = |number: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(number));
        let each = |total: f64, round: &Round| total / (round.samples.count().max(1) as f64);
        let ms = |times: &dyn Fn(&Round) -> Duration| over(&|round| times(round).as_secs_f64() * 1e3).median;
        let servers = || rounds.iter().filter_map(|round| Some((round, round.server?)));
        Summary {
            name: name.to_owned(),
            per_second: over(&|round| round.samples.count() as f64 / round.samples.took.as_secs_f64()),
            cpu_us: rounds.iter().all(|round| round.server.is_some()).then(|| {
                Spread::of(servers().map(|(round, used)| each(used.cpu.as_secs_f64() * 1e6, round)))
            }),
            kernel_ratio: Spread::of(
                servers().map(|(_, used)| used.kernel.as_secs_f64() / used.cpu.as_secs_f64()),
            )
            .median,
            wakes: Spread::of(servers().map(|(round, used)| each(used.wakes as f64, round))).median,
            pick_ms: [0.5, 0.99, 0.999].map(|share| ms(&|round| percentile(&round.samples.pick, share))),
            whole_ms: [0.5, 0.99].map(|share| ms(&|round| percentile(&round.samples.whole, share))),
            late_ms: rounds
                .iter()
                .any(|round| !round.samples.late.is_empty())
                .then(|| ms(&|round| percentile(&round.samples.late, 0.99))),
            early_ratio: over(&|round| each(round.samples.early as f64, round)).median,
            peak_mb: rounds.iter().filter_map(|round| round.peak_mb).reduce(f64::max),
            own_us: over(&|round| each(round.own.cpu.as_secs_f64() * 1e6, round)).median,
            faults: rounds.iter().map(|round| round.samples.fault_count()).sum(),
        }
    }

    /// A row of the table, with ratios to `first`.
    pub(crate) fn cells(&self, first: &Summary) -> Vec<String> {
        let unknown = || "-".to_owned();
        let cpu = |spread: Spread| {
            format!("{} ({} to {})", short(spread.median), short(spread.min), short(spread.max))
        };
        let cpu_ratio = self.cpu_us.zip(first.cpu_us).map(|(own, first)| own.median / first.median);
        let known = |text: String| if self.cpu_us.is_some() { text } else { unknown() };
        vec![
            self.name.clone(),
            format!("{:.0}", self.per_second.median),
            self.cpu_us.map_or_else(unknown, cpu),
            cpu_ratio.map_or_else(unknown, |ratio| format!("{ratio:.2}")),
            known(format!("{:.0} %", self.kernel_ratio * 100.0)),
            known(format!("{:.2}", self.wakes)),
            self.pick_ms.map(short).join(" / "),
            format!("{:.2}", self.pick_ms[1] / first.pick_ms[1]),
            self.whole_ms.map(short).join(" / "),
            format!("{:.0} %", self.early_ratio * 100.0),
            self.peak_mb.map_or_else(unknown, |peak| format!("{peak:.0}")),
            short(self.own_us),
            self.late_ms.map_or_else(unknown, short),
            self.faults.to_string(),
        ]
    }
}

/// Three digits that say something.
pub(crate) fn short(number: f64) -> String {
    match number {
        _ if number >= 100.0 => format!("{number:.0}"),
        _ if number >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(picks_ms: &[u64], cpu_ms: u64) -> Round {
        let times: Vec<Duration> = picks_ms.iter().copied().map(Duration::from_millis).collect();
        let samples =
            Samples { pick: times.clone(), whole: times, took: Duration::from_secs(2), ..Samples::default() };
        let server = Usage { cpu: Duration::from_millis(cpu_ms), kernel: Duration::ZERO, wakes: 4 };
        Round { samples, server: Some(server), peak_mb: Some(7.0), own: Usage::default() }
    }

    #[test]
    fn a_row_has_medians_over_rounds_and_ratios_to_the_first() {
        // Four requests a round: 10, 20 and 30 ms of CPU make 2500, 5000 and 7500 us each.
        let mut rounds = [10, 30, 20].map(|cpu| round(&[4, 1, 3, 2], cpu));
        let summary = Summary::new("ours", &mut rounds);
        let first = Summary::new("floor", &mut [round(&[1, 1, 1, 1], 10)]);
        let cells = summary.cells(&first);
        assert_eq!(cells.len(), columns("floor").len());
        assert_eq!(&cells[..4], ["ours", "2", "5000 (2500 to 7500)", "2.00"]);
        assert_eq!(&cells[5..8], ["1.00", "2.00 / 4.00 / 4.00", "4.00"]);
    }

    #[test]
    fn what_went_wrong_is_told_with_its_count() {
        let mut rounds = [round(&[1], 10), round(&[1], 10)];
        for round in &mut rounds {
            round.samples.refused.insert(429, 2);
            round.samples.faults.insert("no destination was picked".to_owned(), 1);
        }
        rounds[0].samples.changed = 3;
        let told = notes(&rounds);
        assert_eq!(
            told,
            [
                "fault: no destination was picked (2 times)",
                "refused with 429 (4 times)",
                "request bodies came back changed (3 times)",
            ]
        );
    }

    #[test]
    fn a_server_whose_process_is_not_known_has_no_cpu() {
        let mut rounds = [round(&[1], 10)];
        rounds[0].server = None;
        let cells = Summary::new("far", &mut rounds).cells(&Summary::new("far", &mut [round(&[1], 10)]));
        assert_eq!(&cells[2..6], ["-", "-", "-", "-"]);
    }
}
