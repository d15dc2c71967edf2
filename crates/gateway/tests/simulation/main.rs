//! The whole door on a network that is not real: clients, model servers and faults drawn from a seed, in virtual time.
//! Whatever happens, at the end nothing is in flight and nothing is held, every request has exactly one outcome, and
//! nobody got what belongs to another.
//!
//! `POINTSMAN_SIM_SEEDS=5000 cargo test -p gateway --test simulation` runs more histories (`A..B`: those seeds);
//! `POINTSMAN_SIM_SEED=17` runs one and prints what happened in it (`RUST_LOG=gateway=debug,director=debug`: and why).

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is a failure")]
#![expect(clippy::print_stdout, reason = "a replayed history is printed")]

mod audit;
mod client;
mod client_http2;
mod draw;
mod history;
mod http1;
mod plan;
mod server;
mod server_http2;
mod tap;
mod wire;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use audit::Tally;
use history::History;
use parking_lot::Mutex;
use plan::Plan;

/// Histories of an ordinary run.
const SEEDS: u64 = 200;
/// Of these it is checked that they happen alike twice.
const SEEDS_TWICE: u64 = 12;

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// What a history came to.
struct Verdict {
    violations: Vec<String>,
    tally: Tally,
    fingerprint: u64,
    history: History,
}

#[test]
fn the_books_balance_at_the_end_of_every_history() {
    if let Some(seed) = variable("POINTSMAN_SIM_SEED") {
        return tell_one(seed.parse().unwrap());
    }
    let seeds = seeds();
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new(Tally::default());
    let failed = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let verdict = judge(seed);
                    total.lock().add(&verdict.tally);
                    if !verdict.violations.is_empty() {
                        eprintln!("seed {seed}: {:#?}", verdict.violations);
                        failed.lock().insert(seed, verdict.violations);
                    }
                }
            });
        }
    });
    let (total, failed) = (total.into_inner(), failed.into_inner());
    println!("{total:#?}");
    assert!(
        failed.is_empty(),
        "{} histories failed; replay one with POINTSMAN_SIM_SEED: {:?}",
        failed.len(),
        failed.keys()
    );
    total.check_coverage();
}

#[test]
#[ignore = "the director's clock is the machine's: on a busy one a history can differ by a tick"]
fn a_seed_is_one_history() {
    let seeds = if variable("POINTSMAN_SIM_SEEDS").is_some() { seeds() } else { 0..SEEDS_TWICE };
    for seed in seeds {
        let (one, other) = (judge(seed), judge(seed));
        if one.fingerprint != other.fingerprint {
            let (one, other) = (one.history.lock(), other.history.lock());
            for (actor, lines) in &one.trace {
                let others = &other.trace[actor];
                if let Some((one, other)) = lines.iter().zip(others).find(|(one, other)| one != other) {
                    eprintln!("seed {seed}, {actor}: {one}  <->  {other}");
                }
            }
            panic!("seed {seed} gave two histories");
        }
    }
}

/// Runs the history of `seed` and checks it.
fn judge(seed: u64) -> Verdict {
    count_panics();
    let plan = Plan::draw(seed);
    let history = History::default();
    let before = PANICS.get();
    let inside = world::run(&plan, &history);
    let tally = audit::audit(&plan, &history, &inside);
    if PANICS.get() > before {
        history.violated("something panicked");
    }
    let violations = std::mem::take(&mut history.lock().violations);
    Verdict { violations, tally, fingerprint: history.fingerprint(), history }
}

fn tell_one(seed: u64) {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    let verdict = judge(seed);
    println!("{:#?}", Plan::draw(seed).without_bodies());
    for (actor, lines) in &verdict.history.lock().trace {
        println!("{actor}");
        lines.iter().for_each(|line| println!("  {line}"));
    }
    println!("{:#?}\n{:#?}", verdict.history.lock().doors, verdict.tally);
    assert!(verdict.violations.is_empty(), "seed {seed}: {:#?}", verdict.violations);
}

/// Panics in tasks end in their handles: a hook counts them all the same.
fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

fn seeds() -> Range<u64> {
    let Some(text) = variable("POINTSMAN_SIM_SEEDS") else { return 0..SEEDS };
    let (from, to) = text.split_once("..").unwrap_or(("0", &text));
    from.parse().unwrap()..to.parse().unwrap()
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
