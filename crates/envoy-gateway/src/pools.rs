//! Clusters: those of pools, made of the ones that Envoy Gateway hands over, so that what policies put there stays; those of
//! pickers; and the one by which Envoys ask us for endpoints.

use std::time::Duration;

use bytes::Bytes;
use protobuf::{Malformed, Message, Writer};

use crate::filter::Unpicked;
use crate::known::{PickerOwner, picker_name, pool_name};
use crate::stamp::StampedPool;
use crate::xds::{self, Write as _, any, cluster};

/// The cluster by which Envoys ask us for endpoints.
pub(crate) const DISCOVERY: &str = "pointsman/discovery";

const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const DESTINATION: &str = "x-gateway-destination-endpoint";
const SERVED: &str = "x-gateway-destination-endpoint-served";
const NAMESPACE: &str = "envoy.lb";
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// Shorter than what model servers keep a silent connection for (vLLM: 5 s), or a request meets one that they close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// The picker's queue holds requests back. Envoy's own counters would answer 503 at 1,024 in flight.
const UNLIMITED: u64 = 65_536;
/// How often an Envoy that reaches none of us tries. Envoy's own way, up to 30 s apart, would leave endpoints as they were for as long after
/// the first of us is back.
const DISCOVERY_RETRY: Duration = Duration::from_millis(100);
const DISCOVERY_RETRY_MAX: Duration = Duration::from_secs(1);
/// Until then a new Envoy that reaches none of us waits for endpoints, the other clusters with it.
const FIRST_ENDPOINTS_TIMEOUT: Duration = Duration::from_secs(5);

// HttpProtocolOptions
const COMMON_HTTP: u32 = 1;
const EXPLICIT_HTTP: u32 = 3;
const HTTP1: u32 = 1;
const HTTP2: u32 = 2;

/// The cluster of that pool, by that name, out of Envoy Gateway's for the rule.
///
/// # Errors
/// When that one cannot be read.
pub(crate) fn of_pool(
    template: &Bytes,
    name: &str,
    pool: &StampedPool,
    owner: PickerOwner,
) -> Result<Vec<u8>, Malformed> {
    const LOCALITY_LB: [u32; 2] = [2, 3];
    const CLUSTER_TYPE: u32 = 38;
    let mut it = Message::parse(template)?;
    it.set(cluster::NAME, |it| it.bytes(cluster::NAME, name));
    it.remove(CLUSTER_TYPE);
    it.set(cluster::TYPE, |it| it.varint(cluster::TYPE, cluster::EDS));
    it.set(cluster::EDS_CLUSTER_CONFIG, |it| endpoints_from_us(it, &pool_name(&pool.id())));
    it.remove(cluster::LOAD_ASSIGNMENT);
    it.remove(cluster::LB_POLICY);
    // Endpoints have no localities: the picker chooses among all.
    if it.has(cluster::COMMON_LB_CONFIG) {
        it.edit::<Malformed>(cluster::COMMON_LB_CONFIG, |config| {
            LOCALITY_LB.into_iter().for_each(|field| config.remove(field));
            Ok(())
        })?;
    }
    let closed = Unpicked::of(pool, owner) == Unpicked::Refused;
    it.set(cluster::LOAD_BALANCING_POLICY, |it| the_picked_endpoint(it, closed));
    it.set(cluster::IGNORE_HEALTH_ON_HOST_REMOVAL, |it| {
        it.bool(cluster::IGNORE_HEALTH_ON_HOST_REMOVAL, true);
    });
    it.edit(cluster::CIRCUIT_BREAKERS, let_through)?;
    speak(&mut it, pool.h2c)?;
    Ok(it.to_bytes())
}

/// An `EdsClusterConfig`: the endpoints of that name, from us. DELTA_GRPC is the one kind of discovery of our own that Envoy takes
/// with a cluster that came by CDS.
fn endpoints_from_us(it: &mut Writer, name: &str) {
    const EDS_CONFIG: u32 = 1;
    const SERVICE_NAME: u32 = 2;
    const API_CONFIG_SOURCE: u32 = 2;
    const INITIAL_FETCH_TIMEOUT: u32 = 4;
    const RESOURCE_API_VERSION: u32 = 6;
    const API_TYPE: u32 = 1;
    const GRPC_SERVICES: u32 = 4;
    const SET_NODE_ON_FIRST_MESSAGE_ONLY: u32 = 7;
    const TRANSPORT_API_VERSION: u32 = 8;
    const DELTA_GRPC: u64 = 3;
    const V3: u64 = 2;
    it.message(cluster::EDS_CLUSTER_CONFIG, |config| {
        config.message(EDS_CONFIG, |source| {
            source.message(API_CONFIG_SOURCE, |api| {
                api.varint(API_TYPE, DELTA_GRPC);
                xds::grpc_service(api, GRPC_SERVICES, DISCOVERY, ask_again, |_| {});
                api.bool(SET_NODE_ON_FIRST_MESSAGE_ONLY, true);
                api.varint(TRANSPORT_API_VERSION, V3);
            });
            source.duration(INITIAL_FETCH_TIMEOUT, FIRST_ENDPOINTS_TIMEOUT);
            source.varint(RESOURCE_API_VERSION, V3);
        });
        config.bytes(SERVICE_NAME, name);
    });
}

/// Of an `EnvoyGrpc`: when it opens a stream again that broke or did not come about.
fn ask_again(envoy_grpc: &mut Writer) {
    const RETRY_POLICY: u32 = 3;
    const RETRY_BACK_OFF: u32 = 1;
    const BASE_INTERVAL: u32 = 1;
    const MAX_INTERVAL: u32 = 2;
    envoy_grpc.message(RETRY_POLICY, |policy| {
        policy.message(RETRY_BACK_OFF, |back_off| {
            back_off.duration(BASE_INTERVAL, DISCOVERY_RETRY);
            back_off.duration(MAX_INTERVAL, DISCOVERY_RETRY_MAX);
        });
    });
}

/// The endpoint that the picker named, by metadata, which nobody else can write. Where those that it named are tried or gone, the one
/// with the fewest requests in flight; the same where it named none, unless what is not picked is refused.
fn the_picked_endpoint(it: &mut Writer, closed: bool) {
    const OVERRIDE_HOST_SOURCES: u32 = 1;
    const SELECTED_HOST_KEY: u32 = 2;
    const FALLBACK_POLICY: u32 = 3;
    const SOURCE_METADATA: u32 = 2;
    let override_host =
        xds::any("envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost", |policy| {
            policy
                .message(OVERRIDE_HOST_SOURCES, |source| metadata_key(source, SOURCE_METADATA, DESTINATION));
            metadata_key(policy, SELECTED_HOST_KEY, SERVED);
            if closed {
                let subset = xds::any("envoy.extensions.load_balancing_policies.subset.v3.Subset", if_picked);
                load_balancing(policy, FALLBACK_POLICY, "envoy.load_balancing_policies.subset", &subset);
            } else {
                least_request(policy, FALLBACK_POLICY);
            }
        });
    load_balancing(
        it,
        cluster::LOAD_BALANCING_POLICY,
        "envoy.load_balancing_policies.override_host",
        &override_host,
    );
}

/// A `Subset` whose only subset is by the pick: no endpoint carries that, so a request with a pick, whatever it names, may go to any
/// endpoint, and one without finds none (503).
fn if_picked(it: &mut Writer) {
    const SUBSET_SELECTORS: u32 = 3;
    const SUBSET_LB_POLICY: u32 = 9;
    const ALLOW_REDUNDANT_KEYS: u32 = 10;
    const KEYS: u32 = 1;
    const FALLBACK_POLICY: u32 = 2;
    const ANY_ENDPOINT: u64 = 2;
    it.message(SUBSET_SELECTORS, |selector| {
        selector.bytes(KEYS, DESTINATION);
        selector.varint(FALLBACK_POLICY, ANY_ENDPOINT);
    });
    least_request(it, SUBSET_LB_POLICY);
    it.bool(ALLOW_REDUNDANT_KEYS, true);
}

fn least_request(it: &mut Writer, field: u32) {
    let config = xds::any("envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest", |_| {});
    load_balancing(it, field, "envoy.load_balancing_policies.least_request", &config);
}

/// A `LoadBalancingPolicy` of one policy.
fn load_balancing(it: &mut Writer, field: u32, name: &str, config: &[u8]) {
    const POLICIES: u32 = 1;
    const TYPED_EXTENSION_CONFIG: u32 = 4;
    const TYPED_CONFIG: u32 = 2;
    it.message(field, |policies| {
        policies.message(POLICIES, |policy| {
            policy.named_any(TYPED_EXTENSION_CONFIG, name, TYPED_CONFIG, config);
        });
    });
}

/// A `MetadataKey` below `envoy.lb`.
fn metadata_key(it: &mut Writer, field: u32, name: &str) {
    const KEY: u32 = 1;
    const PATH: u32 = 2;
    it.message(field, |key| {
        key.bytes(KEY, NAMESPACE);
        key.message(PATH, |segment| segment.bytes(KEY, name));
    });
}

/// Where no policy says how many may be in flight, any number may.
fn let_through(breakers: &mut Message) -> Result<(), Malformed> {
    const THRESHOLDS: u32 = 1;
    const MAX_CONNECTIONS_PENDING_REQUESTS: [u32; 3] = [2, 3, 4];
    if !breakers.has(THRESHOLDS) {
        breakers.push(|it| it.message(THRESHOLDS, |_| {}));
    }
    breakers.edit_all(THRESHOLDS, |threshold| {
        let missing = MAX_CONNECTIONS_PENDING_REQUESTS.into_iter().filter(|field| !threshold.has(*field));
        let missing: Vec<u32> = missing.collect();
        missing.iter().for_each(|field| threshold.push(|it| it.wrapped(*field, UNLIMITED)));
        Ok::<_, Malformed>(!missing.is_empty())
    })?;
    Ok(())
}

/// HTTP/1.1 or, where endpoints speak that, HTTP/2. What a policy says of the protocol stays.
fn speak(it: &mut Message, h2c: bool) -> Result<(), Malformed> {
    let there = it.map_value(cluster::TYPED_EXTENSION_PROTOCOL_OPTIONS, PROTOCOL_OPTIONS)?;
    let mut options = match &there {
        Some(any) => Message::parse(any)?.message(any::VALUE)?,
        None => Message::default(),
    };
    if !options.has(COMMON_HTTP) {
        const IDLE: u32 = 1;
        options.push(|it| it.message(COMMON_HTTP, |common| common.duration(IDLE, IDLE_TIMEOUT)));
    }
    let has_protocol = [EXPLICIT_HTTP, 4, 5].into_iter().any(|field| options.has(field));
    let explicit = options.message(EXPLICIT_HTTP)?;
    if (h2c && !explicit.has(HTTP2)) || !has_protocol {
        [EXPLICIT_HTTP, 4, 5].into_iter().for_each(|field| options.remove(field));
        let protocol = if h2c { HTTP2 } else { HTTP1 };
        options.push(|it| it.message(EXPLICIT_HTTP, |explicit| explicit.message(protocol, |_| {})));
    }
    let options = options.to_bytes();
    let any = Writer::of(|it| {
        it.bytes(any::TYPE_URL, xds::type_url(PROTOCOL_OPTIONS));
        it.bytes(any::VALUE, &options);
    });
    it.set_map_value(cluster::TYPED_EXTENSION_PROTOCOL_OPTIONS, PROTOCOL_OPTIONS, Some(&any))
}

/// The cluster of a pool's picker.
pub(crate) fn of_picker(pool: &StampedPool, owner: PickerOwner) -> Vec<u8> {
    let name = picker_name(&pool.id(), owner);
    Writer::of(|it| {
        it.bytes(cluster::NAME, &name);
        it.varint(cluster::TYPE, cluster::EDS);
        endpoints_from_us(it, &name);
        it.duration(cluster::CONNECT_TIMEOUT, Duration::from_secs(1));
        if owner == PickerOwner::Ours {
            health_check(it);
        }
        without_limits(it);
        tls(it);
        if owner == PickerOwner::Pool {
            or_in_the_clear(it);
        }
        const HEALTHY_PANIC_THRESHOLD: u32 = 1;
        const UPDATE_MERGE_WINDOW: u32 = 4;
        it.message(cluster::COMMON_LB_CONFIG, |config| {
            // Where no picker is healthy requests do not wait for one.
            config.message(HEALTHY_PANIC_THRESHOLD, |_| {});
            // Envoy's own way is to tell its threads up to a second after a health check what came of it.
            config.duration(UPDATE_MERGE_WINDOW, Duration::ZERO);
        });
        it.bool(cluster::IGNORE_HEALTH_ON_HOST_REMOVAL, true);
        http2(it);
    })
}

/// The cluster by which Envoys ask us for endpoints, at that host and port.
pub(crate) fn discovery((host, port): (&str, u16)) -> Vec<u8> {
    Writer::of(|it| {
        it.bytes(cluster::NAME, DISCOVERY);
        it.varint(cluster::TYPE, cluster::STRICT_DNS);
        it.duration(cluster::CONNECT_TIMEOUT, Duration::from_secs(1));
        // IPv4 where there is that, and else IPv6.
        const V4_PREFERRED: u64 = 3;
        it.varint(cluster::DNS_LOOKUP_FAMILY, V4_PREFERRED);
        it.bytes(cluster::LOAD_ASSIGNMENT, load_assignment(DISCOVERY, [(host, port, false)]));
        http2(it);
    })
}

/// A `ClusterLoadAssignment`: of each endpoint its host, its port, and whether it is spoken to in the clear where that is not clear
/// from its cluster.
pub(crate) fn load_assignment<H: AsRef<[u8]>>(
    name: &str,
    endpoints: impl IntoIterator<Item = (H, u16, bool)>,
) -> Vec<u8> {
    const CLUSTER_NAME: u32 = 1;
    const LOCALITIES: u32 = 2;
    const LB_ENDPOINTS: u32 = 2;
    const ENDPOINT: u32 = 1;
    const ADDRESS: u32 = 1;
    const SOCKET_ADDRESS: u32 = 1;
    const HOST: u32 = 2;
    const PORT: u32 = 3;
    const METADATA: u32 = 3;
    const FILTER_METADATA: u32 = 1;
    Writer::of(|it| {
        it.bytes(CLUSTER_NAME, name);
        it.message(LOCALITIES, |locality| {
            for (host, port, is_cleartext) in endpoints {
                locality.message(LB_ENDPOINTS, |lb| {
                    lb.message(ENDPOINT, |endpoint| {
                        endpoint.message(ADDRESS, |address| {
                            address.message(SOCKET_ADDRESS, |socket| {
                                socket.bytes(HOST, host);
                                socket.varint(PORT, port.into());
                            });
                        });
                    });
                    if is_cleartext {
                        lb.message(METADATA, |it| {
                            it.map_entry(FILTER_METADATA, TRANSPORT_SOCKET_MATCH, &cleartext());
                        });
                    }
                });
            }
        });
    })
}

/// The `Struct` that is said of an endpoint that does not speak TLS.
fn cleartext() -> Vec<u8> {
    const FIELDS: u32 = 1;
    const BOOL_VALUE: u32 = 4;
    let yes = Writer::of(|value| value.bool(BOOL_VALUE, true));
    Writer::of(|it| it.map_entry(FIELDS, "cleartext", &yes))
}

/// A picker that is told to stop says so at once; one that hangs is found within seconds.
fn health_check(it: &mut Writer) {
    const TIMEOUT: u32 = 1;
    const INTERVAL: u32 = 2;
    const UNHEALTHY_THRESHOLD: u32 = 4;
    const HEALTHY_THRESHOLD: u32 = 5;
    const GRPC_HEALTH_CHECK: u32 = 11;
    const NO_TRAFFIC_INTERVAL: u32 = 12;
    const UNHEALTHY_EDGE_INTERVAL: u32 = 15;
    it.message(cluster::HEALTH_CHECKS, |check| {
        check.duration(TIMEOUT, Duration::from_secs(2));
        check.duration(INTERVAL, Duration::from_secs(1));
        check.wrapped(UNHEALTHY_THRESHOLD, 2);
        check.wrapped(HEALTHY_THRESHOLD, 1);
        check.message(GRPC_HEALTH_CHECK, |grpc| {
            const SERVICE_NAME: u32 = 1;
            const AUTHORITY: u32 = 2;
            grpc.bytes(SERVICE_NAME, "envoy.service.ext_proc.v3.ExternalProcessor");
            grpc.bytes(AUTHORITY, xds::AUTHORITY);
        });
        check.duration(NO_TRAFFIC_INTERVAL, Duration::from_secs(1));
        check.duration(UNHEALTHY_EDGE_INTERVAL, Duration::from_millis(250));
    });
}

fn without_limits(it: &mut Writer) {
    const THRESHOLDS: u32 = 1;
    it.message(cluster::CIRCUIT_BREAKERS, |breakers| {
        breakers.message(THRESHOLDS, |threshold| {
            [2, 3, 4].into_iter().for_each(|field| threshold.wrapped(field, UNLIMITED));
        });
    });
}

/// TLS to whoever is there: pickers sign their certificates themselves.
fn tls(it: &mut Writer) {
    const TYPED_CONFIG: u32 = 3;
    const COMMON_TLS_CONTEXT: u32 = 1;
    const ALPN_PROTOCOLS: u32 = 4;
    let context = xds::any("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", |context| {
        context.message(COMMON_TLS_CONTEXT, |common| common.bytes(ALPN_PROTOCOLS, "h2"));
    });
    it.named_any(cluster::TRANSPORT_SOCKET, "envoy.transport_sockets.tls", TYPED_CONFIG, &context);
}

/// Without TLS to an endpoint of which that is said.
fn or_in_the_clear(it: &mut Writer) {
    const NAME: u32 = 1;
    const MATCH: u32 = 2;
    const SOCKET: u32 = 3;
    const TYPED_CONFIG: u32 = 3;
    let raw = xds::any("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", |_| {});
    it.message(cluster::TRANSPORT_SOCKET_MATCHES, |socket| {
        socket.bytes(NAME, "cleartext");
        socket.bytes(MATCH, cleartext());
        socket.named_any(SOCKET, "envoy.transport_sockets.raw_buffer", TYPED_CONFIG, &raw);
    });
}

/// HTTP/2 with pings, which find a peer whose machine is gone.
fn http2(it: &mut Writer) {
    const CONNECTION_KEEPALIVE: u32 = 15;
    const INTERVAL: u32 = 1;
    const TIMEOUT: u32 = 2;
    let options = xds::any(PROTOCOL_OPTIONS, |options| {
        options.message(EXPLICIT_HTTP, |explicit| {
            explicit.message(HTTP2, |http2| {
                http2.message(CONNECTION_KEEPALIVE, |keepalive| {
                    keepalive.duration(INTERVAL, Duration::from_secs(2));
                    keepalive.duration(TIMEOUT, Duration::from_secs(5));
                });
            });
        });
    });
    it.map_entry(cluster::TYPED_EXTENSION_PROTOCOL_OPTIONS, PROTOCOL_OPTIONS, &options);
}
