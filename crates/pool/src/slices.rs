//! EndpointSlices, and which endpoints they give a pool.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::fault::{Position, quoted};
use crate::fields::{Fields, Read, Reader, all, text};
use crate::manifest::{InferencePool, Object};
use crate::names::is_dns_subdomain;
use crate::yaml::Node;

/// Kubernetes' own limits on a slice.
const ENDPOINTS_MAX: usize = 1000;
const PORTS_MAX: usize = 100;
const ADDRESSES_MAX: usize = 100;

/// The one `appProtocol` that matters here.
const HTTPS: &str = "https";

const ADDRESS_TYPES: [(&str, AddressType); 3] =
    [("IPv4", AddressType::Ipv4), ("IPv6", AddressType::Ipv6), ("FQDN", AddressType::Fqdn)];

/// One endpoint of a pool: an address and a port that serve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointSpec {
    /// The pod's name or the address; with `-rank-<i>` where an address has more than one port.
    pub name: Arc<str>,
    /// An IP address (without brackets) or a DNS name.
    pub host: Arc<str>,
    /// From 1.
    pub port: u16,
    /// Whether it is spoken to over TLS.
    pub tls: bool,
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
    pub ports: Vec<SlicePort>,
    /// Its endpoints in the order written.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One port of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// From 1.
    pub number: u16,
    /// `appProtocol: https`: spoken to over TLS.
    pub tls: bool,
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

impl InferencePool {
    /// Whether `slice` belongs to this pool: it is in the pool's namespace and the selector matches its labels.
    #[must_use]
    pub fn selects(&self, slice: &EndpointSlice) -> bool {
        slice.namespace == self.id.namespace
            && self.selector.iter().all(|(key, value)| slice.labels.get(key) == Some(value))
    }

    /// The endpoints that `slices` give this pool, in the order written: every address that is ready, times the ports
    /// of its slice, or the pool's target ports where the slice names none.
    ///
    /// One address and port is one endpoint, and so is one name and port (a pod that is in an IPv4 and in an IPv6
    /// slice): the first counts. Names are unique.
    #[must_use]
    pub fn endpoints(&self, slices: &[EndpointSlice]) -> Vec<EndpointSpec> {
        let mut seen = Seen::default();
        let mut endpoints = Vec::new();
        let clear = |&number: &u16| SlicePort { number, tls: false };
        let target_ports: Vec<SlicePort> = self.target_ports.iter().map(clear).collect();
        for slice in slices.iter().filter(|slice| self.selects(slice)) {
            let ports = if slice.ports.is_empty() { &target_ports } else { &slice.ports };
            for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready) {
                let pod: &str = endpoint.target_name.as_deref().unwrap_or(&endpoint.address);
                for (rank, &port) in ports.iter().enumerate() {
                    let name = if ports.len() > 1 { format!("{pod}-rank-{rank}") } else { pod.to_owned() };
                    endpoints.extend(seen.admit(pod, name, &endpoint.address, port));
                }
            }
        }
        endpoints
    }
}

/// What has been taken into a pool.
#[derive(Default)]
pub(crate) struct Seen {
    pods: HashSet<(String, u16)>,
    hosts: HashSet<(Arc<str>, u16)>,
    names: HashSet<Arc<str>>,
}

impl Seen {
    /// The endpoint, unless it has been taken in before.
    pub(crate) fn admit(
        &mut self,
        pod: &str,
        name: String,
        host: &Arc<str>,
        port: SlicePort,
    ) -> Option<EndpointSpec> {
        let SlicePort { number: port, tls } = port;
        if self.hosts.contains(&(Arc::clone(host), port)) || !self.pods.insert((pod.to_owned(), port)) {
            return None;
        }
        self.hosts.insert((Arc::clone(host), port));
        let mut name: Arc<str> = name.into();
        // One pod whose ports are spread over slices: the port tells its endpoints apart.
        while !self.names.insert(Arc::clone(&name)) {
            name = format!("{name}-{port}").into();
        }
        Some(EndpointSpec { name, host: Arc::clone(host), port, tls })
    }
}

pub(crate) fn read(reader: &mut Reader, node: &Node) -> Read<EndpointSlice> {
    let object = Object::read(reader, node, "EndpointSlice", &["addressType", "endpoints", "ports"])?;
    let labels = object.metadata.labels(reader, "labels");
    let address_type = object.root.word(reader, "addressType", &ADDRESS_TYPES);
    let address_type = object.root.required(reader, "addressType", address_type)?;
    let ports = ports(reader, &object.root);
    let endpoints = object.root.list(reader, "endpoints").and_then(|items| {
        if items.len() > ENDPOINTS_MAX {
            let (what, expected) =
                (format!("found {} endpoints", items.len()), format!("at most {ENDPOINTS_MAX}"));
            return Err(object.root.invalid(reader, "endpoints", what, expected));
        }
        all(items.into_iter().map(|(path, item)| endpoint(reader, item, path, address_type)))
    });
    Ok(EndpointSlice {
        position: object.position,
        namespace: object.namespace,
        name: object.name,
        labels: labels?.unwrap_or_default(),
        address_type,
        ports: ports?,
        endpoints: endpoints?,
    })
}

/// The TCP ports that the slice names.
fn ports(reader: &mut Reader, root: &Fields<'_>) -> Read<Vec<SlicePort>> {
    let items = root.list(reader, "ports")?;
    if items.len() > PORTS_MAX {
        let (what, expected) = (format!("found {} ports", items.len()), format!("at most {PORTS_MAX}"));
        return Err(root.invalid(reader, "ports", what, expected));
    }
    let named = all(items.into_iter().map(|(path, item)| {
        let port = Fields::open(reader, item, path, &["name", "protocol", "port", "appProtocol"])?;
        let number = port.whole::<u16>(reader, "port", 1..=65_535);
        let is_tcp =
            port.word(reader, "protocol", &[("TCP", true), ("UDP", false), ("SCTP", false)])?.unwrap_or(true);
        let tls = port.text(reader, "appProtocol")?.is_some_and(|protocol| protocol == HTTPS);
        Ok(number?.filter(|_| is_tcp).map(|number| SlicePort { number, tls }))
    }))?;
    let mut ports: Vec<SlicePort> = Vec::new();
    for port in named.into_iter().flatten() {
        if !ports.iter().any(|known| known.number == port.number) {
            ports.push(port);
        }
    }
    Ok(ports)
}

fn endpoint(
    reader: &mut Reader,
    node: &Node,
    path: String,
    address_type: AddressType,
) -> Read<SliceEndpoint> {
    let known = [
        "addresses",
        "conditions",
        "hostname",
        "targetRef",
        "deprecatedTopology",
        "nodeName",
        "zone",
        "hints",
    ];
    let fields = Fields::open(reader, node, path, &known)?;
    let address = first_address(reader, &fields, address_type);
    let ready = is_ready(reader, &fields);
    let target = fields.child(reader, "targetRef", &[]);
    let target_name = target.and_then(|target| match target {
        None => Ok(None),
        Some(target) => target.text_that(reader, "name", is_dns_subdomain, "the name of a Pod"),
    });
    Ok(SliceEndpoint { address: address?, ready: ready?, target_name: target_name?.map(str::to_owned) })
}

/// All addresses of one endpoint are the same endpoint: Kubernetes gives only the first a meaning.
fn first_address(reader: &mut Reader, fields: &Fields<'_>, address_type: AddressType) -> Read<Arc<str>> {
    let items = fields.list(reader, "addresses")?;
    if items.is_empty() || items.len() > ADDRESSES_MAX {
        let (what, expected) = (format!("found {} addresses", items.len()), format!("1 to {ADDRESSES_MAX}"));
        return Err(fields.invalid(reader, "addresses", what, expected));
    }
    let addresses = all(items.into_iter().map(|(path, item)| {
        let written = text(reader, item, &path)?;
        let (address, expected) = match address_type {
            AddressType::Ipv4 => (written.parse().ok().map(|ip: Ipv4Addr| ip.to_string()), "an IPv4 address"),
            AddressType::Ipv6 => (written.parse().ok().map(|ip: Ipv6Addr| ip.to_string()), "an IPv6 address"),
            AddressType::Fqdn => (is_dns_subdomain(written).then(|| written.to_owned()), "a DNS name"),
        };
        address
            .ok_or_else(|| reader.invalid(item.place, &path, format!("found {}", quoted(written)), expected))
    }))?;
    // There is one: the list is not empty.
    Ok(addresses.into_iter().next().unwrap_or_default().into())
}

/// An endpoint that does not say whether it is ready is.
fn is_ready(reader: &mut Reader, fields: &Fields<'_>) -> Read<bool> {
    let Some(conditions) = fields.child(reader, "conditions", &["ready", "serving", "terminating"])? else {
        return Ok(true);
    };
    let ready = conditions.boolean(reader, "ready");
    let serving = conditions.boolean(reader, "serving");
    let terminating = conditions.boolean(reader, "terminating");
    serving?;
    Ok(ready?.unwrap_or(true) && !terminating?.unwrap_or(false))
}
