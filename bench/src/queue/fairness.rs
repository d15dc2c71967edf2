//! Who gets how much, where all have work waiting and one sends a hundred times as much.

use std::time::Duration;

use flow::{Arrival, Limits, Queue, Verdict};

use crate::report::{Table, line};
use crate::trace;

const CLIENTS: usize = 10;
const DISPATCHED: usize = 200_000;
/// Requests that each client has waiting at all times; the greedy one has more.
const WAITING: usize = 10;
const GREEDY: usize = 100 * WAITING;

/// What a rule looks at.
struct Rule {
    name: &'static str,
    flow: fn(usize) -> String,
    work: fn(u64) -> u64,
}

const RULES: [Rule; 3] = [
    Rule { name: "first come, first served", flow: |_| String::new(), work: |work| work },
    Rule { name: "fair by requests", flow: |client| client.to_string(), work: |_| 1 },
    Rule { name: "fair by work (Pointsman)", flow: |client| client.to_string(), work: |work| work },
];

pub(crate) fn run() -> anyhow::Result<()> {
    let lengths: Vec<u64> = (trace::load()?.iter())
        .map(|request| u64::from(request.input_length) + u64::from(request.output_length))
        .collect();
    line(&format!(
        "\n{CLIENTS} clients with work waiting at all times, {DISPATCHED} requests leave. Lengths from the Mooncake trace; \
         the first client has {GREEDY} waiting where others have {WAITING}, the second one's requests are all ten times as long."
    ))?;
    let table = Table::new(
        "Jain's index of the work that left",
        &["rule", "Jain's index", "least share", "largest share"],
    )?;
    for rule in RULES {
        let given = give(&rule, &lengths);
        let sum: f64 = given.iter().sum();
        let squares: f64 = given.iter().map(|work| work * work).sum();
        let share = |work: f64| format!("{:.1} %", 100.0 * work / sum);
        table.row(&[
            rule.name.to_owned(),
            format!("{:.4}", sum * sum / (given.len() as f64 * squares)),
            share(given.iter().copied().fold(f64::INFINITY, f64::min)),
            share(given.iter().copied().fold(0.0, f64::max)),
        ])?;
    }
    Ok(())
}

/// The work of each client that left.
fn give(rule: &Rule, lengths: &[u64]) -> Vec<f64> {
    let limits = Limits { capacity_bytes: u64::MAX / 2, ttl: Duration::MAX, waiting_max: usize::MAX };
    let mut queue = Queue::new(limits);
    let mut given = vec![0.0; CLIENTS];
    let mut number = 0;
    let mut arrive = |queue: &mut Queue<(usize, u64)>, client: usize| {
        number += 1;
        let work = lengths[trace::mix(number) as usize % lengths.len()] * if client == 1 { 10 } else { 1 };
        let flow = (rule.flow)(client);
        let arrival = Arrival { priority: 0, flow: &flow, bytes: 1, work: (rule.work)(work) };
        let _ = queue.arrive(Duration::ZERO, &arrival, (client, work), &mut Vec::new());
    };
    for turn in 0..GREEDY {
        (0..CLIENTS)
            .filter(|client| *client == 0 || turn < WAITING)
            .for_each(|client| arrive(&mut queue, client));
    }
    let mut left = Vec::new();
    for _ in 0..DISPATCHED {
        queue.dispatch(Duration::ZERO, 1, |_, _| Verdict::Go, &mut left);
        for gone in left.drain(..) {
            let (client, work) = gone.waiter;
            given[client] += work as f64;
            arrive(&mut queue, client);
        }
    }
    given
}
