//! Decisions per second on one core, and how their cost grows.

use std::hint::black_box;
use std::time::Duration;

use endpoints::Load;
use hashbrown::HashMap;
use pool::PrefixCachePolicy;
use routing::{Known, PrefixIndex, Scratch, decide};
use sim::replay::TraceRequest;

use crate::report::{Table, best_of, line, millions_per_s, ns_each};
use crate::trace;
use crate::world::{Asked, World};

/// Runs of each measurement; the shortest counts.
const RUNS: usize = 5;
const NOW: Duration = Duration::from_secs(1);

pub(crate) fn run() -> anyhow::Result<()> {
    let trace = trace::load()?;
    headline(&trace)?;
    growth(&trace)
}

/// What the issue asks for: 100 endpoints, 128 blocks, index at its capacity, the Mooncake trace.
fn headline(trace: &[TraceRequest]) -> anyhow::Result<()> {
    let mut world = World::new(100, 128, 50_000);
    let first_day = world.fill(trace);
    line(&format!(
        "\nIndex filled with {} days of the trace: {} blocks for 100 endpoints.",
        first_day - 1,
        world.router.index().blocks_held()
    ))?;
    let table = Table::new(
        "Decisions: 100 endpoints, 128 blocks, capacity 50,000, Mooncake trace, one core",
        &["step", "ns", "million/s"],
    )?;
    let row = |step: &str, total: Duration, count: usize| {
        table.row(&[step.into(), ns_each(total, count), millions_per_s(total, count)])
    };

    let (morning, evening) = half_days(&world, trace, first_day);
    morning.iter().for_each(|asked| world.route(asked));
    let count = evening.len();
    let mut loads = Vec::new();
    let read = best_of(RUNS, &evening, |_| world.snapshot.read_loads(NOW, black_box(&mut loads)));
    row("decide", decide_all(&world, &loads, &evening), count)?;
    row("of that: match the prompt", match_all(world.router.index(), &evening), count)?;
    row("read the loads of all endpoints", read, count)?;

    let days: Vec<Vec<Asked>> = (1..=RUNS as u64).map(|run| world.day(trace, first_day + run)).collect();
    let routed = days.iter().map(|asked| best_of(1, asked, |asked| world.route(asked))).min();
    row("read loads + decide + book + record + release", routed.unwrap_or_default(), trace.len())?;

    let prompt: Vec<u8> = (0..8192_u64).map(|byte| trace::mix(byte) as u8).collect();
    let mut hashes = Vec::new();
    let policy = PrefixCachePolicy::default();
    let hashed = best_of(RUNS, &evening, |asked| {
        routing::block_hashes(&prompt, u64::from(asked.prompt_tokens), &policy, black_box(&mut hashes));
    });
    row("hash 8 KB of prompt into 128 blocks", hashed, count)?;
    row(
        "baseline: match by one look-up a block",
        FlatIndex::like(&world, trace, first_day).match_all(&evening),
        count,
    )?;
    let mut turn = 0;
    let robin = best_of(RUNS, &evening, |_| turn = black_box((turn + 1) % 100));
    row("baseline: round robin", robin, count)
}

/// One decision each, by how many endpoints, how long the prompts and how large the index.
fn growth(trace: &[TraceRequest]) -> anyhow::Result<()> {
    let table = Table::new(
        "Growth",
        &[
            "endpoints",
            "prompt blocks",
            "capacity",
            "blocks held",
            "index MB",
            "decide ns",
            "whole request ns",
        ],
    )?;
    let shapes = [
        (10, 128, 50_000),
        (100, 128, 50_000),
        (1000, 128, 5_000),
        (100, 8, 50_000),
        (100, 32, 50_000),
        (100, 512, 50_000),
        (100, 128, 500),
        (100, 128, 5_000),
    ];
    for (endpoints, blocks, capacity) in shapes {
        let mut world = World::new(endpoints, blocks, capacity);
        let first_day = world.fill(trace);
        let (morning, evening) = half_days(&world, trace, first_day);
        morning.iter().for_each(|asked| world.route(asked));
        let mut loads = Vec::new();
        world.snapshot.read_loads(NOW, &mut loads);
        let decided = decide_all(&world, &loads, &evening);
        let day = world.day(trace, first_day + 1);
        let routed = best_of(1, &day, |asked| world.route(asked));
        table.row(&[
            endpoints.to_string(),
            blocks.to_string(),
            capacity.to_string(),
            world.router.index().blocks_held().to_string(),
            format!("{:.1}", world.router.index().memory_bytes() as f64 / 1e6),
            ns_each(decided, evening.len()),
            ns_each(routed, day.len()),
        ])?;
    }
    Ok(())
}

/// A day that is new to the index, in two halves: decisions of the second find what the first half left.
fn half_days(world: &World, trace: &[TraceRequest], day: u64) -> (Vec<Asked>, Vec<Asked>) {
    let mut morning = world.day(trace, day);
    let evening = morning.split_off(morning.len() / 2);
    (morning, evening)
}

fn decide_all(world: &World, loads: &[Load], asked: &[Asked]) -> Duration {
    let mut scratch = Scratch::default();
    let known =
        Known { snapshot: &world.snapshot, loads, policy: &world.policy, index: world.router.index() };
    let mut seed = 0;
    best_of(RUNS, asked, |asked| {
        seed += 1;
        black_box(decide(&asked.request(), &known, 2, seed, &mut scratch));
    })
}

fn match_all(index: &PrefixIndex, asked: &[Asked]) -> Duration {
    let mut matched = Vec::new();
    best_of(RUNS, asked, |asked| {
        index.matches(&asked.blocks, &mut matched);
        black_box(&matched);
    })
}

/// The obvious index: from each block to who holds it.
struct FlatIndex(HashMap<u64, Vec<u32>>);

impl FlatIndex {
    /// Holds about as many blocks as the world's index, all of the same trace; it forgets nothing.
    fn like(world: &World, trace: &[TraceRequest], days: u64) -> Self {
        let mut index = HashMap::new();
        let endpoints = world.snapshot.entries.len();
        let (mut held, mut number) = (0, 0);
        for day in (0..=days).rev() {
            for asked in world.day(trace, day) {
                number += 1;
                let slot = (trace::mix(number) as usize % endpoints) as u32;
                for block in asked.blocks {
                    let holders: &mut Vec<u32> = index.entry(block).or_default();
                    if !holders.contains(&slot) {
                        holders.push(slot);
                        held += 1;
                    }
                }
            }
            if held >= world.router.index().blocks_held() {
                break;
            }
        }
        Self(index)
    }

    fn match_all(&self, asked: &[Asked]) -> Duration {
        let mut matched: Vec<u32> = Vec::new();
        best_of(RUNS, asked, |asked| {
            matched.clear();
            matched.resize(100, 0);
            for (depth, block) in asked.blocks.iter().enumerate() {
                let Some(holders) = self.0.get(block) else { break };
                for &slot in holders {
                    if matched[slot as usize] as usize == depth {
                        matched[slot as usize] = depth as u32 + 1;
                    }
                }
            }
            black_box(&matched);
        })
    }
}
