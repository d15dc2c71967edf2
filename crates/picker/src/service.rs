//! What the picker's gRPC port serves: ext_proc, Envoy's access log, health.

use std::sync::Arc;

use director::Director;
use grpc::{Call, Code, Health, Service, Status};
use tokio_util::sync::CancellationToken;

use crate::parked::Parked;
use crate::{access_log, process};

/// The services whose health is that of the picker.
pub const HEALTH_SERVICES: &[&str] =
    &["", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"];
/// The service whose health is that of the process.
pub const LIVENESS: &str = "liveness";
/// The metadata of an ext_proc stream that names the pool, `namespace/name`, to a picker of many.
pub const POOL: &str = "x-pointsman-pool";

/// What an operator may choose of a picker.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many endpoints are named after the pick.
    pub fallback_endpoints: usize,
    /// Whether control headers of clients are obeyed.
    pub control_headers: bool,
    /// Whether it picks for many pools, and streams say for which ([`POOL`]).
    pub all_pools: bool,
    /// Whether the headers of upstream's conformance suite are obeyed.
    pub conformance: bool,
}

/// The endpoint picker's door.
pub struct Picker {
    director: Arc<Director>,
    options: Options,
    parked: Parked,
    health: Health,
    drains: CancellationToken,
}

impl Picker {
    /// A door that asks `director`. From when it `drains` on no new stream comes.
    #[must_use]
    pub fn new(
        director: Arc<Director>,
        options: Options,
        health: Health,
        drains: CancellationToken,
    ) -> Arc<Picker> {
        let parked = Parked::new(director.clock());
        Arc::new(Picker { director, options, parked, health, drains })
    }

    pub(crate) fn director(&self) -> &Arc<Director> {
        &self.director
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn parked(&self) -> &Parked {
        &self.parked
    }
}

impl Service for Picker {
    async fn serve(&self, call: Call) {
        match call.path() {
            process::PATH => process::serve(self, call).await,
            access_log::PATH => access_log::serve(&self.parked, &self.drains, call).await,
            _ => {
                if let Err(call) = self.health.clone().answer(call).await {
                    call.finish(&Status::new(Code::Unimplemented, "no such method here"));
                }
            }
        }
    }
}
