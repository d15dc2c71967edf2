//! Answers Envoy Gateway as the controller does, by HTTPRoutes that are known from the start, and keeps what it is asked: how the
//! captures in tests/captures were made (their README.md says of what).
//!
//! `cargo run -p envoy-gateway --example record -- FOLDER PORT`
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for who works on this crate")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use envoy_gateway::{ExtensionServer, Setting};
use grpc::{Call, Server, Service, Settings, Status};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Recorder {
    folder: PathBuf,
    calls: AtomicUsize,
    server: ExtensionServer,
}

impl Service for Recorder {
    async fn serve(&self, mut call: Call) {
        let hook = call.path().rsplit('/').next().unwrap_or_default().to_owned();
        let Ok(Some(request)) = call.next().await else { return };
        let number = self.calls.fetch_add(1, Relaxed);
        std::fs::write(self.folder.join(format!("{number:03}-{hook}.bin")), &request).unwrap();
        println!("{number:03} {hook} {} bytes", request.len());
        let answer = self.server.answer(&hook, &request).await;
        call.send([Bytes::from(answer.unwrap_or_default().unwrap_or_default())]).await.unwrap();
        call.finish(&Status::ok());
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (folder, port) =
        (PathBuf::from(arguments.next().unwrap()), arguments.next().unwrap().parse::<u16>().unwrap());
    std::fs::create_dir_all(&folder).unwrap();
    let (_known, known) = watch::channel(Arc::default());
    let (_endpoints, endpoints) = watch::channel(Arc::default());
    let setting = Setting { discovery: ("127.0.0.1".to_owned(), port), pickers_change: true };
    let server = ExtensionServer::new(setting, known, endpoints);
    let recorder = Recorder { folder, calls: AtomicUsize::new(0), server };
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let settings = Settings { message_bytes_max: 64 << 20, ..Settings::default() };
    Server::new(Arc::new(recorder), settings, None)
        .serve(listener, CancellationToken::new(), std::time::Duration::ZERO)
        .await
        .unwrap();
}
