//! grpc.health.v1.Health (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>): Check and Watch.

use bytes::Bytes;
use tokio::sync::watch;

use crate::call::{Broken, Call, Code, Status};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// `HealthCheckRequest.service`, and `HealthCheckResponse.status`: field 1.
const SERVICE_TAG: u8 = 0x0a;
const STATUS_TAG: u8 = 0x08;
/// Services have short names.
const REQUEST_BYTES_MAX: usize = 512;

/// Whether something is served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It is.
    Serving = 1,
    /// It is not, now.
    NotServing = 2,
    /// Nobody here knows it (`Watch` alone says so).
    ServiceUnknown = 3,
}

/// The health of named services, which all share one answer but for one of them that is about the process alone.
#[derive(Clone, Debug)]
pub struct Health {
    services: &'static [&'static str],
    liveness: &'static str,
    serving: watch::Receiver<bool>,
}

impl Health {
    /// `services` are served while `serving` says so; `liveness` always, while the process lives.
    #[must_use]
    pub fn new(
        services: &'static [&'static str],
        liveness: &'static str,
        serving: watch::Receiver<bool>,
    ) -> Health {
        Health { services, liveness, serving }
    }

    /// Answers `call` if it is about health; else gives it back.
    ///
    /// # Errors
    /// The call, when it is about something else.
    pub async fn answer(&mut self, call: Call) -> Result<(), Call> {
        match call.path() {
            CHECK => self.check(call).await,
            WATCH => self.watch(call).await,
            _ => return Err(call),
        }
        Ok(())
    }

    async fn check(&mut self, mut call: Call) {
        let status = match asked(&mut call).await {
            Err(status) => status,
            Ok(service) => match self.serving(&service) {
                Serving::ServiceUnknown => {
                    Status::new(Code::NotFound, "the health of that service is not known here")
                }
                serving => match call.send([answer(serving)]).await {
                    Ok(()) => Status::ok(),
                    Err(_) => return,
                },
            },
        };
        call.finish(&status);
    }

    /// The present answer, and each that differs from the one before, until the peer leaves.
    async fn watch(&mut self, mut call: Call) {
        let service = match asked(&mut call).await {
            Ok(service) => service,
            Err(status) => return call.finish(&status),
        };
        let mut told = None;
        loop {
            let now = self.serving(&service);
            if told != Some(now) {
                if call.send([answer(now)]).await.is_err() {
                    return;
                }
                told = Some(now);
            }
            tokio::select! {
                changed = self.serving.changed() => if changed.is_err() {
                    return call.finish(&Status::new(Code::Unavailable, "the process stops"));
                },
                () = call.closed() => return,
            }
        }
    }

    fn serving(&self, service: &str) -> Serving {
        if service == self.liveness {
            Serving::Serving
        } else if !self.services.contains(&service) {
            Serving::ServiceUnknown
        } else if *self.serving.borrow() {
            Serving::Serving
        } else {
            Serving::NotServing
        }
    }
}

/// The service that a request names.
async fn asked(call: &mut Call) -> Result<String, Status> {
    let malformed = || Status::new(Code::InvalidArgument, "no HealthCheckRequest");
    let request =
        call.next().await.map_err(|error: Broken| Status::new(Code::InvalidArgument, error.to_string()))?;
    let request = request.ok_or_else(malformed)?;
    if request.len() > REQUEST_BYTES_MAX {
        return Err(malformed());
    }
    service_of(&request).ok_or_else(malformed)
}

/// `HealthCheckRequest` has one field; a name is shorter than 128 bytes, so its length is one byte.
fn service_of(request: &[u8]) -> Option<String> {
    match request {
        [] => Some(String::new()),
        [SERVICE_TAG, length, name @ ..] if usize::from(*length) == name.len() && *length < 128 => {
            String::from_utf8(name.to_vec()).ok()
        }
        _ => None,
    }
}

fn answer(serving: Serving) -> Bytes {
    Bytes::copy_from_slice(&[STATUS_TAG, serving as u8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_protobuf_has_them() {
        assert_eq!(service_of(b"").as_deref(), Some(""));
        assert_eq!(service_of(b"\x0a\x00").as_deref(), Some(""));
        assert_eq!(service_of(b"\x0a\x08liveness").as_deref(), Some("liveness"));
        for hostile in
            [&b"\x0a"[..], b"\x0a\x09liveness", b"\x0a\x01\xff", b"\x12\x00", b"\x0a\xff\xff\xff\xff"]
        {
            assert_eq!(service_of(hostile), None, "{hostile:?}");
        }
    }

    #[test]
    fn liveness_is_about_the_process_alone() {
        let (tell, serving) = watch::channel(false);
        let health = Health::new(&["", "readiness"], "liveness", serving);
        let all = |health: &Health| ["", "readiness", "liveness", "other"].map(|name| health.serving(name));
        use Serving::{NotServing, ServiceUnknown};
        assert_eq!(all(&health), [NotServing, NotServing, Serving::Serving, ServiceUnknown]);
        tell.send(true).unwrap();
        assert_eq!(all(&health), [Serving::Serving, Serving::Serving, Serving::Serving, ServiceUnknown]);
    }
}
