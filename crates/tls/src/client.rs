//! Whom we trust when we ask: the system's roots, a file of roots, or whoever answers.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::{TlsError, provider};

/// Takes any certificate; the handshake's signature is still checked against it.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

/// The roots in the PEM file `ca`, or those of the system (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others). Reads
/// files, hundreds perhaps: not for a thread that serves requests.
///
/// # Errors
/// No root can be found.
pub fn roots(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) };
    };
    let pem = |why: String| TlsError::Pem { path: path.into(), wanted: "certificate", why };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| pem(error.to_string()))? {
        roots.add(certificate.map_err(|error| pem(error.to_string()))?)?;
    }
    if roots.is_empty() { Err(pem("the file has none".into())) } else { Ok(roots) }
}

/// Nobody to trust.
#[must_use]
pub fn no_roots() -> RootCertStore {
    RootCertStore::empty()
}

/// Trusts whoever shows a certificate for its name that `roots` vouch for.
///
/// # Errors
/// None in practice: rustls supports its own default versions.
pub fn verifying(roots: RootCertStore) -> Result<ClientConfig, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Trusts whoever answers: encrypted, and no more than that. Pods rarely hold certificates for their addresses.
///
/// # Errors
/// None in practice: rustls supports its own default versions.
pub fn trusting() -> Result<ClientConfig, TlsError> {
    let provider = provider();
    Ok(ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth())
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
