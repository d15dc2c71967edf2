//! What one request costs inside the director, without the door's HTTP: allocations by step, and instructions.
//!
//! Instructions are counted by callgrind on this same program, as the difference between two runs of different
//! length, so that what is spent once does not count.

use std::alloc::System;
use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use director::{Clock, Declaration, Director, Head, Limits, Progress, Reason};
use http::StatusCode;
use inference::AnswerKind;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use telemetry::Metrics;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::report::Table;
use crate::world;

const ENDPOINTS: usize = 8;
/// What the gateway's HTTP library hands on at a time from a large upload.
const CHUNK_BYTES: usize = 16 * 1024;
const SIZES: [(&str, usize); 2] = [("1 KB", 1024), ("220 KB", 220 * 1024)];
const STEPS: [&str; 5] = ["begin", "scan", "route", "answer (10 events)", "end"];
const POOL: &str = "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata:\n  name: p\n  annotations: \
    {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}\nspec: {selector: {matchLabels: {app: x}}, \
    targetPorts: [{number: 8000}]}\n";
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Allocations by step, then instructions.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut headings = vec!["step"];
    let names: Vec<String> =
        SIZES.iter().flat_map(|(name, _)| [format!("{name}: allocations"), format!("{name}: bytes")]).collect();
    headings.extend(names.iter().map(String::as_str));
    let table = Table::new("One request in the director: allocations by step", &headings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counted: Vec<_> = SIZES
        .iter()
        .map(|(_, bytes)| runtime.block_on(async { Requests::new(*bytes)?.counted().await }))
        .collect::<anyhow::Result<_>>()?;
    for (step, name) in STEPS.iter().enumerate() {
        let cells = counted.iter().flat_map(|steps| [steps[step].0.to_string(), steps[step].1.to_string()]);
        table.row(&[(*name).to_owned()].into_iter().chain(cells).collect::<Vec<_>>())?;
    }
    let table = Table::new("One request in the director: instructions (callgrind)", &["body", "instructions"])?;
    for (name, bytes) in SIZES {
        let (few, many) = (instructions(bytes, 200)?, instructions(bytes, 1200)?);
        table.row(&[name.to_owned(), ((many - few) / 1000).to_string()])?;
    }
    Ok(())
}

/// The loop that callgrind watches: `count` requests of `bytes`.
pub(crate) fn repeat(bytes: &str, count: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let requests = Requests::new(bytes.parse()?)?;
        for number in 0..count.parse()? {
            requests.one(number, &mut |_| {}).await?;
        }
        Ok(())
    })
}

fn instructions(bytes: usize, count: u32) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["request-loop", &bytes.to_string(), &count.to_string()])
        .output()
        .context("valgrind cannot be run: install it (apt-get install valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected :")).context("no count from callgrind")?;
    Ok(collected.1.trim().parse()?)
}

struct Requests {
    director: Arc<Director>,
    content_bytes: usize,
}

impl Requests {
    fn new(bytes: usize) -> anyhow::Result<Requests> {
        let metrics = Arc::new(Metrics::new("bench"));
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let director = Director::new(metrics, Clock::start(), Limits::default(), tracker, cancel);
        let pool = pool::parse("p.yaml", POOL)?.pools.remove(0);
        let endpoints = world::specs(ENDPOINTS);
        director.declare(&Declaration { pool, named_models: HashSet::new(), endpoints });
        Ok(Requests { director, content_bytes: bytes - 100 })
    }

    /// Allocations and bytes of each step, of a request after many alike.
    async fn counted(&self) -> anyhow::Result<Vec<(usize, usize)>> {
        for number in 0..200 {
            self.one(number, &mut |_| {}).await?;
        }
        let mut steps = Vec::with_capacity(STEPS.len());
        let mut region = Region::new(ALLOCATOR);
        self.one(200, &mut |_| {
            let change = region.change();
            steps.push((change.allocations + change.reallocations, change.bytes_allocated));
            region.reset();
        })
        .await?;
        Ok(steps)
    }

    /// One request from head to end; `after` is called behind each step. Half of the prompt is that of all others.
    async fn one(&self, number: usize, after: &mut impl FnMut(&'static str)) -> anyhow::Result<()> {
        let half = self.content_bytes / 2;
        let unique = format!("{number:08} ").repeat(half / 9);
        let body = format!(
            r#"{{"model":"m","stream":true,"messages":[{{"role":"user","content":"{}{unique}"}}]}}"#,
            "a shared head of the prompt ".repeat(half / 28)
        );
        after("made");
        let head = Head { path: "/v1/chat/completions", content_length: Some(body.len() as u64), readable: true };
        let mut intake = self.director.begin(head)?;
        after(STEPS[0]);
        for chunk in body.as_bytes().chunks(CHUNK_BYTES) {
            if intake.push(chunk)? == Progress::Enough {
                break;
            }
        }
        after(STEPS[1]);
        let mut exchange = intake.route().await?;
        after(STEPS[2]);
        exchange.answer(StatusCode::OK, Some(AnswerKind::EventStream));
        for _ in 0..10 {
            exchange.answer_bytes(b"data: {\"choices\":[{\"delta\":{\"content\":\"on\"}}],\"usage\":null}\n\n");
        }
        after(STEPS[3]);
        exchange.end(Reason::Served);
        drop(exchange);
        after(STEPS[4]);
        Ok(())
    }
}
