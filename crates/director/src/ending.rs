//! The one guard that ends a request: whatever happens to a request (answered, refused, cancelled, panicked), its
//! [`Ending`] is dropped exactly once, and the drop is the only place where an outcome is counted.

use std::sync::Arc;
use std::time::Duration;

use inference::{AnswerKind, Usage, UsageScan};
use telemetry::ModelMetrics;

use crate::director::Director;
use crate::reason::Reason;

/// Label of requests that name no model.
const UNNAMED: &str = "unnamed";

/// What is known of a request so far; counts it when dropped.
pub(crate) struct Ending {
    director: Arc<Director>,
    started: Duration,
    reason: Option<Reason>,
    model: Option<Arc<ModelMetrics>>,
    sent_on: bool,
    request_bytes: u64,
    response_bytes: u64,
    first_byte_after: Option<Duration>,
    usage: Option<UsageScan>,
}

impl Ending {
    /// A request whose head came now.
    pub(crate) fn new(director: Arc<Director>) -> Ending {
        Ending {
            started: director.clock().now(),
            director,
            reason: None,
            model: None,
            sent_on: false,
            request_bytes: 0,
            response_bytes: 0,
            first_byte_after: None,
            usage: None,
        }
    }

    /// The model whose families count this request, and what it is asked for as.
    pub(crate) fn name_model(&mut self, model: Option<&str>, target: Option<&str>) {
        if self.model.is_none() {
            let model = model.unwrap_or(UNNAMED);
            self.model = Some(self.director.metrics().model(model, target.unwrap_or(model)));
        }
    }

    /// More bytes of the request's body came.
    pub(crate) fn request_bytes(&mut self, count: usize) {
        self.request_bytes += count as u64;
    }

    /// Bytes of the request's body in all.
    pub(crate) fn set_request_bytes(&mut self, bytes: u64) {
        self.request_bytes = bytes;
    }

    /// Bytes of the request's body so far.
    pub(crate) fn request_bytes_so_far(&self) -> u64 {
        self.request_bytes
    }

    /// The request was booked on an endpoint: it runs until it ends.
    pub(crate) fn sent_on(&mut self) {
        self.name_model(None, None);
        if !self.sent_on {
            self.sent_on = true;
            self.model().running.inc();
        }
    }

    /// The answer's head is known: how to read its usage, if it can be read.
    pub(crate) fn answer(&mut self, kind: Option<AnswerKind>) {
        self.usage = kind.map(UsageScan::new);
    }

    /// A part of the answer's body was passed on.
    pub(crate) fn answer_bytes(&mut self, bytes: &[u8]) {
        if self.first_byte_after.is_none() && !bytes.is_empty() {
            self.first_byte_after = Some(self.director.clock().now().saturating_sub(self.started));
        }
        self.response_bytes += bytes.len() as u64;
        if let Some(usage) = &mut self.usage {
            usage.push(bytes);
        }
    }

    /// Bytes of the answer's body in all.
    pub(crate) fn set_answer_bytes(&mut self, bytes: u64) {
        self.response_bytes = bytes;
    }

    /// How the request ended. The first word stands; without one the client hung up, or the process stopped.
    pub(crate) fn end(&mut self, reason: Reason) {
        self.reason.get_or_insert(reason);
    }

    fn model(&self) -> Arc<ModelMetrics> {
        self.model.clone().unwrap_or_else(|| self.director.metrics().model(UNNAMED, UNNAMED))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let reason = self.reason.unwrap_or_else(|| {
            if std::thread::panicking() {
                Reason::Internal
            } else if self.director.is_cut_off() {
                Reason::ShuttingDown
            } else {
                Reason::ClientGone
            }
        });
        let duration = self.director.clock().now().saturating_sub(self.started);
        let model = self.model();
        self.director.metrics().count_outcome(reason.word());
        model.requests.inc();
        if reason.is_error() {
            self.director.metrics().count_error(&model, reason.word());
        }
        if self.sent_on {
            model.running.dec();
        }
        model.duration.observe(duration.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^53")]
        {
            model.request_bytes.observe(self.request_bytes as f64);
            model.response_bytes.observe(self.response_bytes as f64);
        }
        if let Some(after) = self.first_byte_after {
            model.time_to_first_token.observe(after.as_secs_f64());
        }
        if let Some(usage) = self.usage.as_ref().and_then(UsageScan::usage) {
            count_tokens(&model, usage, duration);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts far below 2^53")]
fn count_tokens(model: &ModelMetrics, usage: Usage, duration: Duration) {
    if let Some(tokens) = usage.prompt_tokens {
        model.input_tokens.observe(tokens as f64);
        model.input_tokens_total.inc_by(tokens);
    }
    if let Some(tokens) = usage.cached_tokens {
        model.cached_tokens_total.inc_by(tokens);
    }
    if let Some(tokens) = usage.completion_tokens {
        model.output_tokens.observe(tokens as f64);
        model.output_tokens_total.inc_by(tokens);
        if tokens > 0 {
            model.time_per_output_token.observe(duration.as_secs_f64() / tokens as f64);
        }
    }
}
