//! Endpoint discovery, the incremental kind (<https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds>):
//! one Envoy's subscriptions, and what it has not been told yet. A value: what it says follows from what it was told.
//!
//! Versions are digests of the endpoints, so every replica has the same: an Envoy that comes from another is told what differs.

use std::collections::BTreeMap;

use bytes::Bytes;
use protobuf::{Malformed, Message, Writer};
use twox_hash::XxHash3_64;

use crate::known::{Address, Endpoints};
use crate::pools::load_assignment;
use crate::xds;

/// `envoy.config.endpoint.v3.ClusterLoadAssignment`
pub(crate) const TYPE: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Names that one Envoy may ask for; more are not answered.
const NAMES_MAX: usize = 65_536;

// DeltaDiscoveryRequest
const TYPE_URL: u32 = 2;
const SUBSCRIBE: u32 = 3;
const UNSUBSCRIBE: u32 = 4;
const INITIAL_RESOURCE_VERSIONS: u32 = 5;
const ERROR_DETAIL: u32 = 7;

/// What one Envoy asked for, with the version that it was told last.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    told: BTreeMap<String, Option<u64>>,
    nonce: u64,
}

impl Subscriptions {
    /// Takes a request; what Envoy had against the last answer, where it had.
    ///
    /// # Errors
    /// When it is no DeltaDiscoveryRequest.
    pub(crate) fn take(&mut self, request: &Bytes) -> Result<Option<String>, Malformed> {
        const MESSAGE: u32 = 2;
        let request = Message::parse(request)?;
        for name in request.all(UNSUBSCRIBE) {
            self.told.remove(&*String::from_utf8_lossy(&name));
        }
        for name in request.all(SUBSCRIBE) {
            if self.told.len() < NAMES_MAX {
                // Who asks again is told again.
                self.told.insert(String::from_utf8_lossy(&name).into_owned(), None);
            }
        }
        for entry in request.all(INITIAL_RESOURCE_VERSIONS) {
            let entry = Message::parse(&entry)?;
            if let Some(told) = self.told.get_mut(&entry.text(1)) {
                *told = u64::from_str_radix(&entry.text(2), 16).ok();
            }
        }
        Ok(request.has(ERROR_DETAIL).then(|| request.message(ERROR_DETAIL).unwrap_or_default().text(MESSAGE)))
    }

    /// A DeltaDiscoveryResponse with what differs from what was told; none where nothing does. A name that stands for nothing has no
    /// endpoints.
    pub(crate) fn answer(&mut self, endpoints: &Endpoints) -> Option<Vec<u8>> {
        const RESOURCES: u32 = 2;
        const RESPONSE_TYPE_URL: u32 = 4;
        const NONCE: u32 = 5;
        const RESOURCE_VERSION: u32 = 1;
        const RESOURCE: u32 = 2;
        const RESOURCE_NAME: u32 = 3;
        let none: &[Address] = &[];
        let mut response = Writer::default();
        let mut differs = false;
        for (name, told) in &mut self.told {
            let addresses = endpoints.get(name).map_or(none, |addresses| addresses);
            let version = version(addresses);
            if *told == Some(version) {
                continue;
            }
            *told = Some(version);
            differs = true;
            response.message(RESOURCES, |resource| {
                resource.bytes(RESOURCE_VERSION, format!("{version:x}"));
                let hosts = addresses.iter().map(|it| (it.ip.to_string(), it.port, it.is_cleartext));
                let assignment = load_assignment(name, hosts);
                resource.message(RESOURCE, |any| {
                    any.bytes(xds::any::TYPE_URL, xds::type_url(TYPE));
                    any.bytes(xds::any::VALUE, assignment);
                });
                resource.bytes(RESOURCE_NAME, name);
            });
        }
        if !differs {
            return None;
        }
        self.nonce += 1;
        response.bytes(RESPONSE_TYPE_URL, xds::type_url(TYPE));
        response.bytes(NONCE, self.nonce.to_string());
        Some(response.into_bytes())
    }
}

/// Whether a request is about endpoints; Envoy says so in each.
pub(crate) fn is_about_endpoints(request: &Bytes) -> bool {
    Message::parse(request).is_ok_and(|request| request.text(TYPE_URL) == xds::type_url(TYPE))
}

fn version(addresses: &[Address]) -> u64 {
    let said = addresses.iter().map(|it| {
        let clear = if it.is_cleartext { "/clear" } else { "" };
        format!("{}/{}{clear} ", it.ip, it.port)
    });
    let text: String = said.collect();
    XxHash3_64::oneshot(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
    use prost::Message as _;

    use super::*;

    fn endpoints(of: &[(&str, &[&str])]) -> Endpoints {
        let parse = |text: &&str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            Address { ip: address.ip(), port: address.port(), is_cleartext: false }
        };
        of.iter().map(|(name, all)| ((*name).to_owned(), all.iter().map(parse).collect::<Arc<_>>())).collect()
    }

    fn ask(
        subscriptions: &mut Subscriptions,
        subscribe: &[&str],
        unsubscribe: &[&str],
        versions: &[(&str, &str)],
    ) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = DeltaDiscoveryRequest {
            type_url: xds::type_url(TYPE),
            resource_names_subscribe: owned(subscribe),
            resource_names_unsubscribe: owned(unsubscribe),
            initial_resource_versions: versions
                .iter()
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect(),
            ..Default::default()
        };
        let bytes = Bytes::from(request.encode_to_vec());
        assert!(is_about_endpoints(&bytes));
        assert_eq!(subscriptions.take(&bytes), Ok(None));
    }

    /// The names that are told of, each with its endpoints and its version.
    fn told(subscriptions: &mut Subscriptions, endpoints: &Endpoints) -> Vec<(String, Vec<String>, String)> {
        let Some(answer) = subscriptions.answer(endpoints) else { return vec![] };
        let answer = DeltaDiscoveryResponse::decode(&*answer).unwrap();
        assert!(!answer.nonce.is_empty());
        assert_eq!(answer.type_url, xds::type_url(TYPE));
        let resources = answer.resources.into_iter().map(|resource| {
            let any = resource.resource.unwrap();
            assert_eq!(any.type_url, xds::type_url(TYPE));
            let assignment = ClusterLoadAssignment::decode(&*any.value).unwrap();
            assert_eq!(assignment.cluster_name, resource.name);
            let text = format!("{:?}", assignment.endpoints);
            let hosts =
                text.split("address: \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
            (resource.name, hosts.collect(), resource.version)
        });
        resources.collect()
    }

    #[test]
    fn an_envoy_is_told_what_it_asked_for_and_then_what_changed() {
        let mut one = Subscriptions::default();
        let first =
            endpoints(&[("a", &["10.0.0.1:80", "10.0.0.2:80"]), ("b", &[]), ("c", &["[fd00::1]:80"])]);
        ask(&mut one, &["a", "b", "nothing"], &[], &[]);
        let all = told(&mut one, &first);
        let names = |all: &[(String, Vec<String>, String)]| {
            all.iter().map(|(name, hosts, _)| format!("{name}={}", hosts.join(","))).collect::<Vec<_>>()
        };
        assert_eq!(names(&all), ["a=10.0.0.1,10.0.0.2", "b=", "nothing="]);
        assert_eq!(told(&mut one, &first), []);
        let second = endpoints(&[("a", &["10.0.0.2:80"]), ("b", &[]), ("c", &[])]);
        assert_eq!(names(&told(&mut one, &second)), ["a=10.0.0.2"]);
        ask(&mut one, &["c"], &["a"], &[]);
        assert_eq!(names(&told(&mut one, &first)), ["c=fd00::1"]);
    }

    #[test]
    fn another_replica_tells_only_what_differs() {
        let known = endpoints(&[("a", &["10.0.0.1:80"]), ("b", &["10.0.0.2:80"])]);
        let mut one = Subscriptions::default();
        ask(&mut one, &["a", "b"], &[], &[]);
        let versions: Vec<_> =
            told(&mut one, &known).into_iter().map(|(name, _, version)| (name, version)).collect();
        let versions: Vec<_> = versions.iter().map(|(name, version)| (&**name, &**version)).collect();
        let mut other = Subscriptions::default();
        ask(&mut other, &["a", "b"], &[], &versions);
        assert_eq!(told(&mut other, &known), []);
        let changed = endpoints(&[("a", &["10.0.0.1:80"]), ("b", &["10.0.0.3:80"])]);
        assert_eq!(told(&mut other, &changed).len(), 1);
    }

    #[test]
    fn what_envoy_refused_is_heard() {
        use envoy_types::pb::google::rpc::Status;
        let status = Status { code: 13, message: "no such thing".into(), details: vec![] };
        let request = DeltaDiscoveryRequest { error_detail: Some(status), ..Default::default() };
        let mut one = Subscriptions::default();
        assert_eq!(one.take(&request.encode_to_vec().into()), Ok(Some("no such thing".into())));
    }
}
