//! One ext_proc stream: the request that Envoy shows us, from its head to its end.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use director::{
    AnswerRename, Control, Exchange, Failure, Head, HeldBytes, Intake, Progress, Reason, Refusal,
};
use ext_proc::{Control as HeaderOf, Event, Immediate, Left, Machine, Pick, Rest, Rewrite};
use grpc::{Broken, Call, Code, Status};
use http::StatusCode;

use crate::service::{POOL, Picker};

/// The method's path.
pub(crate) const PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// The key, beside the pick, of our number for a request: Envoy's access log gives it back.
pub(crate) const NUMBER: &str = "x-pointsman-request";
/// The conformance suite's request header that names the endpoints to pick from.
const TEST_SELECTION: &str = "test-epp-endpoint-selection";
/// … and the answer's header that tells it who served.
const TEST_SERVED: &str = "x-conformance-test-served-endpoint";

/// A request on its stream.
struct Stream<'a> {
    picker: &'a Picker,
    machine: Machine,
    /// The pool that the stream names, where there are many.
    pool: Option<Box<str>>,
    phase: Phase,
    held: HeldBytes,
    number: u64,
    /// Envoy was told the number before the pick: whatever becomes of that, its access log calls the request by it.
    named: bool,
    /// A log was open when the request came. One that opens later may call it by no number.
    watched: bool,
    status: Option<StatusCode>,
    /// Present where the model server knows the model by another name.
    rename: Option<AnswerRename>,
}

enum Phase {
    /// Its head has not come.
    NotBegun,
    /// Not decided.
    Intake(Box<Intake>),
    /// On its way.
    Sent(Box<Exchange>),
    /// At its end.
    Ended,
}

/// Serves one stream to its end.
pub(crate) async fn serve(picker: &Picker, mut call: Call) {
    let mut stream = Stream {
        picker,
        machine: Machine::new(),
        pool: picker.options().all_pools.then(|| call.metadata(POOL).unwrap_or_default().into()),
        phase: Phase::NotBegun,
        held: picker.director().held_bytes(),
        number: picker.parked().next_number(),
        named: false,
        watched: false,
        status: None,
        rename: None,
    };
    match stream.run(&mut call).await {
        Ok(()) => {
            stream.close(true);
            call.finish(&Status::ok());
        }
        Err(End::Protocol(what)) => {
            tracing::debug!(what, "an ext_proc stream breaks the protocol");
            stream.close(false);
            call.finish(&Status::new(Code::InvalidArgument, what));
        }
        Err(End::Gone) => stream.close(false),
    }
}

/// Why a stream ended before its time.
enum End {
    /// The peer broke the protocol.
    Protocol(String),
    /// The peer is gone.
    Gone,
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        match broken {
            Broken::Http2(_) => End::Gone,
            other => End::Protocol(other.to_string()),
        }
    }
}

impl Stream<'_> {
    async fn run(&mut self, call: &mut Call) -> Result<(), End> {
        while let Some(message) = call.next().await? {
            let event = self.receive(&message)?;
            drop(message);
            match self.take(event) {
                Err(refusal) => {
                    self.phase = Phase::Ended;
                    refuse(&mut self.machine, &refusal);
                }
                Ok(None) => {
                    if let Err(refusal) = self.hold() {
                        self.refuse(refusal);
                    }
                }
                Ok(Some(intake)) => self.route(call, *intake).await?,
            }
            if let Phase::Sent(exchange) = &self.phase
                && self.machine.request_is_whole()
            {
                exchange.delivered();
            }
            self.send_answers(call).await?;
        }
        Ok(())
    }

    fn receive(&mut self, message: &Bytes) -> Result<Event, End> {
        self.machine.receive(message).map_err(|broken| End::Protocol(broken.to_string()))
    }

    /// Accounts for the memory that the machine holds now.
    fn hold(&mut self) -> Result<(), Refusal> {
        self.held.hold(self.machine.held_bytes())
    }

    async fn send_answers(&mut self, call: &mut Call) -> Result<(), End> {
        while let Some(answer) = self.machine.next_answer() {
            call.send(answer).await?;
        }
        Ok(())
    }

    /// Gives the request whose decision is due, if it is.
    ///
    /// # Errors
    /// The refusal, when the request is not to go on; it is counted.
    fn take(&mut self, event: Event) -> Result<Option<Box<Intake>>, Refusal> {
        match event {
            Event::Nothing => {}
            Event::Request { head, rest } => return self.begin(&head, rest),
            Event::RequestBody { bytes, rest } => {
                if let Phase::Intake(intake) = &mut self.phase {
                    intake.push(&bytes)?;
                }
                return self.due(rest);
            }
            Event::Answer { head, last } => self.answer(&head, last),
            Event::AnswerBody { bytes, last } => self.answer_body(&bytes, last),
        }
        Ok(None)
    }

    fn begin(&mut self, head: &ext_proc::Head, rest: Rest) -> Result<Option<Box<Intake>>, Refusal> {
        let path = head.path.split('?').next().unwrap_or_default();
        let readable = head.readable && rest != Rest::Unseen && &*head.method == "POST";
        let safe = matches!(&*head.method, "GET" | "HEAD" | "OPTIONS" | "TRACE");
        let content_length = head.content_length;
        let said = |header| head.control(header).filter(|_| self.picker.options().control_headers);
        let control = Control {
            objective: said(HeaderOf::Objective),
            fairness_id: said(HeaderOf::FairnessId),
            model_rewrite: said(HeaderOf::ModelRewrite),
        };
        let pool = self.pool.as_deref();
        let mut intake =
            self.picker.director().begin(Head { path, safe, content_length, readable, control, pool })?;
        if let Some(subset) = &head.subset {
            intake.restrict(subset.endpoints());
        }
        if self.picker.options().conformance
            && let Some(wanted) = head.headers.value(TEST_SELECTION)
        {
            let wanted = String::from_utf8_lossy(wanted);
            intake.restrict(wanted.split(',').map(|endpoint| endpoint.trim().to_owned()).collect());
        }
        if intake.may_rename() {
            // The name must be put back into the answer, so that one is to be seen.
            self.machine.show_answer();
        }
        self.phase = Phase::Intake(Box::new(intake));
        self.watched = self.picker.parked().is_watched();
        if self.watched {
            self.named = self.machine.name(&[(NUMBER, &self.number.to_string())]);
        }
        self.due(rest)
    }

    /// The request, if its decision can be made now; it must be where no more of the body is shown.
    fn due(&mut self, rest: Rest) -> Result<Option<Box<Intake>>, Refusal> {
        let Phase::Intake(intake) = &mut self.phase else { return Ok(None) };
        if intake.progress() == Progress::More {
            match rest {
                Rest::Comes => return Ok(None),
                Rest::Over => intake.end_of_body_with_model()?,
                Rest::Unseen => {}
            }
        }
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Intake(intake) => Ok(Some(intake)),
            _ => Ok(None),
        }
    }

    /// Decides. Where that takes its time, what Envoy sends meanwhile is taken in: a client that is gone is noticed.
    async fn route(&mut self, call: &mut Call, mut intake: Intake) -> Result<(), End> {
        let patience = intake.patience();
        let routed = {
            let mut routing = pin!(intake.route());
            match poll_fn(|context| Poll::Ready(routing.as_mut().poll(context))).await {
                Poll::Ready(routed) => Ok(routed),
                Poll::Pending => {
                    self.machine.ask_for_time(patience);
                    self.send_answers(call).await?;
                    loop {
                        tokio::select! {
                            biased;
                            routed = &mut routing => break Ok(routed),
                            message = call.next() => {
                                let Some(message) = message? else { return Err(End::Gone) };
                                self.receive(&message)?;
                                if let Err(refusal) = self.hold() {
                                    break Err(refusal);
                                }
                            }
                        }
                    }
                }
            }
        };
        match routed {
            Ok(Ok(exchange)) => self.sent(exchange),
            Ok(Err(refusal)) => refuse(&mut self.machine, &refusal),
            Err(refusal) => refuse(&mut self.machine, &intake.refuse(refusal)),
        }
        Ok(())
    }

    fn sent(&mut self, exchange: Exchange) {
        let destinations = destinations(&exchange, self.picker.options().fallback_endpoints);
        let number = self.number.to_string();
        let metadata = [(NUMBER, number.as_str())];
        let rewrite =
            exchange.rename().map(|rename| Rewrite { span: rename.span(), with: rename.replacement() });
        self.machine.routed(&Pick { destinations: &destinations, metadata: &metadata, rewrite });
        self.phase = Phase::Sent(Box::new(exchange));
        if let Err(refusal) = self.hold() {
            self.refuse(refusal);
        }
    }

    fn answer(&mut self, head: &ext_proc::AnswerHead, last: bool) {
        let Phase::Sent(exchange) = &mut self.phase else { return };
        let Ok(status) = StatusCode::from_u16(head.status) else { return };
        if let Some(served) = &head.served {
            exchange.served_by(served);
        }
        if let Some(failure) = Failure::of_status(status) {
            exchange.failed(failure);
        }
        exchange.answer(status, head.kind);
        if let Some((rename, kind)) = exchange.rename().zip(head.kind) {
            self.rename = Some(rename.answer(kind));
            self.machine.rewrite_answer();
        }
        exchange.request_bytes(self.machine.request_bytes());
        self.status = Some(status);
        if self.picker.options().conformance {
            let served = exchange.endpoint().authority().to_owned();
            self.machine.set_answer_header(TEST_SERVED, &served);
        }
        if last {
            self.end();
        }
    }

    fn answer_body(&mut self, bytes: &Bytes, last: bool) {
        if let Phase::Sent(exchange) = &mut self.phase {
            exchange.answer_bytes(bytes);
        }
        if let Some(rename) = &mut self.rename {
            let mut parts = Vec::new();
            rename.push(bytes, |part| parts.push(part));
            if last {
                parts.extend(self.rename.take().and_then(AnswerRename::finish));
            }
            self.machine.replace_answer_part(parts);
        }
        if last {
            self.end();
        }
    }

    /// The answer was seen to its end.
    fn end(&mut self) {
        if let Phase::Sent(mut exchange) = std::mem::replace(&mut self.phase, Phase::Ended) {
            exchange.end(self.status.map_or(Reason::Served, Reason::of_answer));
        }
    }

    /// The request is not to go on.
    fn refuse(&mut self, refusal: Refusal) {
        let refusal = match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Intake(mut intake) => intake.refuse(refusal),
            Phase::Sent(mut exchange) => {
                exchange.end(refusal.reason);
                refusal
            }
            Phase::NotBegun | Phase::Ended => refusal,
        };
        refuse(&mut self.machine, &refusal);
    }

    /// The stream is closed; `cleanly` by Envoy, or because the client or Envoy is gone.
    fn close(&mut self, cleanly: bool) {
        let left = self.machine.close();
        let Phase::Sent(mut exchange) = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
        match left {
            // The usual end where Envoy does not show the answer: its access log tells how it went.
            Some(Left::Unanswered) if cleanly => {
                let unwatched = if self.watched {
                    self.picker.parked().park(self.number, self.named, exchange)
                } else {
                    Some(exchange)
                };
                if let Some(mut exchange) = unwatched {
                    exchange.unwatched();
                    exchange.end(Reason::Served);
                }
            }
            Some(Left::Unwatched) => exchange.end(self.status.map_or(Reason::Served, Reason::of_answer)),
            _ => exchange.end(Reason::ClientGone),
        }
    }
}

/// The pick, and those to fall back on in order.
fn destinations(exchange: &Exchange, fallback_endpoints: usize) -> String {
    let mut list = String::with_capacity(24 * (fallback_endpoints + 1));
    for endpoint in exchange.ranked(fallback_endpoints) {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(endpoint.authority());
    }
    list
}

/// Answers the client in place of a model server.
fn refuse(machine: &mut Machine, refusal: &Refusal) {
    let retry_after = refusal.retry_after_seconds().map(|seconds| seconds.to_string());
    let mut headers =
        vec![("content-type", "application/json"), ("x-pointsman-reason", refusal.reason.word())];
    headers.extend(retry_after.as_deref().map(|seconds| ("retry-after", seconds)));
    machine.refused(&Immediate {
        status: refusal.reason.status().as_u16(),
        headers: &headers,
        body: Bytes::from(refusal.body()),
        details: refusal.reason.word(),
    });
}
