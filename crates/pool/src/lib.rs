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
mod fault;
mod manifest;
mod policy;
mod slices;

pub use annotations::{Annotation, Annotations, Shape};
pub use fault::{Fault, FaultKind, Position, Severity};
pub use manifest::{
    Criticality, InferenceModel, InferenceModelRewrite, InferenceObjective, InferencePool, Manifest,
    ModelTarget, Overlay, OverlayEntry, PassedOver, PickerRef, RewriteRule, Unparsable,
};
pub use policy::{
    AppProtocol, MetricsScheme, MetricsTarget, Origin, PoolId, PoolPolicy, PoolVersion, PrefixCachePolicy,
    QueueingPolicy, Resolved, RoutingStrategy, Runtime, Setting,
};
pub use slices::{AddressType, EndpointSlice, EndpointSpec, SliceEndpoint};
