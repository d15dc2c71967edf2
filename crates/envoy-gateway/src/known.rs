//! What is known of the cluster beside what Envoy Gateway hands over.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use pool::PoolId;

use crate::stamp::StampedPool;

/// Namespace and name of an HTTPRoute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// One of a rule's `backendRefs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The pool that it names; none where it names anything else.
    pub pool: Option<PoolId>,
    /// Its share of the rule's requests.
    pub weight: u32,
}

/// Whose picker a pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickerOwner {
    /// Pointsman's.
    Ours,
    /// The pool's own.
    Pool,
}

/// Whether the picker that a pool is to have serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It does.
    Yes,
    /// Not yet: another is asked meanwhile, by namespace and name of its Service.
    Meanwhile(String),
    /// It does not, and no other does.
    No,
}

/// What a translation needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// HTTPRoutes that name a pool: of each rule, in order, its backends.
    pub routes: BTreeMap<RouteName, Vec<Vec<Backend>>>,
    /// HTTPRoutes that changed or went a moment ago, as they were: Envoy Gateway may not have seen that yet.
    pub former: BTreeMap<RouteName, Vec<Vec<Backend>>>,
    /// Pools that are there.
    pub pools: BTreeMap<PoolId, KnownPool>,
}

/// A pool that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPool {
    /// What of its spec is put into a translation.
    pub pool: StampedPool,
    /// Whose picker is asked.
    pub picker: PickerOwner,
    /// Whether that is the one that it is to have.
    pub serving: Serving,
}

impl Known {
    /// Whose picker a pool has.
    pub(crate) fn picker_of(&self, pool: &StampedPool) -> PickerOwner {
        self.pools.get(&pool.id()).map_or(PickerOwner::Ours, |known| known.picker)
    }
}

/// The endpoints behind each name that Envoy asks for ([`pool_name`], [`picker_name`]), in order.
pub type Endpoints = BTreeMap<String, Arc<[Address]>>;

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Of its pod.
    pub ip: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// A pool's own picker that does not speak TLS; other pickers do. Of a pool's endpoints this says nothing.
    pub is_cleartext: bool,
}

/// The name under which a pool's endpoints are asked for.
#[must_use]
pub fn pool_name(id: &PoolId) -> String {
    format!("pointsman/pool/{id}")
}

/// The name under which the endpoints of a pool's picker are asked for, and of the cluster that they are in. Ours and the pool's own are
/// spoken to in other ways, and a pool may change from one to the other.
#[must_use]
pub fn picker_name(id: &PoolId, owner: PickerOwner) -> String {
    match owner {
        PickerOwner::Ours => format!("pointsman/picker/{id}"),
        PickerOwner::Pool => format!("pointsman/own-picker/{id}"),
    }
}

impl fmt::Display for RouteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
