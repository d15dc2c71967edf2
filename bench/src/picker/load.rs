//! Closed loops, open loops and bursts of exchanges, and what comes of them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::arithmetic::Arrivals;
use super::connection::Connections;
use super::exchange::{Fault, Outcome, Plan, exchange};

/// Beyond so many exchanges at once an open loop sends no more and counts a fault: the server is lost anyway.
const IN_FLIGHT_MAX: usize = 4096;
/// A loop that only fails ends early.
const FAULTS_MAX: u64 = 100;

/// How exchanges follow one another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// So many at once, each followed by the next.
    Closed { streams: usize },
    /// As a Poisson process at this rate, whatever the server does.
    Open { per_second: f64 },
}

/// What came of a loop.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    /// From when a request was meant to be sent until the pick; of sound exchanges only.
    pub(crate) pick: Vec<Duration>,
    /// Until the last answer.
    pub(crate) whole: Vec<Duration>,
    /// How late the generator was to send.
    pub(crate) late: Vec<Duration>,
    /// Picks that came before the end of the body was sent.
    pub(crate) early: u64,
    /// Request bodies that came back changed where they may.
    pub(crate) changed: u64,
    /// How often each destination (the first of a list) was picked.
    pub(crate) picks: BTreeMap<String, u64>,
    /// Immediate responses by status.
    pub(crate) refused: BTreeMap<u64, u64>,
    pub(crate) faults: BTreeMap<String, u64>,
    /// From the begin to the last end.
    pub(crate) took: Duration,
}

impl Samples {
    /// Exchanges that ended, sound or refused.
    pub(crate) fn count(&self) -> u64 {
        self.whole.len() as u64
    }

    pub(crate) fn fault_count(&self) -> u64 {
        self.faults.values().sum()
    }

    fn add(&mut self, meant_at: Instant, result: Result<Outcome, Fault>) {
        match result {
            Ok(outcome) => {
                self.pick.push(outcome.pick_at - meant_at);
                self.whole.push(outcome.done_at - meant_at);
                self.early += u64::from(outcome.early);
                self.changed += u64::from(outcome.body_changed);
                match outcome.picked {
                    Ok(list) => {
                        let first = list.split(',').next().unwrap_or_default();
                        *self.picks.entry(first.to_owned()).or_default() += 1;
                    }
                    Err(status) => *self.refused.entry(status).or_default() += 1,
                }
            }
            Err(fault) => *self.faults.entry(fault.to_string()).or_default() += 1,
        }
    }

    fn append(&mut self, mut other: Samples) {
        self.pick.append(&mut other.pick);
        self.whole.append(&mut other.whole);
        self.early += other.early;
        self.changed += other.changed;
        for (sum, more) in [(&mut self.picks, other.picks), (&mut self.faults, other.faults)] {
            for (key, count) in more {
                *sum.entry(key).or_default() += count;
            }
        }
        for (status, count) in other.refused {
            *self.refused.entry(status).or_default() += count;
        }
    }
}

/// Gives every exchange of a run a number of its own.
#[derive(Debug, Default)]
pub(crate) struct Numbers(AtomicU64);

impl Numbers {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Drives this load for so long, then lets what is in flight end.
pub(crate) async fn drive(
    connections: &Arc<Connections>,
    plan: &Arc<Plan>,
    numbers: &Arc<Numbers>,
    load: Load,
    length: Duration,
) -> anyhow::Result<Samples> {
    let begin = Instant::now();
    let mut samples = match load {
        Load::Closed { streams } => closed(connections, plan, numbers, streams, begin + length).await?,
        Load::Open { per_second } => open(connections, plan, numbers, per_second, length).await?,
    };
    samples.took = begin.elapsed();
    Ok(samples)
}

async fn closed(
    connections: &Arc<Connections>,
    plan: &Arc<Plan>,
    numbers: &Arc<Numbers>,
    streams: usize,
    until: Instant,
) -> anyhow::Result<Samples> {
    let mut workers = JoinSet::new();
    for stream in 0..streams {
        let (connections, plan, numbers) = (Arc::clone(connections), Arc::clone(plan), Arc::clone(numbers));
        workers.spawn(async move {
            let mut samples = Samples::default();
            while Instant::now() < until && samples.fault_count() < FAULTS_MAX {
                let meant_at = Instant::now();
                let result = exchange(connections.of(stream), &plan, numbers.next(), None).await;
                samples.add(meant_at, result);
            }
            samples
        });
    }
    let mut all = Samples::default();
    while let Some(samples) = workers.join_next().await {
        all.append(samples?);
    }
    Ok(all)
}

/// Times count from when a request was meant to be sent, so a server that stalls pays for all that it kept waiting.
async fn open(
    connections: &Arc<Connections>,
    plan: &Arc<Plan>,
    numbers: &Arc<Numbers>,
    per_second: f64,
    length: Duration,
) -> anyhow::Result<Samples> {
    let pacer = Pacer::new()?;
    let (mut samples, mut exchanges) = (Samples::default(), JoinSet::new());
    let begin = Instant::now();
    let seed = numbers.next();
    for (place, offset) in Arrivals::new(per_second, seed).take_while(|offset| *offset < length).enumerate() {
        let meant_at = begin + offset;
        loop {
            tokio::select! {
                biased;
                waited = pacer.until(meant_at) => break waited?,
                Some(ended) = exchanges.join_next() => {
                    let (meant_at, result) = ended?;
                    samples.add(meant_at, result);
                }
            }
        }
        if samples.fault_count() > FAULTS_MAX {
            break;
        }
        if exchanges.len() >= IN_FLIGHT_MAX {
            *samples.faults.entry(format!("not sent: {IN_FLIGHT_MAX} in flight")).or_default() += 1;
            continue;
        }
        samples.late.push(meant_at.elapsed());
        let (sender, plan, number) = (connections.of(place), Arc::clone(plan), numbers.next());
        exchanges.spawn(async move { (meant_at, exchange(sender, &plan, number, None).await) });
    }
    while let Some(ended) = exchanges.join_next().await {
        let (meant_at, result) = ended?;
        samples.add(meant_at, result);
    }
    Ok(samples)
}

/// So many exchanges at once: none goes past its pick before all have theirs.
pub(crate) async fn burst(
    connections: &Arc<Connections>,
    plan: &Arc<Plan>,
    numbers: &Arc<Numbers>,
    count: usize,
) -> anyhow::Result<Samples> {
    let (barrier, mut exchanges) = (Arc::new(Barrier::new(count)), JoinSet::new());
    let begin = Instant::now();
    for stream in 0..count {
        let (sender, plan, barrier) = (connections.of(stream), Arc::clone(plan), Arc::clone(&barrier));
        let number = numbers.next();
        exchanges.spawn(async move { exchange(sender, &plan, number, Some(&barrier)).await });
    }
    let mut samples = Samples::default();
    while let Some(ended) = exchanges.join_next().await {
        samples.add(begin, ended?);
    }
    samples.took = begin.elapsed();
    Ok(samples)
}

/// Waits to the microsecond; tokio's own timers have a grain of a millisecond.
struct Pacer {
    timer: TimerFd,
    /// The same timer, as the runtime watches it.
    watched: AsyncFd<OwnedFd>,
}

impl Pacer {
    fn new() -> anyhow::Result<Pacer> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; what it guards against, a descriptor that changes, OwnedFd excludes"
        )]
        let watched =
            AsyncFd::new(timer.as_fd().try_clone_to_owned()?).context("the timer is not pollable")?;
        Ok(Pacer { timer, watched })
    }

    /// May be dropped and called again.
    async fn until(&self, at: Instant) -> anyhow::Result<()> {
        loop {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
            self.timer.set(expiration, TimerSetTimeFlags::empty())?;
            let mut ready = self.watched.readable().await?;
            // Takes the expiration, so that the next wait begins anew.
            match self.timer.wait() {
                Ok(()) | Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_pacer_is_never_early_and_outlives_a_dropped_wait() {
        let pacer = Pacer::new().expect("a timer");
        for micros in [50, 300, 1500] {
            let at = Instant::now() + Duration::from_micros(micros);
            tokio::select! {
                biased;
                _ = pacer.until(at + Duration::from_secs(9)) => unreachable!("it has nine seconds to go"),
                () = std::future::ready(()) => {}
            }
            pacer.until(at).await.expect("a wait");
            assert!(Instant::now() >= at);
        }
    }
}
