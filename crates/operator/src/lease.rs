//! Leader election by a Lease: of several controllers one works.
//!
//! As client-go has it: whoever holds the Lease renews it; another takes it once its record has not changed for the Lease's duration *by
//! the observer's own clock*, so that clocks need not agree; every write names the version it is based on, so that of two takers one
//! fails. (`kube-leader-election` compares the holder's clock with its own and writes without a version.)

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

/// How long a record that nobody renews holds.
const DURATION: Duration = Duration::from_secs(15);
/// Without a renewal for so long the holder stops to work.
const RENEW_MAX: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY: Duration = Duration::from_secs(2);
/// How long to give it back may hold up the end.
const RELEASE_MAX: Duration = Duration::from_secs(3);
const CONFLICT: u16 = 409;

/// One contender for a Lease.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    /// The other's record, and since when it has been this.
    observed: Option<(String, Instant)>,
}

impl Election {
    /// A contender called `identity`, which no other may be called.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, identity: String) -> Election {
        let leases = Api::namespaced(client, namespace);
        Election { leases, name: name.to_owned(), identity, observed: None }
    }

    /// Waits until this one leads.
    pub async fn win(&mut self) {
        let mut told = String::new();
        loop {
            match self.attempt().await {
                Ok(Outcome::Held) => return tracing::info!(lease = self.name, "this controller leads"),
                Ok(Outcome::Others(holder)) => {
                    if told != holder {
                        tracing::info!(lease = self.name, holder, "another controller leads: this one waits");
                        told = holder;
                    }
                }
                Err(error) => tracing::warn!(lease = self.name, "who leads cannot be told: {error}"),
            }
            sleep(RETRY).await;
        }
    }

    /// Renews the Lease for as long as that succeeds; returns when this one leads no more.
    pub async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < RENEW_MAX {
            sleep(RETRY).await;
            match timeout(RENEW_MAX, self.attempt()).await {
                Ok(Ok(Outcome::Held)) => renewed = Instant::now(),
                Ok(Ok(Outcome::Others(holder))) => {
                    return tracing::warn!(lease = self.name, holder, "another controller leads now");
                }
                Ok(Err(error)) => tracing::warn!(lease = self.name, "it cannot be renewed: {error}"),
                Err(_) => {}
            }
        }
        tracing::warn!(lease = self.name, "it could not be renewed in time: this controller stops to lead");
    }

    /// Gives it back, so that another need not wait.
    pub async fn release(&mut self) {
        let release = async {
            let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
            if holder(&lease) != self.identity {
                return Ok(());
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
            }
            self.leases.replace(&self.name, &PostParams::default(), &lease).await?;
            Ok::<(), Error>(())
        };
        if let Ok(Err(error)) = timeout(RELEASE_MAX, release).await {
            tracing::debug!(lease = self.name, "it is not given back: {error}");
        }
    }

    async fn attempt(&mut self) -> Result<Outcome, Error> {
        let now = now();
        let seconds = i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX);
        let outcome = match self.leases.get_opt(&self.name).await? {
            None => {
                let lease = json!({
                    "metadata": { "name": self.name },
                    "spec": {
                        "holderIdentity": self.identity,
                        "leaseDurationSeconds": seconds,
                        "acquireTime": now,
                        "renewTime": now,
                        "leaseTransitions": 0,
                    },
                });
                let lease: Lease = serde_json::from_value(lease).map_err(Error::SerdeError)?;
                self.leases.create(&PostParams::default(), &lease).await
            }
            Some(mut lease) => {
                let holder = holder(&lease).to_owned();
                if holder != self.identity && !holder.is_empty() && !self.has_expired(&lease) {
                    return Ok(Outcome::Others(holder));
                }
                let mut spec = lease.spec.take().unwrap_or_default();
                let time = serde_json::from_value(json!(now)).map_err(Error::SerdeError)?;
                if holder != self.identity {
                    spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
                    spec.acquire_time = Some(Clone::clone(&time));
                }
                spec.renew_time = Some(time);
                spec.holder_identity = Some(self.identity.clone());
                spec.lease_duration_seconds = Some(seconds);
                lease.spec = Some(spec);
                self.leases.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match outcome {
            Ok(_) => Ok(Outcome::Held),
            // Another one wrote first; who, the next look tells.
            Err(Error::Api(status)) if status.code == CONFLICT => Ok(Outcome::Others("another".to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Whether the record has been the same for as long as it holds, by our own clock.
    fn has_expired(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let holds =
            seconds.and_then(|seconds| u64::try_from(seconds).ok()).map_or(DURATION, Duration::from_secs);
        match &self.observed {
            Some((observed, since)) if *observed == version => since.elapsed() >= holds,
            _ => {
                self.observed = Some((version, Instant::now()));
                false
            }
        }
    }
}

/// What came of an attempt.
enum Outcome {
    Held,
    /// By another, of this name.
    Others(String),
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default()
}

/// In microseconds, as the API has it.
fn now() -> String {
    format!("{:.6}", Timestamp::now())
}
