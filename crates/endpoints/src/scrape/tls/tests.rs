//! Handshakes with a server whose certificate nobody has signed but itself.

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A certificate for these names, signed by itself, and a server that shows it.
pub(in crate::scrape) fn self_signed(names: &[&str]) -> (CertificateDer<'static>, TlsAcceptor) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let CertifiedKey::<KeyPair> { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (cert.der().clone(), TlsAcceptor::from(Arc::new(config)))
}

/// Shakes hands with a server that has the certificate for `names`, asking for `host`.
async fn handshake(names: &[&str], host: &str, verify: bool, trusted: bool) -> io::Result<()> {
    let (certificate, acceptor) = self_signed(names);
    let mut roots = RootCertStore::empty();
    if trusted {
        roots.add(certificate).unwrap();
    }
    let verifying = Arc::new(tls::verifying(roots).unwrap());
    let configs = TlsConfigs { verifying: OnceCell::new_with(Some(verifying)), ..TlsConfigs::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let stream = TcpStream::connect(listener.local_addr()?).await?;
    let serve = async {
        let (stream, _) = listener.accept().await?;
        acceptor.accept(stream).await?.shutdown().await
    };
    let (shaken, _served) = tokio::join!(configs.handshake(stream, host, verify), serve);
    shaken.map(drop)
}

#[tokio::test]
async fn a_certificate_is_verified_by_root_and_name() {
    assert!(handshake(&["127.0.0.1"], "127.0.0.1", true, true).await.is_ok());
    assert!(handshake(&["engine.example"], "engine.example", true, true).await.is_ok());
    assert!(handshake(&["engine.example"], "other.example", true, true).await.is_err());
    assert!(handshake(&["127.0.0.1"], "127.0.0.1", true, false).await.is_err());
}

#[tokio::test]
async fn any_certificate_does_where_it_is_not_verified() {
    assert!(handshake(&["engine.example"], "127.0.0.1", false, false).await.is_ok());
}
