//! Logs go to stderr: for people, or one JSON object a line. What is logged can be changed while the program runs.

use std::io::IsTerminal;

use anyhow::Context;
use parking_lot::Mutex;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::cli::{LogFormat, Logging};

const EXPECTED: &str = "expected error, warn, info, debug, trace or directives such as info,director=debug";

/// What libraries say of their peers is for whoever asks for it by name: a client can make a codec warn of every frame.
const LIBRARIES: &str = "h2=error,hyper=error,hyper_util=error,rustls=error,tokio_util=error,\
                         kube_client=off,kube_runtime=error,tower=error";

/// Changes what is logged.
pub(crate) struct LogControl {
    filter: Handle<EnvFilter, Registry>,
    level: Mutex<String>,
}

impl LogControl {
    /// What is logged now.
    pub(crate) fn level(&self) -> String {
        self.level.lock().clone()
    }

    /// Logs by `level` from now on.
    pub(crate) fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = filter(level).map_err(|error| format!("`{level}`: {error}; {EXPECTED}"))?;
        self.filter.reload(filter).map_err(|error| error.to_string())?;
        level.clone_into(&mut self.level.lock());
        tracing::info!("the log level is `{level}` now");
        Ok(())
    }
}

/// Starts logging.
pub(crate) fn init(flags: &Logging) -> anyhow::Result<LogControl> {
    let filter = filter(&flags.log).with_context(|| format!("--log {}: {EXPECTED}", flags.log))?;
    let (filter, handle) = reload::Layer::new(filter);
    let log = fmt::layer().with_writer(std::io::stderr);
    let log = match flags.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(log).init();
    Ok(LogControl { filter: handle, level: Mutex::new(flags.log.clone()) })
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    anyhow::ensure!(!level.is_empty(), "it is empty");
    Ok(EnvFilter::builder().parse(format!("{LIBRARIES},{level}"))?)
}
