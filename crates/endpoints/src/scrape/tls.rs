//! TLS towards endpoints: verifying by the system's roots, or taking whatever certificate comes.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The two configurations, each made when first needed.
#[derive(Debug, Default)]
pub(crate) struct TlsConfigs {
    verifying: OnceCell<Arc<ClientConfig>>,
    trusting: OnceCell<Arc<ClientConfig>>,
}

impl TlsConfigs {
    /// Shakes hands over `stream`. `host` is the IP address or DNS name that a verified certificate must be for.
    pub(crate) async fn handshake(
        &self,
        stream: TcpStream,
        host: &str,
        verify: bool,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = if verify {
            self.verifying.get_or_try_init(verifying).await?
        } else {
            self.trusting
                .get_or_try_init(async || tls::trusting().map(Arc::new).map_err(io::Error::other))
                .await?
        };
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await
    }
}

async fn verifying() -> io::Result<Arc<ClientConfig>> {
    let roots = spawn_blocking(|| tls::roots(None)).await.map_err(io::Error::other)?;
    let config = roots.and_then(tls::verifying).map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

#[cfg(test)]
pub(in crate::scrape) mod tests;
