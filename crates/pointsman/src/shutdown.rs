//! SIGTERM and ctrl-c, and what is left to do after them.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// How long background tasks that were told to end may take: an admin client that does not read holds up nobody.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// Waits for background tasks that were told to end.
pub(crate) async fn finish(tracker: &TaskTracker) {
    tracker.close();
    if timeout(FINISH_MAX, tracker.wait()).await.is_err() {
        tracing::debug!(tasks = tracker.len(), "background tasks were still running at the end");
    }
}

/// The signals that ask the process to stop. Made before the process says that it is ready, so that none is lost.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the signals cannot be listened for.
    pub(crate) fn listen() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves with the next signal's name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "ctrl-c",
        }
    }
}
