//! Kubernetes: the client, what a picker reads of its pool, and what becomes of it there.
//!
//! Invariants
//! - An API server that is away changes nothing: what was read last stays in force, and the log says so once.
//! - Nothing is polled: every object is listed once and watched from there.

mod client;
mod controller;
pub mod crds;
mod gateway_source;
mod http_route;
pub mod install;
mod lease;
pub mod overlay;
mod pods;
mod pool_source;
mod pools_source;
pub mod render;
mod resources;
mod watch;

pub use client::{ClientError, connect};
pub use controller::{Controller, Pickers, Settings};
pub use gateway_source::GatewaySource;
pub use kube::Client;
pub use lease::Election;
pub use pool_source::PoolSource;
pub use pools_source::PoolsSource;
