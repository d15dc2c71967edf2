//! Pods as endpoints: on Kubernetes a pool's selector matches them themselves.

use std::sync::Arc;

use crate::manifest::InferencePool;
use crate::slices::{EndpointSpec, Seen, SlicePort};

/// What is read of a pod that the pool's selector matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// `status.podIP`, once it has one.
    pub address: Option<Arc<str>>,
    /// The condition `Ready` is true and nobody has deleted it.
    pub ready: bool,
    /// The annotation [`Pod::ACTIVE_PORTS`]: which of the pool's target ports it serves, by comma; absent: all.
    pub active_ports: Option<String>,
}

impl Pod {
    /// The annotation that narrows a pod's ports.
    pub const ACTIVE_PORTS: &'static str = "inference.networking.k8s.io/active-ports";

    fn serves(&self, port: u16) -> bool {
        // As upstream has it: what is no port of the pool is nothing.
        let named = |list: &String| list.split(',').any(|text| text.trim().parse() == Ok(port));
        self.active_ports.as_ref().is_none_or(named)
    }
}

impl InferencePool {
    /// The endpoints that these pods are, in their order: those that are ready, times the target ports they serve. Named
    /// `<pod>-rank-<i>` by the port's place among the target ports. One address and port is one endpoint.
    #[must_use]
    pub fn pod_endpoints<'p>(&self, pods: impl IntoIterator<Item = &'p Pod>) -> Vec<EndpointSpec> {
        let mut seen = Seen::default();
        let mut endpoints = Vec::new();
        for pod in pods.into_iter().filter(|pod| pod.ready) {
            let Some(address) = &pod.address else { continue };
            for (rank, &number) in self.target_ports.iter().enumerate() {
                if pod.serves(number) {
                    let (name, port) =
                        (format!("{}-rank-{rank}", pod.name), SlicePort { number, tls: false });
                    endpoints.extend(seen.admit(&pod.name, name, address, port));
                }
            }
        }
        endpoints
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn pool(ports: &str) -> InferencePool {
        let text = format!(
            "apiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: p}}\nspec: \
             {{selector: {{matchLabels: {{a: b}}}}, targetPorts: {ports}}}"
        );
        parse("p", &text).unwrap().pools.remove(0)
    }

    fn pod(name: &str, address: &str, active_ports: Option<&str>) -> Pod {
        Pod {
            name: name.to_owned(),
            address: (!address.is_empty()).then(|| Arc::from(address)),
            ready: true,
            active_ports: active_ports.map(str::to_owned),
        }
    }

    fn named(pool: &InferencePool, pods: &[Pod]) -> Vec<String> {
        pool.pod_endpoints(pods).iter().map(|it| format!("{} {}:{}", it.name, it.host, it.port)).collect()
    }

    #[test]
    fn each_ready_pod_is_an_endpoint_for_each_of_its_ports() {
        let pool = pool("[{number: 8000}, {number: 8001}]");
        let mut late = pod("c", "10.0.0.3", None);
        late.ready = false;
        let pods = [
            pod("a", "10.0.0.1", None),
            pod("b", "10.0.0.2", Some(" 8001, 9999,x")),
            late,
            pod("d", "", None),
            pod("e", "10.0.0.5", Some("")),
        ];
        assert_eq!(
            named(&pool, &pods),
            ["a-rank-0 10.0.0.1:8000", "a-rank-1 10.0.0.1:8001", "b-rank-1 10.0.0.2:8001"]
        );
    }

    #[test]
    fn an_address_that_two_pods_share_is_one_endpoint() {
        let pool = pool("[{number: 8000}]");
        let pods = [pod("a", "10.0.0.1", None), pod("b", "10.0.0.1", None)];
        assert_eq!(named(&pool, &pods), ["a-rank-0 10.0.0.1:8000"]);
    }
}
