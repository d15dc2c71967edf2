//! The certificate we serve with. Its files are looked at every half second: Kubernetes swaps links, editors rename,
//! certbot writes twice, and all of that is seen as a change of bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{TlsError, provider};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A certificate with its key: from two PEM files, as they are now, or made for this process.
pub struct ServingCertificate {
    alpn: Vec<Vec<u8>>,
    config: ArcSwap<ServerConfig>,
    /// Absent where the certificate was made.
    files: Option<Files>,
}

/// Where the certificate and its key are.
struct Files {
    cert: PathBuf,
    key: PathBuf,
    /// What was read at first.
    opened: Pem,
}

/// What the two files hold.
#[derive(Clone, PartialEq, Eq)]
struct Pem {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl ServingCertificate {
    /// Reads both files. `alpn` are the protocols to offer, best first.
    ///
    /// # Errors
    /// A file cannot be read, or the two make no certificate with its key.
    pub fn open(cert: &Path, key: &Path, alpn: &[&str]) -> Result<ServingCertificate, TlsError> {
        let opened = Pem::read(cert, key)?;
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let config = opened.config(cert, key, &alpn)?;
        let files = Files { cert: cert.into(), key: key.into(), opened };
        Ok(ServingCertificate { alpn, config: ArcSwap::from_pointee(config), files: Some(files) })
    }

    /// Makes a certificate for `name` that nobody but itself vouches for. For peers that do not verify, as gateways
    /// do not verify pickers.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn self_signed(name: &str, alpn: &[&str]) -> Result<ServingCertificate, TlsError> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])
            .map_err(|error| TlsError::SelfSigned(error.to_string()))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.alpn_protocols.clone_from(&alpn);
        Ok(ServingCertificate { alpn, config: ArcSwap::from_pointee(config), files: None })
    }

    /// The configuration for the next handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Takes changes of the files in force, for ever, where there are files. A pair that cannot be used is told once and changes nothing.
    pub async fn watch(self: Arc<Self>) {
        let Some(Files { cert, key, opened }) = &self.files else { return };
        let mut seen = opened.clone();
        // The files are written one after the other: what is wrong is told when it still is at the next look, once.
        let (mut suspected, mut told) = (None, None);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            // Two small files: shorter than a hop to another thread.
            let fault = match self.look(cert, key, &mut seen) {
                Ok(()) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(fault) = fault.as_ref().filter(|_| fault == suspected && fault != told) {
                tracing::error!("{fault}; the certificate from before is served on");
            }
            if fault.is_none() || fault == suspected {
                told.clone_from(&fault);
            }
            suspected = fault;
        }
    }

    /// Takes what the files hold now in force, if that is not what was `seen`.
    fn look(&self, cert: &Path, key: &Path, seen: &mut Pem) -> Result<(), TlsError> {
        let found = Pem::read(cert, key)?;
        if found != *seen {
            self.config.store(Arc::new(found.config(cert, key, &self.alpn)?));
            tracing::info!(cert = %cert.display(), "a new certificate is served from now on");
            *seen = found;
        }
        Ok(())
    }
}

impl Pem {
    fn read(cert: &Path, key: &Path) -> Result<Pem, TlsError> {
        let read = |path: &Path, wanted| {
            fs::read(path).map_err(|error| TlsError::Pem {
                path: path.into(),
                wanted,
                why: error.to_string(),
            })
        };
        Ok(Pem { cert: read(cert, "certificate")?, key: read(key, "private key")? })
    }

    fn config(&self, cert: &Path, key: &Path, alpn: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
        let certificate = |why: String| TlsError::Pem { path: cert.into(), wanted: "certificate", why };
        let chain = CertificateDer::pem_slice_iter(&self.cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(certificate("the file has none".into()));
        }
        let private = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| TlsError::Pem {
            path: key.into(),
            wanted: "private key",
            why: error.to_string(),
        })?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|source| TlsError::Pair { cert: cert.into(), key: key.into(), source })?;
        config.alpn_protocols = alpn.to_vec();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        folder: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Files {
            let files = Files { folder: tempfile::tempdir().unwrap() };
            files.write("a");
            files
        }

        fn cert(&self) -> PathBuf {
            self.folder.path().join("tls.crt")
        }

        fn key(&self) -> PathBuf {
            self.folder.path().join("tls.key")
        }

        fn write(&self, name: &str) {
            let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            fs::write(self.cert(), made.cert.pem()).unwrap();
            fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
        }

        fn open(&self) -> Result<ServingCertificate, TlsError> {
            ServingCertificate::open(&self.cert(), &self.key(), &["h2"])
        }
    }

    #[test]
    fn a_certificate_is_made_where_none_is_given() {
        let made = ServingCertificate::self_signed("pointsman", &["h2"]).unwrap();
        assert_eq!(made.config().alpn_protocols, [b"h2".to_vec()]);
    }

    #[test]
    fn a_pair_that_does_not_fit_is_refused_by_name() {
        let files = Files::new();
        assert!(files.open().is_ok());
        let key = fs::read(files.key()).unwrap();
        files.write("b");
        fs::write(files.key(), key).unwrap();
        let error = files.open().err().unwrap().to_string();
        assert!(error.contains("tls.crt") && error.contains("tls.key"), "{error}");
        fs::write(files.cert(), "no certificate").unwrap();
        let error = files.open().err().unwrap().to_string();
        assert!(error.contains("tls.crt: no certificate in PEM"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pair_is_served_and_a_broken_one_changes_nothing() {
        let files = Files::new();
        let serving = Arc::new(files.open().unwrap());
        let first = serving.config();
        let watching = tokio::time::timeout(LOOK_EVERY * 4, Arc::clone(&serving).watch());
        fs::write(files.cert(), "-----BEGIN").unwrap();
        assert!(watching.await.is_err(), "the watch ended");
        assert!(Arc::ptr_eq(&first, &serving.config()));
        files.write("b");
        let watching = tokio::time::timeout(LOOK_EVERY * 4, Arc::clone(&serving).watch());
        assert!(watching.await.is_err(), "the watch ended");
        assert!(!Arc::ptr_eq(&first, &serving.config()));
    }
}
