//! The floor without tonic and generated types: an ext_proc server on bare HTTP/2 with hand-laid messages that picks a
//! constant, echoes bodies in FULL_DUPLEX_STREAMED, and reads nothing.
//!
//! `floor-h2 --port P --threads N`, plaintext on loopback. Each thread has a runtime and connections of its own and
//! shares nothing; connections are dealt in turn, so that two of them never meet on one thread while another idles.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use bench::ext_proc::{
    AnswerKind, BodyMode, BodyModes, Deframer, Request, RequestKind, framed, headers_answer, pick_answer,
    streamed_answer,
};
use bytes::Bytes;
use clap::Parser;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// What is always picked.
const DESTINATION: &str = "127.0.0.1:8000";
/// As Envoy buffers: no window is in the way of what is measured.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 24 << 20;
/// Connections on their way to a thread.
const DEALT_MAX: usize = 64;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Cli {
    /// On loopback.
    #[arg(long)]
    port: u16,
    /// With a runtime each.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut threads = Vec::new();
    for _ in 1..cli.threads.max(1) {
        let (sender, dealt) = mpsc::channel(DEALT_MAX);
        threads.push(sender);
        std::thread::spawn(move || runtime().map(|runtime| runtime.block_on(worker(dealt))));
    }
    // The first thread accepts, and serves its own share.
    let (sender, dealt) = mpsc::channel(DEALT_MAX);
    threads.push(sender);
    runtime()?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, cli.port)).await?;
        tokio::select! {
            failed = deal(listener, threads) => failed,
            () = worker(dealt) => Ok(()),
        }
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Accepts connections and deals them in turn.
async fn deal(listener: TcpListener, threads: Vec<mpsc::Sender<std::net::TcpStream>>) -> anyhow::Result<()> {
    for thread in threads.iter().cycle() {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        thread.send(stream.into_std()?).await.context("a thread has ended")?;
    }
    Ok(())
}

/// Serves the connections that one thread is dealt.
async fn worker(mut dealt: mpsc::Receiver<std::net::TcpStream>) {
    let answers = Answers::new();
    let mut connections = JoinSet::new();
    while let Some(stream) = dealt.recv().await {
        let answers = answers.clone();
        connections.spawn(async move { connection(TcpStream::from_std(stream)?, answers).await });
        // What has ended is let go; how it ended is the client's business.
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, answers: Answers) -> anyhow::Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake::<_, Bytes>(stream)
        .await?;
    let mut streams = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let answers = answers.clone();
        streams.spawn(async move { process(request.into_body(), respond, &answers).await });
        while streams.try_join_next().is_some() {}
    }
    Ok(())
}

/// One stream, that is one HTTP request of Envoy's.
async fn process(
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    answers: &Answers,
) -> anyhow::Result<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut send = respond.send_response(response, false)?;
    let mut modes = BodyModes { request: BodyMode::None, response: BodyMode::None };
    let mut deframer = Deframer::default();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        deframer.push(data);
        while let Some(message) = deframer.message()? {
            let request = Request::parse(&message)?;
            modes = request.modes.unwrap_or(modes);
            answers.send(request, modes, &mut send)?;
        }
    }
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(send.send_trailers(trailers)?)
}

/// Every answer that does not echo, made once.
#[derive(Clone)]
struct Answers {
    pick_at_headers: Bytes,
    pick_at_body: Bytes,
    request_headers: Bytes,
    response_headers: Bytes,
    response_body: Bytes,
    request_trailers: Bytes,
    response_trailers: Bytes,
}

impl Answers {
    fn new() -> Answers {
        let empty = |kind| framed(&headers_answer(kind));
        Answers {
            pick_at_headers: framed(&pick_answer(AnswerKind::RequestHeaders, DESTINATION)),
            pick_at_body: framed(&pick_answer(AnswerKind::RequestBody, DESTINATION)),
            request_headers: empty(AnswerKind::RequestHeaders),
            response_headers: empty(AnswerKind::ResponseHeaders),
            response_body: empty(AnswerKind::ResponseBody),
            request_trailers: empty(AnswerKind::RequestTrailers),
            response_trailers: empty(AnswerKind::ResponseTrailers),
        }
    }

    fn send(
        &self,
        request: Request,
        modes: BodyModes,
        send: &mut SendStream<Bytes>,
    ) -> Result<(), h2::Error> {
        let echo_request = modes.request == BodyMode::FullDuplexStreamed;
        let echo_response = modes.response == BodyMode::FullDuplexStreamed;
        let constant = match request.kind {
            RequestKind::RequestHeaders if echo_request => &self.pick_at_headers,
            RequestKind::RequestHeaders => &self.request_headers,
            RequestKind::ResponseHeaders => &self.response_headers,
            RequestKind::RequestBody if echo_request => return echo(AnswerKind::RequestBody, request, send),
            RequestKind::RequestBody => &self.pick_at_body,
            RequestKind::ResponseBody if echo_response => {
                return echo(AnswerKind::ResponseBody, request, send);
            }
            RequestKind::ResponseBody => &self.response_body,
            RequestKind::RequestTrailers => &self.request_trailers,
            RequestKind::ResponseTrailers => &self.response_trailers,
        };
        send.send_data(constant.clone(), false)
    }
}

/// Gives a piece of body back, the very bytes that came.
fn echo(kind: AnswerKind, request: Request, send: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    let (before, behind) = streamed_answer(kind, request.body.len(), request.end_of_stream);
    send.send_data(before, false)?;
    if !request.body.is_empty() {
        send.send_data(request.body, false)?;
    }
    if !behind.is_empty() {
        send.send_data(Bytes::from_static(behind), false)?;
    }
    Ok(())
}
