//! HTTP/2 connections as Envoy opens them: its windows, plaintext or TLS without a look at the certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use h2::client::SendRequest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

/// Seen in the SETTINGS of Envoy 1.40.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 24 << 20;

/// Connections to one server; they close when this is dropped.
pub(crate) struct Connections {
    senders: Vec<SendRequest<Bytes>>,
    /// What reads and writes them.
    _drivers: JoinSet<Result<(), h2::Error>>,
}

impl Connections {
    /// Opens so many connections.
    pub(crate) async fn open(address: SocketAddr, tls: bool, count: usize) -> anyhow::Result<Connections> {
        let (mut senders, mut drivers) = (Vec::with_capacity(count), JoinSet::new());
        for _ in 0..count.max(1) {
            let stream =
                TcpStream::connect(address).await.with_context(|| format!("cannot reach {address}"))?;
            stream.set_nodelay(true)?;
            senders.push(if tls {
                let name = ServerName::IpAddress(address.ip().into());
                handshake(TlsConnector::from(tls_config()?).connect(name, stream).await?, &mut drivers)
                    .await?
            } else {
                handshake(stream, &mut drivers).await?
            });
        }
        Ok(Connections { senders, _drivers: drivers })
    }

    /// The connection that this stream goes over: they take turns.
    pub(crate) fn of(&self, stream: usize) -> SendRequest<Bytes> {
        self.senders[stream % self.senders.len()].clone()
    }
}

async fn handshake<S>(
    stream: S,
    drivers: &mut JoinSet<Result<(), h2::Error>>,
) -> anyhow::Result<SendRequest<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .enable_push(false)
        .handshake(stream)
        .await?;
    drivers.spawn(connection);
    Ok(sender)
}

fn tls_config() -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Pickers sign their own certificates, and gateways do not look.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
