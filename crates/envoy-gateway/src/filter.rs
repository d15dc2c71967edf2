//! The ext_proc filter: once in a listener, for nobody, and switched on where a route or a weighted entry goes to a pool.

use std::time::Duration;

use pool::PoolId;
use protobuf::{Malformed, Message, Writer};

use crate::known::{PickerOwner, picker_name};
use crate::stamp::StampedPool;
use crate::xds::{self, Write as _, any, connection_manager, listener};

/// The filter's name, under which routes say how it is for them.
pub(crate) const NAME: &str = "envoy.filters.http.ext_proc/pointsman";
/// The metadata of a stream by which a picker of many pools knows which is meant; one of a single pool passes it over.
const POOL_METADATA: &str = "x-pointsman-pool";
/// How long a pick may take before the request goes on without one, or is refused.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a picker may ask for: a request that waits in its queue asks again and again. The most that Envoy takes.
const MESSAGE_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

const SEND: u64 = 1;
const SKIP: u64 = 2;
const BUFFERED_PARTIAL: u64 = 3;
const FULL_DUPLEX_STREAMED: u64 = 4;

/// What of a request and its answer a picker is shown: `ProcessingMode`.
struct Shown {
    response_headers: u64,
    request_body: u64,
    response_body: u64,
    request_trailers: u64,
    response_trailers: u64,
}

impl Shown {
    fn to(owner: PickerOwner) -> Shown {
        match owner {
            // The only mode in which fail-open and timeouts are real (ADR 5). The stream stays until the answer's end, which so
            // ends the request's booking.
            PickerOwner::Ours => Shown {
                response_headers: SEND,
                request_body: BUFFERED_PARTIAL,
                response_body: 0,
                request_trailers: SKIP,
                response_trailers: SEND,
            },
            // The only mode that the protocol asks pickers to speak.
            PickerOwner::Pool => Shown {
                response_headers: SEND,
                request_body: FULL_DUPLEX_STREAMED,
                response_body: FULL_DUPLEX_STREAMED,
                request_trailers: SEND,
                response_trailers: SEND,
            },
        }
    }

    fn write(&self, mode: &mut Writer) {
        let fields = [
            (1, SEND),
            (2, self.response_headers),
            (3, self.request_body),
            (4, self.response_body),
            (5, self.request_trailers),
            (6, self.response_trailers),
        ];
        for (field, value) in fields.into_iter().filter(|(_, value)| *value != 0) {
            mode.varint(field, value);
        }
    }
}

/// What becomes of a request for which no picker named an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unpicked {
    /// It goes to the endpoint with the fewest requests in flight: the pool fails open.
    Sent,
    /// The pool's cluster has no endpoint for it. The filter itself lets all pass: it fails closed for answers that are under way too,
    /// so that each picker that dies would take those with it (ADR 32).
    Refused,
    /// The filter refuses it: the pool's own picker may be one that names no endpoint for what it lets pass.
    RefusedByFilter,
}

impl Unpicked {
    pub(crate) fn of(pool: &StampedPool, owner: PickerOwner) -> Unpicked {
        match owner {
            _ if pool.fail_open => Unpicked::Sent,
            PickerOwner::Ours => Unpicked::Refused,
            PickerOwner::Pool => Unpicked::RefusedByFilter,
        }
    }
}

/// How the filter is for requests that go to that pool: an `ExtProcPerRoute`, as an Any.
pub(crate) fn for_pool(pool: &StampedPool, owner: PickerOwner) -> Vec<u8> {
    const OVERRIDES: u32 = 2;
    const PROCESSING_MODE: u32 = 1;
    const GRPC_SERVICE: u32 = 5;
    const FAILURE_MODE_ALLOW: u32 = 8;
    let id: PoolId = pool.id();
    xds::any("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", |route| {
        route.message(OVERRIDES, |overrides| {
            overrides.message(PROCESSING_MODE, |mode| Shown::to(owner).write(mode));
            xds::grpc_service(
                overrides,
                GRPC_SERVICE,
                &picker_name(&id, owner),
                |_| {},
                |service| asked(service, &id),
            );
            overrides.message(FAILURE_MODE_ALLOW, |allow| {
                allow.bool(1, Unpicked::of(pool, owner) != Unpicked::RefusedByFilter);
            });
        });
    })
}

/// How a picker is asked: each stream names the pool, and one that breaks before the pick is opened anew, at another picker where there
/// is one, with what was said on it (Envoy keeps 64 KiB of that).
fn asked(service: &mut Writer, id: &PoolId) {
    const INITIAL_METADATA: u32 = 5;
    const HEADER_KEY: u32 = 1;
    const HEADER_VALUE: u32 = 2;
    const RETRY_POLICY: u32 = 6;
    const BACK_OFF: u32 = 1;
    const BASE_INTERVAL: u32 = 1;
    const NUM_RETRIES: u32 = 2;
    const RETRY_ON: u32 = 3;
    const RETRY_HOST_PREDICATE: u32 = 5;
    const TYPED_CONFIG: u32 = 2;
    const HOST_SELECTION_RETRY_MAX_ATTEMPTS: u32 = 6;
    service.message(INITIAL_METADATA, |header| {
        header.bytes(HEADER_KEY, POOL_METADATA);
        header.bytes(HEADER_VALUE, id.to_string());
    });
    service.message(RETRY_POLICY, |policy| {
        policy.message(BACK_OFF, |it| it.duration(BASE_INTERVAL, Duration::from_millis(5)));
        policy.wrapped(NUM_RETRIES, 2);
        policy.bytes(RETRY_ON, "connect-failure,refused-stream,reset,unavailable");
        xds::previous_hosts(policy, RETRY_HOST_PREDICATE, TYPED_CONFIG);
        policy.varint(HOST_SELECTION_RETRY_MAX_ATTEMPTS, 5);
    });
}

/// Puts the filter into every connection manager of a listener that serves one of those route configurations; whether there was
/// any.
///
/// # Errors
/// When the listener cannot be read.
pub(crate) fn put_into(listener: &mut Message, serves: &dyn Fn(&str) -> bool) -> Result<bool, Malformed> {
    let mut found = false;
    for chains in [listener::FILTER_CHAINS, listener::DEFAULT_FILTER_CHAIN] {
        found |= listener.edit_all::<Malformed>(chains, |chain| {
            chain.edit_all(listener::FILTERS, |filter| put_into_filter(filter, serves))
        })?;
    }
    Ok(found)
}

fn put_into_filter(filter: &mut Message, serves: &dyn Fn(&str) -> bool) -> Result<bool, Malformed> {
    let config = filter.message(listener::TYPED_CONFIG)?;
    if config.text(any::TYPE_URL) != connection_manager::TYPE_URL {
        return Ok(false);
    }
    let mut manager = config.message(any::VALUE)?;
    let routes = manager.message(connection_manager::RDS)?.text(connection_manager::ROUTE_CONFIG_NAME);
    if !serves(&routes) {
        return Ok(false);
    }
    let filters: Vec<_> = manager.all(connection_manager::HTTP_FILTERS).collect();
    for filter in &filters {
        if Message::parse(filter)?.text(connection_manager::FILTER_NAME) == NAME {
            return Ok(false);
        }
    }
    // The router is the last.
    let at = filters.len().saturating_sub(1);
    let ours = Writer::of(filter_itself);
    manager.set(connection_manager::HTTP_FILTERS, |writer| {
        let all = filters[..at].iter().map(|filter| &filter[..]);
        for filter in all.chain([&ours[..]]).chain(filters[at..].iter().map(|filter| &filter[..])) {
            writer.bytes(connection_manager::HTTP_FILTERS, filter);
        }
    });
    filter.edit::<Malformed>(listener::TYPED_CONFIG, |config| {
        config.set(any::VALUE, |writer| writer.bytes(any::VALUE, manager.to_bytes()));
        Ok(())
    })?;
    Ok(true)
}

/// An `HttpFilter` that is disabled; the same whatever pools there are, so that listeners stay as they are when pools come and go.
fn filter_itself(filter: &mut Writer) {
    const GRPC_SERVICE: u32 = 1;
    const PROCESSING_MODE: u32 = 3;
    const MESSAGE_TIMEOUT_FIELD: u32 = 7;
    const MAX_MESSAGE_TIMEOUT_FIELD: u32 = 10;
    const ALLOW_MODE_OVERRIDE: u32 = 14;
    const METADATA_OPTIONS: u32 = 16;
    const FORWARDING_NAMESPACES: u32 = 1;
    const RECEIVING_NAMESPACES: u32 = 2;
    const UNTYPED: u32 = 1;
    let config = xds::any("envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor", |it| {
        // Nobody is asked by that name: every route that switches it on names another.
        xds::grpc_service(it, GRPC_SERVICE, "pointsman/picker/none", |_| {}, |_| {});
        it.message(PROCESSING_MODE, |mode| Shown::to(PickerOwner::Ours).write(mode));
        it.duration(MESSAGE_TIMEOUT_FIELD, MESSAGE_TIMEOUT);
        it.duration(MAX_MESSAGE_TIMEOUT_FIELD, MESSAGE_TIMEOUT_MAX);
        it.bool(ALLOW_MODE_OVERRIDE, true);
        it.message(METADATA_OPTIONS, |options| {
            options.message(FORWARDING_NAMESPACES, |spaces| {
                spaces.bytes(UNTYPED, "envoy.lb");
                spaces.bytes(UNTYPED, "envoy.lb.subset_hint");
            });
            options.message(RECEIVING_NAMESPACES, |spaces| spaces.bytes(UNTYPED, "envoy.lb"));
        });
    });
    filter.bytes(connection_manager::FILTER_NAME, NAME);
    filter.bytes(connection_manager::FILTER_TYPED_CONFIG, config);
    filter.bool(connection_manager::FILTER_DISABLED, true);
}
