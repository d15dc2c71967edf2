//! EndpointSlices, and which endpoints they give a pool.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::fault::Position;

/// One endpoint of a pool: an address and a port that serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointSpec {
    /// The pod's name or the address; with `-rank-<i>` where an address has more than one port.
    pub name: Arc<str>,
    /// An IP address (without brackets) or a DNS name.
    pub host: Arc<str>,
    /// From 1.
    pub port: u16,
}

/// A `discovery.k8s.io/v1` EndpointSlice, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Where the document begins.
    pub position: Position,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.labels`: what a pool's selector is matched against.
    pub labels: BTreeMap<String, String>,
    /// What its addresses are.
    pub address_type: AddressType,
    /// Its ports in the order written; empty: the pool's target ports.
    pub ports: Vec<u16>,
    /// Its endpoints in the order written.
    pub endpoints: Vec<SliceEndpoint>,
}

/// What the addresses of a slice are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressType {
    /// IPv4 addresses.
    Ipv4,
    /// IPv6 addresses.
    Ipv6,
    /// DNS names.
    Fqdn,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// The first address, the only one that Kubernetes gives a meaning.
    pub address: Arc<str>,
    /// `conditions.ready` (absent: ready) and not `conditions.terminating`.
    pub ready: bool,
    /// `targetRef.name`, most often a pod's.
    pub target_name: Option<String>,
}
