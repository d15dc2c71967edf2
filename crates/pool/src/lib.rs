//! What the operator declared: InferencePool and its kin, annotations parsed into a policy.
//!
//! Text goes in, values come out; reading files, watching them and printing are the caller's. The road is
//! [`parse`] (one file) → [`assemble`] (all files) → [`PoolPolicy::resolve`] (one pool's annotations), and
//! [`report`] puts the same into the lines that `pointsman check` prints.
//!
//! Invariants
//! - Hostile text gives a [`Fault`], never a panic, and costs no more than a bound times its size.
//! - A fault is data with a position: what was written, what was expected, what is used instead.
//! - A bad annotation never takes a pool down: the last valid value of that one setting stays in force.

mod annotations;
mod catalog;
mod declared;
mod duration;
mod fault;
mod fields;
mod manifest;
mod names;
mod overlay;
mod pods;
mod policy;
mod report;
mod settings;
mod slices;
pub mod yaml;

pub use annotations::{Annotation, Annotations, Shape};
pub use catalog::Catalog;
pub use declared::{Declared, assemble};
pub use duration::{DurationError, parse_duration};
pub use fault::{Fault, FaultKind, Position, Severity};
pub use manifest::{
    Criticality, InferenceModel, InferenceModelRewrite, InferenceObjective, InferencePool, Manifest,
    ModelTarget, PassedOver, PickerRef, RewriteRule, Unparsable, parse,
};
pub use overlay::{Overlay, OverlayEntry};
pub use pods::Pod;
pub use policy::{
    AppProtocol, MetricsScheme, MetricsTarget, Origin, PoolId, PoolPolicy, PoolVersion, PrefixCachePolicy,
    QueueingPolicy, Resolved, RoutingStrategy, Runtime, Setting,
};
pub use report::{Report, report};
pub use settings::settings_reference;
pub use slices::{AddressType, EndpointSlice, EndpointSpec, SliceEndpoint, SlicePort};
