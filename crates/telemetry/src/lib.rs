//! What happened: metric families and the admin door.
//!
//! Invariants
//! - Every metric that Pointsman prints has one [`Definition`] in [`definitions`]; docs/metrics.md is written
//!   from that table.
//! - A label value that a client chose (a model's name) goes through a bounded interner: past
//!   [`MODEL_LABELS_MAX`] values it reads `other`.
//! - Families by model are resolved to plain handles once per model; outcomes and picks are looked up once a request.

pub mod admin;
mod collect;
mod controller;
pub mod definitions;
mod limits;
mod metrics;

pub use collect::FamilyWriter;
pub use controller::ControllerMetrics;
pub use definitions::{Definition, Kind, reference};
pub use limits::{Limit, LimitCounters};
pub use metrics::{MODEL_LABELS_MAX, Metrics, ModelMetrics};
pub use prometheus_client::collector::Collector;
pub use prometheus_client::encoding::DescriptorEncoder;
