//! TLS for both sides: the certificate we serve with, replaced while it serves, and whom we trust as a client.
//!
//! Invariants
//! - A certificate that cannot be used never takes the place of one that can.
//! - TLS 1.2 and 1.3 only, by rustls with ring; nobody can ask for less.

mod client;
mod serving;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};

pub use client::{no_roots, roots, trusting, verifying};
pub use serving::ServingCertificate;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, or holds no PEM of that kind.
    #[error("{path}: no {wanted} in PEM: {why}", path = .path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
        /// What went wrong.
        why: String,
    },
    /// The key does not fit the certificate, or the certificate makes no sense.
    #[error("{cert} with {key}: {source}", cert = .cert.display(), key = .key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What went wrong.
        source: rustls::Error,
    },
    /// A certificate cannot be made.
    #[error("no certificate could be made: {0}")]
    SelfSigned(String),
    /// There is nobody to trust.
    #[error("no root certificates found on this system: set SSL_CERT_FILE, or name a file of them")]
    NoRoots,
    /// rustls refused a configuration.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
