//! Three classes of requests at twice what the engines can serve, with queueing and without; and the critical ones alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::door::Door;
use super::house::{CLASSES, House, ask, body};
use crate::report::{Table, line};

const ENGINES: usize = 4;
const WARM_UP: Duration = Duration::from_secs(15);
const MEASURED: Duration = Duration::from_secs(40);
/// Each class's share of what comes at twice the capacity: critical ones alone are a half of the capacity.
const SHARES: [f64; 3] = [0.25, 0.375, 0.375];
const QUEUEING: &[(&str, &str)] = &[("inference.networking.x-k8s.io/queueing", "enabled")];

/// What limits the engines.
struct Scenario {
    title: &'static str,
    engine: &'static [&'static str],
    prompt_bytes: usize,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario {
        title: "limited by sequences (32 an engine), prompts of about 500 tokens",
        engine: &["--max-num-seqs", "32"],
        prompt_bytes: 2000,
    },
    Scenario {
        title: "limited by KV cache (16,384 tokens an engine), prompts of about 500 tokens",
        engine: &["--num-gpu-blocks", "1024"],
        prompt_bytes: 2000,
    },
    Scenario {
        title: "limited by prefill, prompts of about 4,000 tokens",
        engine: &[],
        prompt_bytes: 16_000,
    },
];

/// What came of one run.
struct Run {
    /// Times to the first token of each class, sorted.
    firsts: [Vec<Duration>; 3],
    refused: [u64; 3],
    tokens_per_s: f64,
    engine_queue_max: f64,
}

/// A row of the table: a load, behind a door.
struct Case {
    name: &'static str,
    door: Door,
    /// Critical requests come alone.
    alone: bool,
    annotations: &'static [(&'static str, &'static str)],
}

const fn case(name: &'static str, door: Door, alone: bool, queueing: bool) -> Case {
    Case { name, door, alone, annotations: if queueing { QUEUEING } else { &[] } }
}

/// Our gateway with queueing and without.
const OURS: [Case; 3] = [
    case("critical alone", Door::Gateway, true, false),
    case("queueing: disabled", Door::Gateway, false, false),
    case("queueing: enabled", Door::Gateway, false, true),
];
/// Behind Envoy, beside the Go picker.
const PEERS: [Case; 4] = [
    case("Pointsman, critical alone", Door::OurPicker, true, true),
    case("Pointsman", Door::OurPicker, false, true),
    case("GAIE 1.5.0 with flow control, critical alone", Door::GoPicker, true, true),
    case("GAIE 1.5.0 with flow control", Door::GoPicker, false, true),
];

/// Our gateway with queueing beside without.
pub(crate) async fn run() -> anyhow::Result<()> {
    for scenario in &SCENARIOS {
        let runs = table(scenario, &OURS).await?;
        let [alone, off, on] = &runs[..] else { unreachable!("a run each") };
        line(&format!(
            "\nCritical p90 TTFT, enabled to alone: {:.2}; disabled to alone: {:.2}. Output tokens/s, enabled to disabled: {:.3}.",
            p90(on) / p90(alone),
            p90(off) / p90(alone),
            on.tokens_per_s / off.tokens_per_s
        ))?;
    }
    Ok(())
}

/// Our picker beside the Go one, each behind Envoy with bodies streamed through it.
pub(crate) async fn peers() -> anyhow::Result<()> {
    for scenario in &SCENARIOS {
        let runs = table(scenario, &PEERS).await?;
        let [our_alone, ours, go_alone, go] = &runs[..] else { unreachable!("a run each") };
        line(&format!(
            "\nCritical p90 TTFT to its value alone: ours {:.2}, GAIE's {:.2}. Output tokens/s, ours to GAIE's: {:.3}.",
            p90(ours) / p90(our_alone),
            p90(go) / p90(go_alone),
            ours.tokens_per_s / go.tokens_per_s
        ))?;
    }
    Ok(())
}

fn p90(run: &Run) -> f64 {
    at(&run.firsts[0], 0.9).unwrap_or_default().as_secs_f64()
}

async fn table(scenario: &Scenario, cases: &[Case]) -> anyhow::Result<Vec<Run>> {
    let capacity = capacity(scenario).await?;
    line(&format!(
        "\n{ENGINES} simulated engines, {}: they serve {capacity:.1} requests a second, {:.1} come. Each run: \
         {WARM_UP:?}, then {MEASURED:?} measured.",
        scenario.title,
        2.0 * capacity
    ))?;
    let table = Table::new(
        &format!("Twice the capacity, {}", scenario.title),
        &[
            "",
            "critical p50 / p90 TTFT, s",
            "standard",
            "sheddable",
            "refused",
            "output tokens/s",
            "longest engine queue",
        ],
    )?;
    let rates = SHARES.map(|share| 2.0 * capacity * share);
    let mut runs = Vec::new();
    for case in cases {
        let rates = if case.alone { [rates[0], 0.0, 0.0] } else { rates };
        let run = load(scenario, case, rates).await?;
        let mut cells = vec![case.name.to_owned()];
        cells.extend(run.firsts.iter().map(|firsts| {
            let of =
                |share| at(firsts, share).map_or("-".into(), |time| format!("{:.2}", time.as_secs_f64()));
            format!("{} / {} ({} served)", of(0.5), of(0.9), firsts.len())
        }));
        cells.push(run.refused.map(|count| count.to_string()).join(" / "));
        cells.push(format!("{:.0}", run.tokens_per_s));
        cells.push(format!("{:.0}", run.engine_queue_max));
        table.row(&cells)?;
        runs.push(run);
    }
    Ok(runs)
}

fn at(sorted: &[Duration], share: f64) -> Option<Duration> {
    sorted.get(((sorted.len().max(1) - 1) as f64 * share).round() as usize).copied()
}

/// Requests a second that the engines serve while always more wait.
async fn capacity(scenario: &Scenario) -> anyhow::Result<f64> {
    let house = House::start(ENGINES, scenario.engine, &[], &[]).await?;
    let served = Arc::new(AtomicU64::new(0));
    let numbers = Arc::new(AtomicU64::new(1 << 32));
    let mut clients = JoinSet::new();
    for _ in 0..ENGINES * 100 {
        let (gateway, served, numbers) = (house.door.gateway, Arc::clone(&served), Arc::clone(&numbers));
        let bytes = scenario.prompt_bytes;
        clients.spawn(async move {
            loop {
                let text = body(numbers.fetch_add(1, Ordering::Relaxed), bytes);
                if ask(gateway, "standard", &text).await.is_ok() {
                    served.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    sleep(WARM_UP).await;
    let (begin, before) = (Instant::now(), served.load(Ordering::Relaxed));
    sleep(WARM_UP).await;
    Ok((served.load(Ordering::Relaxed) - before) as f64 / begin.elapsed().as_secs_f64())
}

/// Requests of each class at these rates, their arrivals as chance has them (Poisson), whatever becomes of them.
async fn load(scenario: &Scenario, case: &Case, rates: [f64; 3]) -> anyhow::Result<Run> {
    let house = House::behind(case.door, ENGINES, scenario.engine, case.annotations, &[]).await?;
    let seen = Arc::new(Mutex::new(([const { Vec::new() }; 3], [0; 3])));
    let mut arrivals = JoinSet::new();
    let begin = Instant::now();
    let measured = begin + WARM_UP..begin + WARM_UP + MEASURED;
    for class in 0..CLASSES.len() {
        let (gateway, seen, measured) = (house.door.gateway, Arc::clone(&seen), measured.clone());
        let (rate, bytes) = (rates[class], scenario.prompt_bytes);
        arrivals.spawn(async move {
            let mut requests = JoinSet::new();
            let (mut at, mut number) = (begin, class as u64 * 1_000_000);
            while rate > 0.0 && at < measured.end {
                sleep_until(at.into()).await;
                number += 1;
                let (seen, counts, text) = (Arc::clone(&seen), measured.contains(&at), body(number, bytes));
                requests.spawn(async move {
                    let asked = ask(gateway, CLASSES[class].0, &text).await;
                    let mut seen = seen.lock();
                    match asked {
                        Ok(first) if counts => seen.0[class].push(first),
                        Err(_) if counts => seen.1[class] += 1,
                        _ => {}
                    }
                });
                let chance = (crate::trace::mix(number) >> 11) as f64 / (1_u64 << 53) as f64;
                at += Duration::from_secs_f64(-(1.0 - chance).ln() / rate);
            }
            // Those that came last have as long as those that wait may.
            let _ = tokio::time::timeout(Duration::from_secs(35), async {
                while requests.join_next().await.is_some() {}
            })
            .await;
        });
    }
    sleep_until(measured.start.into()).await;
    let before: f64 = house.of_engines(TOKENS).await?.iter().sum();
    let begin = Instant::now();
    let mut engine_queue_max = 0.0_f64;
    while Instant::now() < measured.end {
        sleep(Duration::from_millis(250)).await;
        let waiting = house.of_engines("vllm:num_requests_waiting{").await?;
        engine_queue_max = waiting.into_iter().fold(engine_queue_max, f64::max);
    }
    let tokens = house.of_engines(TOKENS).await?.iter().sum::<f64>() - before;
    let tokens_per_s = tokens / begin.elapsed().as_secs_f64();
    while arrivals.join_next().await.is_some() {}
    let (mut firsts, refused) = std::mem::take(&mut *seen.lock());
    firsts.iter_mut().for_each(|firsts| firsts.sort_unstable());
    Ok(Run { firsts, refused, tokens_per_s, engine_queue_max })
}

const TOKENS: &str = "vllm:generation_tokens_total{";
