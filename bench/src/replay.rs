//! The Mooncake trace onto simulated engines, in virtual time: what each way to choose does to the first token.

mod fleet;
mod policy;

use std::time::Duration;

use sim::engine::Config;
use sim::replay::TraceRequest;

use self::fleet::{Fleet, Outcome};
use self::policy::Policy;
use crate::report::{Table, line};
use crate::trace;

const ENGINES: usize = 8;

/// One way to load the engines.
struct Scenario {
    title: &'static str,
    requests: Requests,
    /// KV cache of one engine, in tokens.
    cache_tokens: u32,
    /// `prefix-cache-max-prefix-blocks`; a block is 16 tokens.
    prefix_blocks_max: u32,
}

enum Requests {
    /// The trace, its arrivals so many times as fast as they were recorded.
    Mooncake(f64),
    /// [`trace::documents`], so many a second.
    Documents(f64),
}

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        title: "Mooncake, as recorded",
        requests: Requests::Mooncake(1.0),
        cache_tokens: 524_288,
        prefix_blocks_max: 128,
    },
    Scenario {
        title: "Mooncake, half as fast again",
        requests: Requests::Mooncake(1.5),
        cache_tokens: 524_288,
        prefix_blocks_max: 128,
    },
    Scenario {
        title: "Mooncake, half as fast again, 2,048 prefix blocks instead of 128",
        requests: Requests::Mooncake(1.5),
        cache_tokens: 524_288,
        prefix_blocks_max: 2048,
    },
    Scenario {
        title: "Mooncake, as recorded, a quarter of the KV cache",
        requests: Requests::Mooncake(1.0),
        cache_tokens: 131_072,
        prefix_blocks_max: 128,
    },
    Scenario {
        title: "questions about 150 documents, 8 a second",
        requests: Requests::Documents(8.0),
        cache_tokens: 524_288,
        prefix_blocks_max: 128,
    },
    Scenario {
        title: "questions about 150 documents, 14 a second",
        requests: Requests::Documents(14.0),
        cache_tokens: 524_288,
        prefix_blocks_max: 128,
    },
];

pub(crate) fn run() -> anyhow::Result<()> {
    let mooncake = trace::load()?;
    line(&format!(
        "\n{ENGINES} engines of the simulator's default model (prefill 100 us a token, decode step 10 ms); {} requests of \
         the Mooncake trace, or {} questions.",
        mooncake.len(),
        trace::QUESTIONS
    ))?;
    for scenario in &SCENARIOS {
        match scenario.requests {
            Requests::Mooncake(speed) => play_all(scenario, &mooncake, speed)?,
            Requests::Documents(per_second) => play_all(scenario, &trace::documents(per_second), 1.0)?,
        }
    }
    Ok(())
}

fn play_all(scenario: &Scenario, trace: &[TraceRequest], speed: f64) -> anyhow::Result<()> {
    let title = format!("Replay: {} (KV cache of {} tokens each)", scenario.title, scenario.cache_tokens);
    let columns =
        ["policy", "TTFT mean s", "p50", "p90", "p99", "end to end mean s", "cached %", "makespan s"];
    let table = Table::new(&title, &columns)?;
    for policy in Policy::ALL {
        let config = Config { num_gpu_blocks: scenario.cache_tokens / 16, ..Config::default() };
        let fleet = Fleet::new(&config, ENGINES, policy, scenario.prefix_blocks_max);
        table.row(&cells(policy, fleet.play(trace, speed)))?;
    }
    Ok(())
}

fn cells(policy: Policy, outcome: Outcome) -> [String; 8] {
    let mut first_tokens = outcome.first_tokens;
    first_tokens.sort_unstable();
    let seconds = |time: Duration| format!("{:.2}", time.as_secs_f64());
    let quantile = |per_cent: usize| {
        first_tokens.get(first_tokens.len() * per_cent / 100).map_or("-".into(), |&time| seconds(time))
    };
    let mean = |total: Duration| seconds(total / first_tokens.len().max(1) as u32);
    [
        policy.name().into(),
        mean(first_tokens.iter().sum()),
        quantile(50),
        quantile(90),
        quantile(99),
        mean(outcome.end_to_end),
        format!("{:.1}", 100.0 * outcome.cached_tokens as f64 / outcome.prompt_tokens.max(1) as f64),
        format!("{:.0}", outcome.makespan.as_secs_f64()),
    ]
}
