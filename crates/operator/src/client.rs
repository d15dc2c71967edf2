//! The way to the API server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Without a byte for so long a connection counts as dead. Watches that are open get a bookmark about once a minute.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file cannot be read or used.
    #[error("--kubeconfig {}: {error}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<KubeconfigError>,
    },
    /// No file was named, and this is no pod.
    #[error(
        "no way to a Kubernetes API server: not in a pod with a service account ({error}); name a file with --kubeconfig, or declare the pool in files (--file)"
    )]
    NoCluster {
        /// What is missing.
        error: kube::config::InClusterError,
    },
    /// The configuration is sound, and the client cannot be made of it.
    #[error("the Kubernetes client cannot be made: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// A client by the file, else by the service account of the pod that this is.
///
/// # Errors
/// The file cannot be used; this is no pod.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let wrong = |error| ClientError::Kubeconfig { path: path.to_owned(), error: Box::new(error) };
            let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)?
        }
        // Not KUBECONFIG or ~/.kube/config: whoever may set a variable of a picker's pod must not send its token elsewhere.
        None => Config::incluster().map_err(|error| ClientError::NoCluster { error })?,
    };
    config.connect_timeout = Some(CONNECT_MAX);
    config.read_timeout = Some(SILENCE_MAX);
    config.write_timeout = Some(SILENCE_MAX);
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
}
