//! What Envoy Gateway found for a rule, told from one hook to the other: in PostRouteModify it hands over the pools that a rule
//! names and may use (they exist, and a ReferenceGrant lets it); in PostTranslateModify it says nothing of them. So the first
//! leaves a stamp in the route's metadata, and the second takes it out again.

use bytes::Bytes;
use pool::{AppProtocol, InferencePool, PoolId};
use protobuf::{Malformed, Message, Writer};
use serde::{Deserialize, Serialize};

use crate::xds::route;

const NAMESPACE: &str = "pointsman.dev";
const KEY: &str = "pools";

// `envoy.config.core.v3.Metadata`, `google.protobuf.Struct` and `Value`
const FILTER_METADATA: u32 = 1;
const STRUCT_FIELDS: u32 = 1;
const STRING_VALUE: u32 = 3;

/// What of a pool is put into a translation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StampedPool {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether requests go on without a picker.
    pub fail_open: bool,
    /// Whether its endpoints speak HTTP/2.
    pub h2c: bool,
}

impl StampedPool {
    /// The pool's namespace and name.
    #[must_use]
    pub fn id(&self) -> PoolId {
        PoolId::new(&self.namespace, &self.name)
    }
}

impl From<&InferencePool> for StampedPool {
    fn from(pool: &InferencePool) -> StampedPool {
        StampedPool {
            namespace: pool.id.namespace.clone(),
            name: pool.id.name.clone(),
            fail_open: pool.picker.as_ref().is_some_and(|picker| picker.fail_open),
            h2c: pool.app_protocol == AppProtocol::H2c,
        }
    }
}

/// Leaves the pools in a route.
///
/// # Errors
/// When the route cannot be read.
pub(crate) fn leave(route: &mut Message, pools: &[StampedPool]) -> Result<(), Malformed> {
    let text = serde_json::to_string(pools).unwrap_or_default();
    let value = Writer::of(|value| value.bytes(STRING_VALUE, text));
    let fields = Writer::of(|fields| fields.map_entry(STRUCT_FIELDS, KEY, &value));
    route.edit(route::METADATA, |metadata| metadata.set_map_value(FILTER_METADATA, NAMESPACE, Some(&fields)))
}

/// The pools that were left in a route; none where there is no stamp.
///
/// # Errors
/// When the route cannot be read.
pub(crate) fn find(route: &Message) -> Result<Option<Vec<StampedPool>>, Malformed> {
    let metadata = route.message(route::METADATA)?;
    let Some(fields) = metadata.map_value(FILTER_METADATA, NAMESPACE)? else { return Ok(None) };
    let value = Message::parse(&fields)?.map_value(STRUCT_FIELDS, KEY)?.unwrap_or_default();
    let text: Bytes = Message::parse(&value)?.bytes(STRING_VALUE).unwrap_or_default();
    Ok(serde_json::from_slice(&text).ok())
}

/// Takes the stamp out.
///
/// # Errors
/// When the route cannot be read.
pub(crate) fn take_out(route: &mut Message) -> Result<(), Malformed> {
    let mut metadata = route.message(route::METADATA)?;
    metadata.set_map_value(FILTER_METADATA, NAMESPACE, None)?;
    let left = metadata.to_bytes();
    if left.is_empty() {
        route.remove(route::METADATA);
    } else {
        route.set(route::METADATA, |writer| writer.bytes(route::METADATA, left));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_found_and_goes_without_a_trace() {
        let pools = [StampedPool { namespace: "a".into(), name: "b".into(), fail_open: true, h2c: false }];
        for before in [vec![], Writer::of(|it| it.message(4, |it| it.map_entry(1, "envoy-gateway", b"")))] {
            let before = Bytes::from(before);
            let mut route = Message::parse(&before).unwrap();
            assert_eq!(find(&route), Ok(None));
            leave(&mut route, &pools).unwrap();
            leave(&mut route, &pools).unwrap();
            let mut route = Message::parse(&route.to_bytes().into()).unwrap();
            assert_eq!(find(&route).unwrap().as_deref(), Some(&pools[..]));
            take_out(&mut route).unwrap();
            assert_eq!(route.to_bytes(), before);
        }
    }
}
