//! Logs go to stderr: for people, or one JSON object a line.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::cli::{LogFormat, Logging};

/// Starts logging.
pub(crate) fn init(flags: &Logging) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(&flags.log).with_context(|| {
        format!("--log {}: expected error, warn, info, debug, trace or directives", flags.log)
    })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match flags.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
