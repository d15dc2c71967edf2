//! SIGTERM and ctrl-c.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves when the process is asked to stop.
///
/// # Errors
/// When signals cannot be listened for.
pub(crate) async fn requested() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "ctrl-c",
    })
}
