//! Reading the endpoints' metrics and model lists, for ever, harming nobody.

use pool::{MetricsTarget, Runtime};

/// What is scraped, and where. May change at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScrapeConfig {
    /// Whose metric names are read.
    pub runtime: Runtime,
    /// Where the page is.
    pub target: MetricsTarget,
}

/// How reading one endpoint's metrics goes.
#[derive(Debug, Default)]
pub struct ScrapeStats {}
