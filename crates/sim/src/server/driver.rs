//! Real time for one engine: tells it what time it is, and those who wait what has happened.
//!
//! Invariants: nobody who reads slowly holds the engine up (progress is a number that is overwritten, not a queue);
//! a [`Ticket`] that is dropped before its request has ended cancels it at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Event, EventKind, LoraState, Request, Stats, SubmitError};

/// An engine and those who wait for it.
#[derive(Debug)]
pub(crate) struct Driver {
    began: Instant,
    state: Mutex<State>,
    /// There may be an earlier event than the one that [`Driver::run`] sleeps for.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    engine: Engine,
    watchers: HashMap<u64, watch::Sender<Progress>>,
    next_id: u64,
    scratch: Vec<Event>,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Tokens generated.
    pub(crate) tokens: u32,
    /// Prompt tokens that came from the cache; known with the first token.
    pub(crate) cached_tokens: u32,
    /// Nothing more will come.
    pub(crate) finished: bool,
}

/// A request in the engine, for as long as somebody wants its answer.
#[derive(Debug)]
pub(crate) struct Ticket {
    driver: Arc<Driver>,
    id: u64,
    /// Closes without `finished` when the server stops.
    pub(crate) progress: watch::Receiver<Progress>,
}

/// What the metrics page is made of.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) waiting_deferred: usize,
    pub(crate) kv_blocks_used: u32,
    pub(crate) stats: Stats,
    pub(crate) lora_history: Vec<LoraState>,
}

impl Driver {
    /// An engine whose time begins now.
    pub(crate) fn new(engine: Engine) -> Arc<Self> {
        let state = State { engine, watchers: HashMap::new(), next_id: 0, scratch: Vec::new() };
        Arc::new(Self { began: Instant::now(), state: Mutex::new(state), changed: Notify::new() })
    }

    /// Runs the engine until `cancel`; then whoever waits sees the end of it.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let next = self.turn();
            let slept = async {
                match next {
                    Some(at) => sleep_until(self.began + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = self.changed.notified() => {}
                () = slept => {}
            }
        }
        self.state.lock().watchers.clear();
    }

    /// Puts a request into the engine under an id of its own (`request.id` is overwritten).
    pub(crate) fn submit(self: &Arc<Self>, mut request: Request) -> Result<Ticket, SubmitError> {
        let (sender, progress) = watch::channel(Progress::default());
        let mut state = self.state.lock();
        let id = state.next_id;
        request.id = id;
        let now = self.began.elapsed();
        state.engine.submit(now, request)?;
        state.next_id += 1;
        state.watchers.insert(id, sender);
        drop(state);
        self.changed.notify_one();
        Ok(Ticket { driver: self.clone(), id, progress })
    }

    /// The load now, and what has been counted so far.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut state = self.state.lock();
        state.advance(self.began.elapsed());
        let engine = &state.engine;
        Snapshot {
            running: engine.running(),
            waiting: engine.waiting(),
            waiting_deferred: engine.waiting_deferred(),
            kv_blocks_used: engine.kv_blocks_used(),
            stats: engine.stats().clone(),
            lora_history: engine.lora_history().to_vec(),
        }
    }

    fn turn(&self) -> Option<Duration> {
        let mut state = self.state.lock();
        state.advance(self.began.elapsed());
        state.engine.next_event_at()
    }

    fn cancel(&self, id: u64) {
        let mut state = self.state.lock();
        if state.watchers.remove(&id).is_some() {
            state.engine.cancel(self.began.elapsed(), id);
        }
    }
}

impl State {
    /// Moves the engine to `now` and tells each watcher once how far its request is.
    fn advance(&mut self, now: Duration) {
        self.engine.advance(now, &mut self.scratch);
        for event in self.scratch.drain(..) {
            let Some(watcher) = self.watchers.get(&event.id) else { continue };
            watcher.send_modify(|progress| match event.kind {
                EventKind::FirstToken { cached_tokens } => {
                    (progress.tokens, progress.cached_tokens) = (1, cached_tokens);
                }
                EventKind::Token => progress.tokens += 1,
                EventKind::Finished { cached_tokens } => {
                    (progress.finished, progress.cached_tokens) = (true, cached_tokens);
                }
            });
            if matches!(event.kind, EventKind::Finished { .. }) {
                self.watchers.remove(&event.id);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.driver.cancel(self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::engine::{Config, End};

    fn request(prompt_tokens: u32, output_tokens: u32) -> Request {
        Request {
            id: 0,
            prompt_tokens,
            output_tokens,
            block_hashes: Vec::new(),
            adapter: None,
            end: End::Length,
        }
    }

    fn driven() -> (Arc<Driver>, TaskTracker, CancellationToken) {
        let config = Config { jitter_ratio: 0.0, decode_us_per_seq: 0.0, ..Config::default() };
        let driver = Driver::new(Engine::new(config, 0));
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(driver.clone().run(cancel.clone()));
        (driver, tasks, cancel)
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_when_the_engine_says() {
        let (driver, _tasks, _cancel) = driven();
        let mut ticket = driver.submit(request(100, 3)).unwrap();
        let began = Instant::now();
        let mut seen = Vec::new();
        while !ticket.progress.borrow_and_update().finished {
            ticket.progress.changed().await.unwrap();
            seen.push((began.elapsed().as_millis(), ticket.progress.borrow().tokens));
        }
        assert_eq!(seen, [(20, 1), (30, 2), (40, 3)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_ticket_cancels_at_once_and_a_finished_one_counts_as_finished() {
        let (driver, _tasks, _cancel) = driven();
        let ticket = driver.submit(request(100, 1_000)).unwrap();
        tokio::time::sleep(Duration::from_millis(25)).await;
        assert_eq!(driver.snapshot().running, 1);
        drop(ticket);
        let after = driver.snapshot();
        assert_eq!((after.running, after.kv_blocks_used, after.stats.finished_abort), (0, 0, 1));

        let mut ticket = driver.submit(request(100, 1)).unwrap();
        ticket.progress.wait_for(|progress| progress.finished).await.unwrap();
        drop(ticket);
        assert_eq!((driver.snapshot().stats.finished_length, driver.snapshot().stats.finished_abort), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_told_that_the_server_stops() {
        let (driver, tasks, cancel) = driven();
        let mut ticket = driver.submit(request(100, 1_000)).unwrap();
        cancel.cancel();
        tasks.close();
        tasks.wait().await;
        assert!(ticket.progress.wait_for(|progress| progress.finished).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_does_not_read_holds_nobody_up_and_misses_nothing() {
        let (driver, _tasks, _cancel) = driven();
        let idle = driver.submit(request(10, 50)).unwrap();
        let mut keen = driver.submit(request(10, 50)).unwrap();
        keen.progress.wait_for(|progress| progress.finished).await.unwrap();
        assert_eq!(*idle.progress.borrow(), Progress { tokens: 50, cached_tokens: 0, finished: true });
    }
}
