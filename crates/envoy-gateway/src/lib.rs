//! InferencePools on a stock Envoy Gateway: its extension hooks, and the endpoints that its Envoys ask for.
//!
//! ```text
//!  PostRouteModify ──> stamp: which pools Envoy Gateway found for a rule
//!  PostTranslateModify ──> translate(translation, known) ──> the translation with pools in it
//!  Envoy ──> discovery (delta EDS) ──> the endpoints of pools, and of their pickers
//! ```
//!
//! Invariants
//! - The work is one pure function, [`translate`]. What names no pool passes byte for byte; what does is edited where it
//!   lies, so that fields that nobody here has heard of stay.
//! - What Envoy Gateway found is its own word (the stamp); how requests are shared out is the HTTPRoute's; whose picker a pool has
//!   is the controller's. Nothing of a pool's endpoints is in a translation: they come by EDS, within a moment of a pod's change.
//! - One pool that cannot be put in loses its own requests alone; a hook returns no error for what will pass, since Envoy Gateway does
//!   not ask again.

mod discovery;
mod filter;
mod known;
mod pools;
mod routes;
mod service;
mod stamp;
mod translate;
mod xds;

pub use known::{
    Address, Backend, Endpoints, Known, KnownPool, PickerOwner, RouteName, Serving, picker_name, pool_name,
};
pub use service::ExtensionServer;
pub use stamp::StampedPool;
pub use translate::{Fault, REVISION, Setting, Translated, Translation, translate};
