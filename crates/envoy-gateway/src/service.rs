//! The gRPC shell around it: Envoy Gateway's hooks (`envoygateway.extension.EnvoyGatewayExtension`) and Envoy's endpoint discovery.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use grpc::{Broken, Call, Code, Service, Status};
use pool::Manifest;
use protobuf::{Malformed, Message, Writer};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::discovery::{Subscriptions, is_about_endpoints};
use crate::known::{Endpoints, Known};
use crate::routes;
use crate::stamp::StampedPool;
use crate::translate::{Setting, Translated, Translation, translate};

const EXTENSION: &str = "/envoygateway.extension.EnvoyGatewayExtension/";
const DELTA_ENDPOINTS: &str = "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints";
/// How long a translation waits for what is known to be what Envoy Gateway saw. It waits for us as long, with all of its Gateways.
const IN_STEP_MAX: Duration = Duration::from_secs(2);
/// Hooks that are served at once. Envoy Gateway asks one after the other, and each may hold a message of 64 MiB.
const HOOKS_MAX: usize = 2;
/// How long one may take, with the time that its message takes to come.
const HOOK_MAX: Duration = Duration::from_secs(20);
/// What an Envoy has to say of endpoints at once, in bytes.
const DISCOVERY_MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How long where that is most likely what was known a moment ago: an HTTPRoute that is gone must not hold up the others.
const AHEAD_MAX: Duration = Duration::from_millis(200);
/// … and where pools share a rule with a Service: if Envoy Gateway knows already that it left, there is nothing behind its share.
const SHARED_MAX: Duration = Duration::from_millis(100);

/// The extension server of Envoy Gateway, and the discovery server of its Envoys.
pub struct ExtensionServer {
    setting: Setting,
    known: watch::Receiver<Arc<Known>>,
    endpoints: watch::Receiver<Arc<Endpoints>>,
    hooks: Semaphore,
}

impl ExtensionServer {
    /// A server that answers by what is `known` at the moment. Not to be asked before anything is.
    #[must_use]
    pub fn new(
        setting: Setting,
        known: watch::Receiver<Arc<Known>>,
        endpoints: watch::Receiver<Arc<Endpoints>>,
    ) -> ExtensionServer {
        ExtensionServer { setting, known, endpoints, hooks: Semaphore::new(HOOKS_MAX) }
    }

    /// A hook: one request, one answer.
    async fn hook(&self, name: &str, mut call: Call) {
        let request = match call.next().await {
            Ok(Some(request)) => request,
            Ok(None) => return call.finish(&invalid(&"the request is missing")),
            Err(broken) => return call.finish(&invalid(&broken)),
        };
        let Some(answer) = self.answer(name, &request).await.transpose() else {
            return call.finish(&Status::new(Code::Unimplemented, "no such hook here"));
        };
        match answer {
            Ok(answer) => {
                if call.send([Bytes::from(answer)]).await.is_ok() {
                    call.finish(&Status::ok());
                }
            }
            Err(malformed) => {
                tracing::error!("{name}: what Envoy Gateway sent cannot be read: {malformed}");
                call.finish(&invalid(&malformed));
            }
        }
    }

    /// What a hook is answered; none where there is no such hook.
    ///
    /// # Errors
    /// When the request is not what that hook asks.
    pub async fn answer(&self, hook: &str, request: &Bytes) -> Result<Option<Vec<u8>>, Malformed> {
        match hook {
            "PostTranslateModify" => self.translate(request).await.map(Some),
            "PostRouteModify" => stamp(request).map(Some),
            // An empty answer leaves things as they are.
            "PostClusterModify"
            | "PostEndpointsModify"
            | "PostVirtualHostModify"
            | "PostHTTPListenerModify" => Ok(Some(Vec::new())),
            _ => Ok(None),
        }
    }

    async fn translate(&self, request: &Bytes) -> Result<Vec<u8>, Malformed> {
        let asked = Translation::read(request)?;
        let mut known = self.known.clone();
        let began = Instant::now();
        loop {
            let now = Arc::clone(&known.borrow_and_update());
            let Translated { translation, behind, ahead, shared, faults } =
                translate(&asked, &now, &self.setting);
            let patience = match (behind.is_empty(), ahead, shared) {
                (false, ..) => Some(IN_STEP_MAX),
                (true, true, _) => Some(AHEAD_MAX),
                (true, false, true) => Some(SHARED_MAX),
                (true, false, false) => None,
            };
            if let Some(patience) = patience
                && matches!(timeout_at(began + patience, known.changed()).await, Ok(Ok(())))
            {
                continue;
            }
            for route in &behind {
                tracing::warn!(
                    %route,
                    "Envoy Gateway found other pools for the HTTPRoute than are known here after {IN_STEP_MAX:?}: its pools \
                     share evenly until it is translated again; is the API server's watch behind, or this controller's rights too few?"
                );
            }
            faults.iter().for_each(|fault| tracing::error!("left out of Envoy's configuration: {fault}"));
            return Ok(translation.write());
        }
    }

    /// Tells an Envoy of endpoints, until it leaves.
    async fn discover(&self, mut call: Call) {
        call.take_at_most(DISCOVERY_MESSAGE_BYTES_MAX);
        let mut endpoints = self.endpoints.clone();
        let mut subscriptions = Subscriptions::default();
        loop {
            let now = Arc::clone(&endpoints.borrow_and_update());
            if let Some(answer) = subscriptions.answer(&now)
                && call.send([Bytes::from(answer)]).await.is_err()
            {
                return;
            }
            tokio::select! {
                request = call.next() => match request {
                    Ok(Some(request)) if is_about_endpoints(&request) => match subscriptions.take(&request) {
                        Ok(None) => {}
                        Ok(Some(why)) => tracing::error!("an Envoy refuses the endpoints that it was told: {why}"),
                        Err(malformed) => return call.finish(&invalid(&malformed)),
                    },
                    Ok(Some(_)) => return call.finish(&invalid(&"endpoints alone are told here")),
                    Ok(None) => return call.finish(&Status::ok()),
                    Err(Broken::Http2(_)) => return,
                    Err(broken) => return call.finish(&invalid(&broken)),
                },
                changed = endpoints.changed() => if changed.is_err() {
                    return call.finish(&Status::new(Code::Unavailable, "the controller stops"));
                },
            }
        }
    }
}

impl Service for ExtensionServer {
    async fn serve(&self, call: Call) {
        let path = call.path().to_owned();
        match path.strip_prefix(EXTENSION) {
            Some(hook) => {
                // Until it is its turn nothing of a message is taken from the connection.
                let Ok(_turn) = self.hooks.acquire().await else { return };
                if timeout(HOOK_MAX, self.hook(hook, call)).await.is_err() {
                    tracing::warn!(
                        hook,
                        "who asked did not send the request, or take the answer, within {HOOK_MAX:?}"
                    );
                }
            }
            None if path == DELTA_ENDPOINTS => self.discover(call).await,
            None => call.finish(&Status::new(Code::Unimplemented, "no such method here")),
        }
    }
}

/// PostRouteModify: leaves in the route which pools were found for it.
fn stamp(request: &Bytes) -> Result<Vec<u8>, Malformed> {
    const ROUTE: u32 = 1;
    const CONTEXT: u32 = 2;
    const EXTENSION_RESOURCES: u32 = 1;
    const UNSTRUCTURED_BYTES: u32 = 1;
    let request = Message::parse(request)?;
    let mut pools: Vec<StampedPool> = Vec::new();
    for resource in request.message(CONTEXT)?.all(EXTENSION_RESOURCES) {
        let object = Message::parse(&resource)?.text(UNSTRUCTURED_BYTES);
        let manifest = pool::parse("Envoy Gateway's InferencePool", &object).unwrap_or_else(Manifest::from);
        for pool in &manifest.pools {
            let pool = StampedPool::from(pool);
            if pools.iter().all(|there| there.id() != pool.id()) {
                pools.push(pool);
            }
        }
    }
    let Some(route) = request.bytes(ROUTE).filter(|_| !pools.is_empty()) else { return Ok(Vec::new()) };
    let stamped = routes::stamped(&route, &pools)?;
    Ok(Writer::of(|answer| answer.bytes(ROUTE, stamped)))
}

fn invalid(why: &impl ToString) -> Status {
    Status::new(Code::InvalidArgument, why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamp;

    #[test]
    fn a_route_carries_on_which_pools_envoy_gateway_found() {
        // In the order of tests/captures: two rules of `canary` with both pools, one of them beside a missing one, and `sole`.
        let captures: [&[u8]; 4] = [
            include_bytes!("../tests/captures/route-000.bin"),
            include_bytes!("../tests/captures/route-001.bin"),
            include_bytes!("../tests/captures/route-002.bin"),
            include_bytes!("../tests/captures/route-003.bin"),
        ];
        let stamped = captures.map(|capture| {
            let answer = stamp(&Bytes::from_static(capture)).unwrap();
            let route = Message::parse(&answer.into()).unwrap().message(1).unwrap();
            let pools = stamp::find(&route).unwrap().unwrap();
            let pools = pools.iter().map(|pool| format!("{} {} {}", pool.name, pool.fail_open, pool.h2c));
            (route.text(14), pools.collect::<Vec<_>>())
        });
        let mut found: Vec<String> =
            stamped.iter().map(|(name, pools)| format!("{name}: {}", pools.join(", "))).collect();
        found.sort();
        assert_eq!(
            found,
            [
                "httproute/default/canary/rule/0/match/0/*: qwen-pool true false, llama-pool false true",
                "httproute/default/canary/rule/1/match/0/*: llama-pool false true",
                "httproute/default/canary/rule/2/match/0/*: qwen-pool true false",
                "httproute/default/sole/rule/0/match/0/*: qwen-pool true false",
            ]
        );
    }

    #[test]
    fn what_is_no_request_of_a_hook_is_refused() {
        assert!(stamp(&Bytes::from_static(b"\xff")).is_err());
        assert_eq!(stamp(&Bytes::new()), Ok(vec![]));
    }
}
