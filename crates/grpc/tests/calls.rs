//! Calls over loopback, by a client that is as bare as the server.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is a failure")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use grpc::{Call, Code, Health, Server, Service, Settings, Status};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::io::BufWriter;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(10);
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Says every message back, and tells health.
struct Echo {
    health: Health,
}

impl Service for Echo {
    async fn serve(&self, call: Call) {
        let Err(mut call) = self.health.clone().answer(call).await else { return };
        if call.path() != "/test.Echo/Echo" {
            return call.finish(&Status::new(Code::Unimplemented, "only Echo is known here"));
        }
        let status = loop {
            match call.next().await {
                Ok(Some(message)) => {
                    let (first, rest) = message.split_at(message.len() / 2);
                    if call.send([message.slice_ref(first), message.slice_ref(rest)]).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break Status::ok(),
                Err(broken) => break Status::new(Code::InvalidArgument, broken.to_string()),
            }
        };
        call.finish(&status);
    }
}

struct House {
    address: SocketAddr,
    stop: CancellationToken,
    tracker: TaskTracker,
    tell_health: watch::Sender<bool>,
    served: tokio::task::JoinHandle<std::io::Result<bool>>,
}

impl House {
    async fn new(threads: usize) -> House {
        let (tell_health, serving) = watch::channel(true);
        let health = Health::new(&["", "test.Echo"], "liveness", serving);
        let settings = Settings { threads, message_bytes_max: MESSAGE_BYTES_MAX, ..Settings::default() };
        let server = Server::new(Arc::new(Echo { health }), settings, None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let served = tracker.spawn(server.serve(listener, stop.clone(), Duration::from_secs(5)));
        House { address, stop, tracker, tell_health, served }
    }

    async fn client(&self) -> SendRequest<Bytes> {
        self.client_on(TcpStream::connect(self.address).await.unwrap()).await
    }

    /// As Envoy does, it sends its first call with the preface: what the two write goes out together.
    async fn client_on(&self, stream: TcpStream) -> SendRequest<Bytes> {
        let stream = BufWriter::new(stream);
        let (client, connection) =
            h2::client::Builder::new().initial_window_size(1 << 22).handshake(stream).await.unwrap();
        self.tracker.spawn(async { drop(connection.await) });
        client.ready().await.unwrap()
    }
}

fn framed(message: &[u8]) -> BytesMut {
    let mut framed = BytesMut::from(&[0][..]);
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(message);
    framed
}

/// Sends `frames`; the data of the answer, and the status that ended it.
async fn call(client: &mut SendRequest<Bytes>, path: &str, frames: &[Bytes]) -> (Vec<u8>, HeaderMap) {
    let request = Request::post(format!("http://pointsman{path}")).body(()).unwrap();
    let (answer, mut send) = client.send_request(request, false).unwrap();
    for (number, frame) in frames.iter().enumerate() {
        send.send_data(frame.clone(), number + 1 == frames.len()).unwrap();
    }
    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
    let mut status = answer.headers().clone();
    let (mut body, mut data) = (answer.into_body(), Vec::new());
    while let Some(frame) = timeout(PATIENCE, body.data()).await.unwrap() {
        let frame = frame.unwrap();
        body.flow_control().release_capacity(frame.len()).unwrap();
        data.extend_from_slice(&frame);
    }
    if let Some(trailers) = body.trailers().await.unwrap() {
        status = trailers;
    }
    (data, status)
}

#[tokio::test]
async fn messages_come_back_wherever_their_frames_were_cut() {
    let house = House::new(2).await;
    let mut client = house.client().await;
    let large = vec![7; 300_000];
    let messages = [framed(b"one"), framed(b""), framed(&large)].concat();
    for cut in [1, 4, 5, 6, 8, 9, 13, 14, 70_000] {
        let all = Bytes::copy_from_slice(&messages);
        let (echo, status) =
            call(&mut client, "/test.Echo/Echo", &[all.slice(..cut), all.slice(cut..)]).await;
        assert!(echo == messages, "cut at {cut}: {} of {} bytes", echo.len(), messages.len());
        assert_eq!(status["grpc-status"], "0");
    }
}

#[tokio::test]
async fn what_cannot_be_served_ends_with_a_status_and_harms_nobody_else() {
    let house = House::new(1).await;
    let mut client = house.client().await;
    for (path, frame, code) in [
        ("/test.Echo/Other", framed(b"x"), "12"),
        ("/test.Echo/Echo", BytesMut::from(&[0, 0, 0x10, 0, 1][..]), "3"),
        ("/test.Echo/Echo", BytesMut::from(&[1, 0, 0, 0, 0][..]), "3"),
        ("/test.Echo/Echo", BytesMut::from(&[0, 0, 0, 0, 9, 1][..]), "3"),
    ] {
        let (_, status) = call(&mut client, path, &[frame.freeze()]).await;
        assert_eq!(status["grpc-status"], code, "{path}");
    }
    let (echo, _) = call(&mut client, "/test.Echo/Echo", &[framed(b"fine").freeze()]).await;
    assert_eq!(echo, framed(b"fine"));
}

#[tokio::test]
async fn health_is_told_and_followed() {
    let house = House::new(1).await;
    let mut client = house.client().await;
    let check = framed(b"\x0a\x09test.Echo").freeze();
    let path = "/grpc.health.v1.Health/Check";
    assert_eq!(call(&mut client, path, std::slice::from_ref(&check)).await.0, framed(&[8, 1]));
    let unknown = framed(b"\x0a\x01x").freeze();
    assert_eq!(call(&mut client, path, &[unknown]).await.1["grpc-status"], "5");

    let request = Request::post("http://pointsman/grpc.health.v1.Health/Watch").body(()).unwrap();
    let (answer, mut send) = client.send_request(request, false).unwrap();
    send.send_data(check.clone(), true).unwrap();
    let mut body = timeout(PATIENCE, answer).await.unwrap().unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), framed(&[8, 1]));
    house.tell_health.send(false).unwrap();
    assert_eq!(timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap(), framed(&[8, 2]));
    assert_eq!(call(&mut client, path, &[check]).await.0, framed(&[8, 2]));
}

#[tokio::test]
async fn a_drain_lets_calls_end() {
    let house = House::new(1).await;
    let mut client = house.client().await;
    let request = Request::post("http://pointsman/test.Echo/Echo").body(()).unwrap();
    let (answer, mut send) = client.send_request(request, false).unwrap();
    send.send_data(framed(b"before").freeze(), false).unwrap();
    let mut body = timeout(PATIENCE, answer).await.unwrap().unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), framed(b"before"));
    house.stop.cancel();
    send.send_data(framed(b"after").freeze(), true).unwrap();
    assert_eq!(timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap(), framed(b"after"));
    assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    assert!(timeout(PATIENCE, house.served).await.unwrap().unwrap().unwrap(), "all ended by themselves");
}

/// The kernel lets clients in before the program does: whom it let in before the end is served.
#[tokio::test]
async fn who_connected_before_the_end_is_served() {
    const CLIENTS: usize = 20;
    let house = House::new(2).await;
    // Nothing else runs on this thread until all are in.
    let connected = [(); CLIENTS].map(|()| std::net::TcpStream::connect(house.address).unwrap());
    house.stop.cancel();
    for stream in connected {
        stream.set_nonblocking(true).unwrap();
        let mut client = house.client_on(TcpStream::from_std(stream).unwrap()).await;
        let (echo, status) = call(&mut client, "/test.Echo/Echo", &[framed(b"late").freeze()]).await;
        assert_eq!((&echo[..], &status["grpc-status"]), (&framed(b"late")[..], &"0".parse().unwrap()));
    }
    assert!(timeout(PATIENCE, house.served).await.unwrap().unwrap().unwrap(), "all ended by themselves");
    assert!(TcpStream::connect(house.address).await.is_err(), "and then nobody is let in");
}
