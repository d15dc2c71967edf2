//! `bench picker`: what an endpoint picker costs. A generator that speaks Envoy's ext_proc straight, at any picker by
//! its address or command, beside empty servers of ours as floors. One Markdown table a step.
//!
//! Invariants: closed loops keep a fixed number of exchanges in flight; open loops send when it is time, whatever the
//! server does, and count from then. An answer that is not what Envoy would take is a fault, never a sample.

mod arithmetic;
mod connection;
mod endpoints;
mod exchange;
mod load;
mod process;
mod prompts;
mod steps;
mod subject;
mod summary;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use bench::ext_proc::BodyMode;
use clap::{Args, Parser, Subcommand, ValueEnum};

use self::connection::Connections;
use self::endpoints::Endpoints;
use self::exchange::Plan;
use self::load::{Numbers, burst, drive};
use self::process::{Usage, peak_mb, reset_peak};
use self::prompts::{Prompts, Sharing};
use self::steps::Step;
use self::subject::{Source, Subject, build_floors};
use self::summary::{Round, Summary, columns, short};
use crate::report::{Table, line};

/// Not counted: until caches, windows and branch predictors have settled.
const WARM_UP: Duration = Duration::from_millis(500);
/// Between a start and an idle measurement, or between two bursts.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Parser)]
#[command(name = "bench picker", about = "What an endpoint picker costs, beside empty servers")]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The steps of docs/benchmarks.md, one table each.
    Suite {
        /// Only steps whose title has this in it.
        #[arg(long)]
        only: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// One load of your own.
    Load {
        #[command(flatten)]
        step: Box<StepArgs>,
        #[command(flatten)]
        common: Common,
    },
    /// Many requests at once, and which endpoint each gets; one line a round.
    Burst {
        /// Requests at once.
        #[arg(long, default_value_t = 64)]
        count: usize,
        /// `held`: the same, and one request with it goes ahead, so that one endpoint holds it.
        #[arg(long, value_enum, default_value_t = BurstPrompts::Different)]
        prompts: BurstPrompts,
        /// Bytes of each request's body.
        #[arg(long, default_value_t = 1024)]
        body: usize,
        #[command(flatten)]
        common: Common,
    },
    /// The CPU that a server uses while nobody asks it anything.
    Idle {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum BurstPrompts {
    Different,
    Same,
    Held,
}

#[derive(Args)]
struct Common {
    /// Empty servers to measure beside, in order, or `none`; ratios are to the first server of all.
    #[arg(long, default_value = "tonic-2,tonic-1,h2-2,h2-1", value_delimiter = ',')]
    floors: Vec<String>,
    /// A picker that runs: NAME=IP:PORT, or NAME=IP:PORT@PID to read its CPU and memory. Repeatable.
    #[arg(long, value_name = "NAME=IP:PORT[@PID]")]
    target: Vec<String>,
    /// A picker to start: NAME=COMMAND, cut at blanks, with {port}, {manifest} (InferencePool and EndpointSlice) or
    /// {endpoints} (IP:PORT,...) put in. Repeatable.
    #[arg(long, value_name = "NAME=COMMAND")]
    start: Vec<String>,
    /// Targets and started pickers speak TLS; their certificates are not looked at.
    #[arg(long)]
    tls: bool,
    /// Endpoints that answer /metrics with a captured page of vLLM.
    #[arg(long, default_value_t = 8)]
    endpoints: u8,
    /// Request bodies may come back changed: for pickers that decode JSON and encode it again.
    #[arg(long)]
    body_may_change: bool,
    /// The model that requests ask for.
    #[arg(long, default_value = "tiny")]
    model: String,
    /// HTTP/2 connections to each server: Envoy has one for each of its threads.
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Of each round.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Interleaved: every server has its turn before the next round begins.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Take the floors as they were built last.
    #[arg(long)]
    no_build: bool,
    /// CPUs that started servers may use, as taskset takes them; `taskset` before this program keeps it off them.
    #[arg(long)]
    server_cpus: Option<String>,
}

/// One load, in words of the command line.
#[derive(Args, Clone)]
struct StepArgs {
    /// Bytes of the request's body: one table for each.
    #[arg(long, default_value = "1024", value_delimiter = ',')]
    body: Vec<usize>,
    /// How the request's body is shown.
    #[arg(long, value_enum, default_value_t = Mode::Duplex)]
    mode: Mode,
    /// Bytes of a chunk of it.
    #[arg(long, default_value_t = 65_536)]
    chunk_bytes: usize,
    /// What Envoy's buffer holds in `partial`.
    #[arg(long, default_value_t = 65_536)]
    partial_bytes: usize,
    /// same, different, or groups:COUNT with a prefix in common.
    #[arg(long, default_value = "different")]
    prompts: Sharing,
    /// A closed loop with so many requests at once.
    #[arg(long, default_value_t = 32)]
    closed: usize,
    /// An open loop at this many a second instead.
    #[arg(long)]
    rate: Option<f64>,
    /// Events of the response's body.
    #[arg(long, default_value_t = 0)]
    answer_chunks: usize,
    /// How the response's body is shown.
    #[arg(long, value_enum, default_value_t = Mode::None)]
    answer_mode: Mode,
    /// The response is not shown at all.
    #[arg(long)]
    no_response: bool,
    /// The picker may change the response's mode.
    #[arg(long)]
    mode_override: bool,
    /// Hold the body's last message back until the pick is there, 100 ms at most.
    #[arg(long)]
    hold_end: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    None,
    Streamed,
    Buffered,
    Partial,
    Duplex,
}

impl From<Mode> for BodyMode {
    fn from(mode: Mode) -> BodyMode {
        match mode {
            Mode::None => BodyMode::None,
            Mode::Streamed => BodyMode::Streamed,
            Mode::Buffered => BodyMode::Buffered,
            Mode::Partial => BodyMode::BufferedPartial,
            Mode::Duplex => BodyMode::FullDuplexStreamed,
        }
    }
}

/// Runs the sub-command that these arguments name.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let words = std::iter::once("bench picker").chain(arguments.iter().map(String::as_str));
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            return line(&error.render().to_string()).and(Err(anyhow::anyhow!("nothing was measured")));
        }
    };
    // One thread: the other CPU is the server's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.what {
        What::Suite { only, common } => {
            let bench = Bench::new(common)?;
            let wanted = |step: &Step| only.as_ref().is_none_or(|part| step.title.contains(part.as_str()));
            steps::suite()
                .iter()
                .filter(|step| wanted(step))
                .try_for_each(|step| runtime.block_on(bench.step(step)))
        }
        What::Load { step, common } => {
            let bench = Bench::new(common)?;
            steps::of(&step).iter().try_for_each(|step| runtime.block_on(bench.step(step)))
        }
        What::Burst { count, prompts, body, common } => {
            runtime.block_on(Bench::new(common)?.burst(count, prompts, body))
        }
        What::Idle { common } => runtime.block_on(Bench::new(common)?.idle()),
    }
}

/// What is measured, and how long.
struct Bench {
    common: Common,
    sources: Vec<Source>,
    endpoints: Endpoints,
    length: Duration,
}

impl Bench {
    fn new(common: Common) -> anyhow::Result<Bench> {
        let floors = common.floors.iter().filter(|floor| *floor != "none").map(|floor| Source::floor(floor));
        let targets = common.target.iter().map(|text| Source::running(text));
        let started = common.start.iter().map(|text| Source::command(text));
        let sources = floors.chain(targets).chain(started).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!sources.is_empty(), "nothing to measure: give --floors, --target or --start");
        if !common.no_build && sources.iter().any(|source| matches!(source, Source::Floor(_))) {
            build_floors()?;
        }
        let length = Duration::try_from_secs_f64(common.seconds).context("--seconds")?;
        let endpoints = Endpoints::start(common.endpoints, &common.model)?;
        Ok(Bench { common, sources, endpoints, length })
    }

    /// Every server anew.
    fn subjects(&self) -> anyhow::Result<Vec<Subject>> {
        let (tls, cpus) = (self.common.tls, self.common.server_cpus.as_deref());
        self.sources.iter().map(|source| Subject::new(source, &self.endpoints, tls, cpus)).collect()
    }

    async fn connect(&self, subject: &Subject) -> anyhow::Result<Arc<Connections>> {
        Ok(Arc::new(Connections::open(subject.address, subject.tls, self.common.connections).await?))
    }

    fn plan(&self, step: &Step, seed: u64) -> Arc<Plan> {
        let shape = step.shape(&self.common.model);
        let prompts = Prompts::new(&shape, step.sharing, seed);
        Arc::new(Plan::new(
            &shape,
            prompts,
            step.response_body,
            step.response,
            step.checks(self.common.body_may_change),
        ))
    }

    /// One load on every server, in interleaved rounds.
    async fn step(&self, step: &Step) -> anyhow::Result<()> {
        let subjects = self.subjects()?;
        let (plan, numbers) = (self.plan(step, new_seed()), Arc::new(Numbers::default()));
        let mut connections = Vec::with_capacity(subjects.len());
        for subject in &subjects {
            connections.push(self.connect(subject).await?);
        }
        let mut rounds: Vec<Vec<Round>> = subjects.iter().map(|_| Vec::new()).collect();
        for _ in 0..self.common.rounds.max(1) {
            for ((subject, connections), rounds) in subjects.iter().zip(&connections).zip(&mut rounds) {
                let warm_up = WARM_UP.min(self.length);
                drive(connections, &plan, &numbers, step.load, warm_up).await?;
                subject.pid.inspect(|pid| reset_peak(*pid));
                let (own, server) = (Usage::of(std::process::id())?, usage(subject)?);
                let samples = drive(connections, &plan, &numbers, step.load, self.length).await?;
                rounds.push(Round {
                    samples,
                    server: usage(subject)?.zip(server).map(|(after, before)| after.since(before)),
                    peak_mb: subject.pid.map(peak_mb).transpose()?,
                    own: Usage::of(std::process::id())?.since(own),
                });
            }
        }
        self.print(step, &subjects, &mut rounds)
    }

    fn print(&self, step: &Step, subjects: &[Subject], rounds: &mut [Vec<Round>]) -> anyhow::Result<()> {
        let first = subjects.first().map_or("", |subject| &subject.name);
        let columns = columns(first);
        let table = Table::new(&step.title, &columns.iter().map(String::as_str).collect::<Vec<_>>())?;
        let summaries: Vec<Summary> = subjects
            .iter()
            .zip(&mut *rounds)
            .map(|(subject, rounds)| Summary::new(&subject.name, rounds))
            .collect();
        for summary in &summaries {
            table.row(&summary.cells(&summaries[0]))?;
        }
        for (subject, rounds) in subjects.iter().zip(rounds) {
            for note in summary::notes(rounds) {
                line(&format!("\n{}: {note}", subject.name))?;
            }
        }
        Ok(())
    }

    /// Bursts, a round each.
    async fn burst(&self, count: usize, prompts: BurstPrompts, body_bytes: usize) -> anyhow::Result<()> {
        let subjects = self.subjects()?;
        let title = format!("{count} at once of {body_bytes} bytes, {} endpoints", self.common.endpoints);
        let columns = [
            "server",
            "round",
            "endpoints picked",
            "least",
            "most",
            "picks",
            "all picked after ms",
            "faults",
        ];
        let table = Table::new(&title, &columns)?;
        let numbers = Arc::new(Numbers::default());
        for round in 1..=self.common.rounds.max(1) {
            tokio::time::sleep(SETTLE).await;
            let mut step = steps::burst(body_bytes);
            step.sharing =
                if matches!(prompts, BurstPrompts::Different) { Sharing::Different } else { Sharing::Same };
            let plan = self.plan(&step, new_seed());
            for subject in &subjects {
                let connections = self.connect(subject).await?;
                if matches!(prompts, BurstPrompts::Held) {
                    burst(&connections, &plan, &numbers, 1).await?;
                }
                let mut samples = burst(&connections, &plan, &numbers, count).await?;
                samples.pick.sort_unstable();
                let picks: Vec<u64> = samples.picks.values().copied().collect();
                // An endpoint that nobody was sent to is not in the list.
                let all = picks.len() >= usize::from(self.common.endpoints);
                let least = if all { picks.iter().min().copied().unwrap_or(0) } else { 0 };
                table.row(&[
                    subject.name.clone(),
                    round.to_string(),
                    picks.len().to_string(),
                    least.to_string(),
                    picks.iter().max().copied().unwrap_or(0).to_string(),
                    picks.iter().map(u64::to_string).collect::<Vec<_>>().join(" "),
                    short(samples.pick.last().map_or(0.0, Duration::as_secs_f64) * 1e3),
                    samples.fault_count().to_string(),
                ])?;
            }
        }
        Ok(())
    }

    /// Servers that nobody asks anything.
    async fn idle(&self) -> anyhow::Result<()> {
        let subjects = self.subjects()?;
        let title = format!("Idle, {} endpoints", self.common.endpoints);
        let table =
            Table::new(&title, &["server", "cores (least to most)", "wakes a second", "resident peak MB"])?;
        tokio::time::sleep(SETTLE).await;
        for subject in &subjects {
            let Some(pid) = subject.pid else { continue };
            let (mut cores, mut wakes) = (Vec::new(), Vec::new());
            for _ in 0..self.common.rounds.max(1) {
                let before = Usage::of(pid)?;
                tokio::time::sleep(self.length).await;
                let used = Usage::of(pid)?.since(before);
                cores.push(used.cpu.as_secs_f64() / self.length.as_secs_f64());
                wakes.push(used.wakes as f64 / self.length.as_secs_f64());
            }
            let (cores, wakes) = (arithmetic::Spread::of(cores), arithmetic::Spread::of(wakes));
            table.row(&[
                subject.name.clone(),
                format!("{:.4} ({:.4} to {:.4})", cores.median, cores.min, cores.max),
                format!("{:.0}", wakes.median),
                format!("{:.0}", peak_mb(pid)?),
            ])?;
        }
        Ok(())
    }
}

fn usage(subject: &Subject) -> anyhow::Result<Option<Usage>> {
    subject.pid.map(Usage::of).transpose()
}

/// Prompts of one step are new to a server that has seen another.
fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::trace::mix(now.as_nanos() as u64)
}
