//! Envoy's messages as far as they are written here: the numbers of their fields (Envoy's API v3,
//! <https://www.envoyproxy.io/docs/envoy/latest/api-v3/api>), and what many of them are made of.

use std::time::Duration;

use protobuf::Writer;

/// `google.protobuf.Any`
pub(crate) mod any {
    pub(crate) const TYPE_URL: u32 = 1;
    pub(crate) const VALUE: u32 = 2;
}

/// `envoy.config.cluster.v3.Cluster`
pub(crate) mod cluster {
    pub(crate) const NAME: u32 = 1;
    pub(crate) const TYPE: u32 = 2;
    pub(crate) const EDS_CLUSTER_CONFIG: u32 = 3;
    pub(crate) const CONNECT_TIMEOUT: u32 = 4;
    pub(crate) const LB_POLICY: u32 = 6;
    pub(crate) const HEALTH_CHECKS: u32 = 8;
    pub(crate) const CIRCUIT_BREAKERS: u32 = 10;
    pub(crate) const DNS_LOOKUP_FAMILY: u32 = 17;
    pub(crate) const TRANSPORT_SOCKET: u32 = 24;
    pub(crate) const COMMON_LB_CONFIG: u32 = 27;
    pub(crate) const IGNORE_HEALTH_ON_HOST_REMOVAL: u32 = 32;
    pub(crate) const LOAD_ASSIGNMENT: u32 = 33;
    pub(crate) const TYPED_EXTENSION_PROTOCOL_OPTIONS: u32 = 36;
    pub(crate) const LOAD_BALANCING_POLICY: u32 = 41;
    pub(crate) const TRANSPORT_SOCKET_MATCHES: u32 = 43;

    pub(crate) const STRICT_DNS: u64 = 1;
    pub(crate) const EDS: u64 = 3;
}

/// `envoy.config.route.v3.RouteConfiguration`, `VirtualHost`, `Route`, `RouteAction`, `WeightedCluster`
pub(crate) mod route {
    pub(crate) const CONFIGURATION_NAME: u32 = 1;
    pub(crate) const VIRTUAL_HOSTS: u32 = 2;
    pub(crate) const ROUTES: u32 = 3;

    pub(crate) const ACTION: u32 = 2;
    pub(crate) const METADATA: u32 = 4;
    pub(crate) const TYPED_PER_FILTER_CONFIG: u32 = 13;
    pub(crate) const NAME: u32 = 14;
    pub(crate) const PER_REQUEST_BUFFER_LIMIT_BYTES: u32 = 16;
    pub(crate) const REQUEST_BODY_BUFFER_LIMIT: u32 = 20;

    pub(crate) const CLUSTER: u32 = 1;
    pub(crate) const WEIGHTED_CLUSTERS: u32 = 3;
    pub(crate) const TIMEOUT: u32 = 8;
    pub(crate) const RETRY_POLICY: u32 = 9;

    pub(crate) const CLUSTERS: u32 = 1;
    pub(crate) const ENTRY_NAME: u32 = 1;
    pub(crate) const ENTRY_WEIGHT: u32 = 2;
    pub(crate) const ENTRY_TYPED_PER_FILTER_CONFIG: u32 = 10;
}

/// `envoy.config.listener.v3.Listener`, `FilterChain`, `Filter`
pub(crate) mod listener {
    pub(crate) const FILTER_CHAINS: u32 = 3;
    pub(crate) const DEFAULT_FILTER_CHAIN: u32 = 25;
    pub(crate) const FILTERS: u32 = 3;
    pub(crate) const TYPED_CONFIG: u32 = 4;
}

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`, `Rds`, `HttpFilter`
pub(crate) mod connection_manager {
    pub(crate) const TYPE_URL: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    pub(crate) const RDS: u32 = 3;
    pub(crate) const HTTP_FILTERS: u32 = 5;
    pub(crate) const ROUTE_CONFIG_NAME: u32 = 2;
    pub(crate) const FILTER_NAME: u32 = 1;
    pub(crate) const FILTER_TYPED_CONFIG: u32 = 4;
    pub(crate) const FILTER_DISABLED: u32 = 7;
}

/// The URL by which an Any names a type.
pub(crate) fn type_url(name: &str) -> String {
    format!("type.googleapis.com/{name}")
}

/// A `google.protobuf.Any`, as its bytes.
pub(crate) fn any(type_name: &str, write: impl FnOnce(&mut Writer)) -> Vec<u8> {
    Writer::of(|writer| {
        writer.bytes(any::TYPE_URL, type_url(type_name));
        writer.message(any::VALUE, write);
    })
}

/// What is written in several messages.
pub(crate) trait Write {
    /// A `google.protobuf.UInt32Value`, or one of 64 bits.
    fn wrapped(&mut self, field: u32, value: u64);
    /// A `google.protobuf.Duration`.
    fn duration(&mut self, field: u32, value: Duration);
    /// A name and an Any, as `TypedExtensionConfig` and its like have them.
    fn named_any(&mut self, field: u32, name: &str, any_field: u32, any: &[u8]);
}

impl Write for Writer {
    fn wrapped(&mut self, field: u32, value: u64) {
        self.message(field, |wrapper| {
            if value != 0 {
                wrapper.varint(1, value);
            }
        });
    }

    fn duration(&mut self, field: u32, value: Duration) {
        self.message(field, |duration| {
            if value.as_secs() != 0 {
                duration.varint(1, value.as_secs());
            }
            if value.subsec_nanos() != 0 {
                duration.varint(2, value.subsec_nanos().into());
            }
        });
    }

    fn named_any(&mut self, field: u32, name: &str, any_field: u32, any: &[u8]) {
        self.message(field, |config| {
            config.bytes(1, name);
            config.bytes(any_field, any);
        });
    }
}

/// What we and pickers are called in requests. Envoy would take the cluster's name, and one with slashes is no host.
pub(crate) const AUTHORITY: &str = "pointsman";

/// A `GrpcService` by Envoy's own client, with what else is to be said of that client and of the service.
pub(crate) fn grpc_service(
    writer: &mut Writer,
    field: u32,
    cluster: &str,
    client: impl FnOnce(&mut Writer),
    more: impl FnOnce(&mut Writer),
) {
    const ENVOY_GRPC: u32 = 1;
    const CLUSTER_NAME: u32 = 1;
    const AUTHORITY_FIELD: u32 = 2;
    writer.message(field, |service| {
        service.message(ENVOY_GRPC, |envoy| {
            envoy.bytes(CLUSTER_NAME, cluster);
            envoy.bytes(AUTHORITY_FIELD, AUTHORITY);
            client(envoy);
        });
        more(service);
    });
}

/// A retry goes to another host than those that were tried.
pub(crate) fn previous_hosts(policy: &mut Writer, field: u32, typed_config: u32) {
    let config = any("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", |_| {});
    policy.named_any(field, "envoy.retry_host_predicates.previous_hosts", typed_config, &config);
}
