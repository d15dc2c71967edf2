//! Envoy's side of a stream: messages made and answers read by code generated from Envoy's own definitions.

use std::fmt::Write as _;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::body_mutation::Mutation;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, CommonResponse, HeaderMutation, HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest,
    ProcessingResponse, ProtocolConfiguration, processing_request,
};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value};
use ext_proc::{Event, Immediate, Machine, Pick, Rest, Segments};
use prost::Message as _;

pub(crate) use BodySendMode::{Buffered, BufferedPartial, FullDuplexStreamed, None as NoBody, Streamed};
pub(crate) use processing_request::Request;

/// What is picked in tests, and how an answer with it reads.
pub(crate) const PICKED: &str = "10.0.0.1:8000,[fd00::2]:8000";
pub(crate) const PICK: &str = "+x-gateway-destination-endpoint=10.0.0.1:8000,[fd00::2]:8000 reroute \
     envoy.lb{x-gateway-destination-endpoint=10.0.0.1:8000,[fd00::2]:8000}";

/// How the head of [`post`] is told, in modes that show more of the request.
pub(crate) const CHAT: &str = "POST /v1/chat/completions of 10: comes";

/// An answer that carries the pick.
pub(crate) fn with_pick(answer: &str) -> String {
    format!("{answer} {PICK}")
}

/// What happens next on a stream.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Envoy sends this part.
    Says(Request),
    /// The decision is made.
    Pick,
    /// The request is refused.
    Refuse,
}

pub(crate) fn header(name: &str, value: &str) -> HeaderValue {
    HeaderValue { key: name.into(), value: String::new(), raw_value: value.into() }
}

pub(crate) fn head(headers: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let headers = headers.iter().map(|(name, value)| header(name, value)).collect();
    HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream, ..HttpHeaders::default() }
}

/// The head of a chat completion with `more` headers.
pub(crate) fn post_with(more: &[(&str, &str)]) -> Step {
    let mut headers = vec![(":method", "POST"), (":path", "/v1/chat/completions"), ("content-length", "10")];
    headers.extend(more);
    Step::Says(Request::RequestHeaders(head(&headers, false)))
}

pub(crate) fn post() -> Step {
    post_with(&[])
}

pub(crate) fn get() -> Step {
    Step::Says(Request::RequestHeaders(head(&[(":method", "GET"), (":path", "/v1/models")], true)))
}

pub(crate) fn body(bytes: &str) -> Step {
    Step::Says(Request::RequestBody(part(bytes, false)))
}

pub(crate) fn body_end(bytes: &str) -> Step {
    Step::Says(Request::RequestBody(part(bytes, true)))
}

pub(crate) fn trailers() -> Step {
    Step::Says(Request::RequestTrailers(HttpTrailers::default()))
}

pub(crate) fn answer_of(content_type: &str, end_of_stream: bool) -> Step {
    let headers = [(":status", "200"), ("content-type", content_type)];
    Step::Says(Request::ResponseHeaders(head(&headers, end_of_stream)))
}

pub(crate) fn answer() -> Step {
    answer_of("text/event-stream", false)
}

pub(crate) fn answer_body(bytes: &str) -> Step {
    Step::Says(Request::ResponseBody(part(bytes, false)))
}

pub(crate) fn answer_body_end(bytes: &str) -> Step {
    Step::Says(Request::ResponseBody(part(bytes, true)))
}

pub(crate) fn answer_trailers() -> Step {
    Step::Says(Request::ResponseTrailers(HttpTrailers::default()))
}

pub(crate) fn part(bytes: &str, end_of_stream: bool) -> HttpBody {
    HttpBody { body: bytes.into(), end_of_stream, ..HttpBody::default() }
}

/// A message as Envoy writes it.
pub(crate) fn message(part: Request, metadata_context: Option<Metadata>) -> Bytes {
    let request = Some(part);
    ProcessingRequest { request, metadata_context, ..ProcessingRequest::default() }.encode_to_vec().into()
}

/// Metadata with one value.
pub(crate) fn metadata(namespace: &str, key: &str, kind: Kind) -> Metadata {
    let value = Value { kind: Some(kind) };
    let fields = [(key.to_owned(), value)].into();
    Metadata { filter_metadata: [(namespace.to_owned(), Struct { fields })].into(), ..Metadata::default() }
}

pub(crate) fn list(strings: &[&str]) -> Kind {
    let string = |string: &&str| Value { kind: Some(Kind::StringValue((*string).into())) };
    Kind::ListValue(ListValue { values: strings.iter().map(string).collect() })
}

/// One stream, from Envoy's side.
pub(crate) struct Stream {
    pub(crate) machine: Machine,
    /// Goes with the next message.
    pub(crate) next: ProcessingRequest,
}

impl Stream {
    /// A stream of a filter with these body modes for requests and answers.
    pub(crate) fn new(request: BodySendMode, response: BodySendMode) -> Stream {
        let protocol = ProtocolConfiguration {
            request_body_mode: request.into(),
            response_body_mode: response.into(),
            ..ProtocolConfiguration::default()
        };
        let next = ProcessingRequest { protocol_config: Some(protocol), ..ProcessingRequest::default() };
        Stream { machine: Machine::new(), next }
    }

    /// A stream of an Envoy that does not tell its modes.
    pub(crate) fn untold() -> Stream {
        Stream { machine: Machine::new(), next: ProcessingRequest::default() }
    }

    /// Does `step`; what it means to whoever decides.
    pub(crate) fn step(&mut self, step: Step) -> String {
        match step {
            Step::Says(part) => {
                let message = ProcessingRequest { request: Some(part), ..std::mem::take(&mut self.next) };
                self.hears(&message.encode_to_vec().into())
            }
            Step::Pick => {
                self.machine.routed(&Pick { destinations: PICKED, metadata: &[], rewrite: None });
                String::new()
            }
            Step::Refuse => {
                self.machine.refused(&REFUSAL);
                String::new()
            }
        }
    }

    /// Takes a message as Envoy wrote it; what it means to whoever decides.
    pub(crate) fn hears(&mut self, message: &Bytes) -> String {
        told(self.machine.receive(message))
    }

    /// What is answered now.
    pub(crate) fn answers(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.machine.next_answer()).map(|answer| read(&answer)).collect()
    }

    /// Does each step; what must be told and answered stands beside it.
    #[track_caller]
    pub(crate) fn plays(&mut self, script: &[(Step, &str, &[&str])]) {
        for (number, (step, event, answers)) in script.iter().enumerate() {
            assert_eq!(self.step(step.clone()), *event, "event of step {number}: {step:?}");
            assert_eq!(self.answers(), *answers, "answers to step {number}: {step:?}");
        }
    }
}

pub(crate) const REFUSAL: Immediate<'_> = Immediate {
    status: 429,
    headers: &[("content-type", "application/json"), ("retry-after", "1")],
    body: Bytes::from_static(b"{}"),
    details: "too_many_requests",
};

/// How the refusal reads.
pub(crate) const REFUSED: &str =
    "immediate 429 +content-type=application/json +retry-after=1 \"{}\" too_many_requests";

/// An event in words.
fn told(event: Result<Event, ext_proc::Broken>) -> String {
    let rest_of = |rest| match rest {
        Rest::Comes => "comes",
        Rest::Over => "over",
        Rest::Unseen => "unseen",
    };
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let last_of = |last| if last { ", last" } else { "" };
    match event {
        Ok(Event::Nothing) => String::new(),
        Ok(Event::Request { head, rest }) => {
            let announced = head.content_length.map(|length| format!(" of {length}")).unwrap_or_default();
            format!("{} {}{announced}: {}", &*head.method, &*head.path, rest_of(rest))
        }
        Ok(Event::RequestBody { bytes, rest }) => format!("{:?}: {}", text(&bytes), rest_of(rest)),
        Ok(Event::Answer { head, last }) => {
            let kind = head.kind.map(|kind| format!(" {kind:?}")).unwrap_or_default();
            let served = head.served.map(|served| format!(" by {}", &*served)).unwrap_or_default();
            format!("{}{kind}{served}{}", head.status, last_of(last))
        }
        Ok(Event::AnswerBody { bytes, last }) => format!("answer {:?}{}", text(&bytes), last_of(last)),
        Err(broken) => format!("broken: {broken}"),
    }
}

pub(crate) fn decode(answer: &Segments) -> ProcessingResponse {
    ProcessingResponse::decode(&*answer.concat()).expect("a ProcessingResponse")
}

/// An answer in words, none of its fields left out.
pub(crate) fn read(answer: &Segments) -> String {
    let ProcessingResponse { response, dynamic_metadata, mode_override, override_message_timeout, .. } =
        decode(answer);
    if let Some(time) = override_message_timeout {
        assert_eq!(
            (&response, &dynamic_metadata, &mode_override),
            (&None, &None, &None),
            "Envoy reads nothing else"
        );
        return format!("wait {}.{:09} s", time.seconds, time.nanos);
    }
    let mut words = match response.expect("an answer to something") {
        Response::RequestHeaders(headers) => format!("request headers{}", common(headers.response)),
        Response::ResponseHeaders(headers) => format!("answer headers{}", common(headers.response)),
        Response::RequestBody(body) => format!("request body{}", common(body.response)),
        Response::ResponseBody(body) => format!("answer body{}", common(body.response)),
        Response::RequestTrailers(trailers) => {
            format!("request trailers{}", changed(trailers.header_mutation))
        }
        Response::ResponseTrailers(trailers) => {
            format!("answer trailers{}", changed(trailers.header_mutation))
        }
        Response::ImmediateResponse(reply) => {
            assert!(reply.grpc_status.is_none());
            let (status, headers) = (reply.status.expect("a status").code, changed(reply.headers));
            format!("immediate {status}{headers} {:?} {}", utf8(&reply.body), reply.details)
        }
        other => panic!("nobody says this: {other:?}"),
    };
    if let Some(metadata) = dynamic_metadata {
        for (namespace, value) in metadata.fields {
            let Some(Kind::StructValue(strings)) = value.kind else { panic!("{namespace} holds no strings") };
            let mut strings: Vec<_> = strings.fields.into_iter().collect();
            strings.sort_by(|(one, _), (other, _)| one.cmp(other));
            let strings: Vec<_> =
                strings.into_iter().map(|(key, value)| format!("{key}={}", string(value))).collect();
            write!(words, " {namespace}{{{}}}", strings.join(" ")).expect("memory");
        }
    }
    if let Some(mode) = mode_override {
        let send = |trailers| if trailers == 1 { "+trailers" } else { "" };
        write!(
            words,
            " send({:?}{}, {}{:?}{})",
            mode.request_body_mode(),
            send(mode.request_trailer_mode),
            if mode.response_header_mode == 1 { "head+" } else { "" },
            mode.response_body_mode(),
            send(mode.response_trailer_mode)
        )
        .expect("memory");
    }
    words
}

fn string(value: Value) -> String {
    match value.kind {
        Some(Kind::StringValue(string)) => string,
        other => panic!("no string: {other:?}"),
    }
}

fn common(common: Option<CommonResponse>) -> String {
    let Some(CommonResponse { status, header_mutation, body_mutation, trailers, clear_route_cache }) = common
    else {
        return String::new();
    };
    assert_eq!((status, trailers), (0, None), "only ever CONTINUE");
    let mut words = changed(header_mutation);
    words.push_str(if clear_route_cache { " reroute" } else { "" });
    match body_mutation {
        None => {}
        Some(BodyMutation { mutation: Some(Mutation::Body(bytes)) }) => {
            write!(words, " replaced by {:?}", utf8(&bytes)).expect("memory");
        }
        Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(stream)) }) => {
            assert!(!stream.end_of_stream_without_message && !stream.grpc_message_compressed);
            let end = if stream.end_of_stream { ", end" } else { "" };
            write!(words, " {:?}{end}", utf8(&stream.body)).expect("memory");
        }
        other => panic!("nobody says this: {other:?}"),
    }
    words
}

fn changed(mutation: Option<HeaderMutation>) -> String {
    let HeaderMutation { set_headers, remove_headers } = mutation.unwrap_or_default();
    let mut words = String::new();
    for option in set_headers {
        assert_eq!(option.append_action(), HeaderAppendAction::OverwriteIfExistsOrAdd);
        let header = option.header.expect("a header");
        assert_eq!(header.value, "", "values are raw");
        write!(words, " +{}={}", header.key, utf8(&header.raw_value)).expect("memory");
    }
    for name in remove_headers {
        write!(words, " -{name}").expect("memory");
    }
    words
}

fn utf8(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("UTF-8")
}
