//! The loads: those of docs/benchmarks.md, and one of your own.

use bench::ext_proc::BodyMode;

use super::exchange::{Checks, ResponsePhase};
use super::load::Load;
use super::prompts::{Shape, Sharing};
use super::{Mode, StepArgs};

const KB: usize = 1024;
const RESPONSE: ResponsePhase = ResponsePhase { headers: true, chunks: 0, mode_override: false };

/// One load, that is one table.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) title: String,
    body_bytes: usize,
    request_body: BodyMode,
    chunk_bytes: usize,
    partial_bytes: usize,
    pub(crate) sharing: Sharing,
    pub(crate) load: Load,
    pub(crate) response_body: BodyMode,
    pub(crate) response: ResponsePhase,
    hold_end: bool,
}

impl Step {
    fn new(title: &str, body_bytes: usize, request_body: BodyMode, load: Load) -> Step {
        Step {
            title: title.to_owned(),
            body_bytes,
            request_body,
            chunk_bytes: 64 * KB,
            partial_bytes: 64 * KB,
            sharing: Sharing::Different,
            load,
            response_body: BodyMode::None,
            response: RESPONSE,
            hold_end: false,
        }
    }

    fn with_answer(self, chunks: usize, mode: BodyMode, mode_override: bool) -> Step {
        let response = ResponsePhase { chunks, mode_override, ..RESPONSE };
        Step { response, response_body: mode, ..self }
    }

    /// What is looked at.
    pub(crate) fn checks(&self, body_may_change: bool) -> Checks {
        Checks { hold_end: self.hold_end, body_may_change }
    }

    /// The shape of its requests.
    pub(crate) fn shape(&self, model: &str) -> Shape {
        Shape {
            model: model.to_owned(),
            body_bytes: self.body_bytes,
            mode: self.request_body,
            chunk_bytes: self.chunk_bytes,
            partial_bytes: self.partial_bytes,
        }
    }
}

/// The steps that docs/benchmarks.md shows.
pub(crate) fn suite() -> Vec<Step> {
    use BodyMode::{BufferedPartial as Partial, FullDuplexStreamed as Duplex, Streamed};
    let (closed, open) = (|streams| Load::Closed { streams }, |per_second| Load::Open { per_second });
    let held = Step::new(
        "220 KB, FULL_DUPLEX_STREAMED, the end held back until the pick, closed loop 16",
        220 * KB,
        Duplex,
        closed(16),
    );
    let answer = |title| Step::new(title, KB, Duplex, closed(16));
    vec![
        Step::new("1 KB, FULL_DUPLEX_STREAMED, closed loop 32", KB, Duplex, closed(32)),
        Step::new("1 KB, FULL_DUPLEX_STREAMED, 500 a second", KB, Duplex, open(500.0)),
        Step::new("1 KB, BUFFERED_PARTIAL, closed loop 32", KB, Partial, closed(32)),
        Step::new("1 KB, BUFFERED_PARTIAL, 500 a second", KB, Partial, open(500.0)),
        Step::new("10 KB, FULL_DUPLEX_STREAMED, closed loop 16", 10 * KB, Duplex, closed(16)),
        Step::new("220 KB, FULL_DUPLEX_STREAMED, closed loop 16", 220 * KB, Duplex, closed(16)),
        Step { hold_end: true, ..held },
        Step::new("220 KB, BUFFERED_PARTIAL, closed loop 16", 220 * KB, Partial, closed(16)),
        answer("1 KB, answer of 200 chunks not shown, closed loop 16").with_answer(
            200,
            BodyMode::None,
            false,
        ),
        answer("1 KB, answer of 200 chunks STREAMED, mode override allowed, closed loop 16")
            .with_answer(200, Streamed, true),
        answer("1 KB, answer of 200 chunks FULL_DUPLEX_STREAMED, closed loop 16")
            .with_answer(200, Duplex, false),
    ]
}

/// A burst's requests.
pub(crate) fn burst(body_bytes: usize) -> Step {
    Step::new("burst", body_bytes, BodyMode::FullDuplexStreamed, Load::Closed { streams: 1 })
}

/// The loads that the command line asks for: one for each size of body.
pub(crate) fn of(wanted: &StepArgs) -> Vec<Step> {
    let load = match wanted.rate {
        Some(per_second) => Load::Open { per_second },
        None => Load::Closed { streams: wanted.closed },
    };
    let step = |body_bytes: usize| Step {
        title: title(wanted, body_bytes),
        body_bytes,
        request_body: wanted.mode.into(),
        chunk_bytes: wanted.chunk_bytes,
        partial_bytes: wanted.partial_bytes,
        sharing: wanted.prompts,
        load,
        response_body: wanted.answer_mode.into(),
        response: ResponsePhase {
            headers: !wanted.no_response,
            chunks: wanted.answer_chunks,
            mode_override: wanted.mode_override,
        },
        hold_end: wanted.hold_end,
    };
    wanted.body.iter().copied().map(step).collect()
}

fn title(wanted: &StepArgs, body_bytes: usize) -> String {
    let mode = |mode| match mode {
        Mode::None => "NONE",
        Mode::Streamed => "STREAMED",
        Mode::Buffered => "BUFFERED",
        Mode::Partial => "BUFFERED_PARTIAL",
        Mode::Duplex => "FULL_DUPLEX_STREAMED",
    };
    let load = match wanted.rate {
        Some(rate) => format!("{rate} a second"),
        None => format!("closed loop {}", wanted.closed),
    };
    let answer = match wanted.answer_mode {
        Mode::None => String::new(),
        shown => format!(", answer of {} chunks {}", wanted.answer_chunks, mode(shown)),
    };
    format!("{body_bytes} B, {}, {load}{answer}", mode(wanted.mode))
}
