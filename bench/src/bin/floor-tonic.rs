//! The floor as most would write it: an ext_proc server on tonic with generated types that picks a constant, echoes
//! bodies in FULL_DUPLEX_STREAMED, and reads nothing.
//!
//! `floor-tonic --port P --threads N`, plaintext on loopback; one thread is tokio's current-thread runtime.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;

use clap::Parser;
use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Asked;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answered;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody, ProcessingRequest,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// What is always picked.
const DESTINATION: &str = "127.0.0.1:8000";
/// As Envoy buffers: no window is in the way of what is measured.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 24 << 20;
/// A whole buffered body comes in one message.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Cli {
    /// On loopback.
    #[arg(long)]
    port: u16,
    /// Of the runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut builder = match cli.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(cli.threads).enable_all().build()?;
    let service = ExternalProcessorServer::new(Floor).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true)
        .add_service(service)
        .serve(SocketAddr::from((Ipv4Addr::LOCALHOST, cli.port)));
    Ok(runtime.block_on(server)?)
}

struct Floor;

#[tonic::async_trait]
impl ExternalProcessor for Floor {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let mut modes = Modes::default();
        let answers = request.into_inner().filter_map(move |message| {
            std::future::ready(message.map(|message| modes.answer(message)).transpose())
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// What the first message of a stream said.
#[derive(Default)]
struct Modes {
    echo_request: bool,
    echo_response: bool,
}

impl Modes {
    /// The answer to a message; none to one that asks nothing.
    fn answer(&mut self, message: ProcessingRequest) -> Option<ProcessingResponse> {
        if let Some(config) = message.protocol_config {
            let duplex = BodySendMode::FullDuplexStreamed as i32;
            self.echo_request = config.request_body_mode == duplex;
            self.echo_response = config.response_body_mode == duplex;
        }
        let answered = match message.request? {
            Asked::RequestHeaders(_) if self.echo_request => {
                return Some(picked(Answered::RequestHeaders(HeadersResponse { response: Some(pick()) })));
            }
            Asked::RequestBody(_) if !self.echo_request => {
                return Some(picked(Answered::RequestBody(BodyResponse { response: Some(pick()) })));
            }
            Asked::RequestHeaders(_) => Answered::RequestHeaders(HeadersResponse::default()),
            Asked::ResponseHeaders(_) => Answered::ResponseHeaders(HeadersResponse::default()),
            Asked::RequestBody(body) => Answered::RequestBody(echo(body)),
            Asked::ResponseBody(body) if self.echo_response => Answered::ResponseBody(echo(body)),
            Asked::ResponseBody(_) => Answered::ResponseBody(BodyResponse::default()),
            Asked::RequestTrailers(_) => Answered::RequestTrailers(TrailersResponse::default()),
            Asked::ResponseTrailers(_) => Answered::ResponseTrailers(TrailersResponse::default()),
        };
        Some(ProcessingResponse { response: Some(answered), ..Default::default() })
    }
}

/// An answer with the pick's metadata.
fn picked(response: Answered) -> ProcessingResponse {
    let string = Value { kind: Some(Kind::StringValue(DESTINATION.to_owned())) };
    let namespace = Struct { fields: [(bench::ext_proc::DESTINATION.to_owned(), string)].into() };
    let value = Value { kind: Some(Kind::StructValue(namespace)) };
    let metadata = Struct { fields: [(bench::ext_proc::LB_NAMESPACE.to_owned(), value)].into() };
    ProcessingResponse { response: Some(response), dynamic_metadata: Some(metadata), ..Default::default() }
}

/// The pick's header.
fn pick() -> CommonResponse {
    let header = HeaderValue {
        key: bench::ext_proc::DESTINATION.to_owned(),
        raw_value: DESTINATION.as_bytes().to_vec(),
        ..Default::default()
    };
    let option = HeaderValueOption { header: Some(header), ..Default::default() };
    CommonResponse {
        header_mutation: Some(HeaderMutation { set_headers: vec![option], ..Default::default() }),
        clear_route_cache: true,
        ..Default::default()
    }
}

/// A piece of body, given back.
fn echo(body: HttpBody) -> BodyResponse {
    let streamed =
        StreamedBodyResponse { body: body.body, end_of_stream: body.end_of_stream, ..Default::default() };
    let mutation = BodyMutation { mutation: Some(Mutation::StreamedResponse(streamed)) };
    BodyResponse { response: Some(CommonResponse { body_mutation: Some(mutation), ..Default::default() }) }
}
