//! `GET /metrics`: what the engine says about itself, as the engine that it pretends to be would print it, or as the
//! fault that was ordered would have it.

mod sglang;
mod trt_llm;
mod vllm;
mod writer;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};

use self::writer::Page;
use super::{EngineKind, MetricsFault, Shared, TrtLlmPage, driver::Snapshot, error::ApiError};
use crate::engine::Config;

/// What [`MetricsFault::Big`] adds to the page.
const BIG_BYTES: usize = 100 * 1024 * 1024;
/// What [`MetricsFault::Slow`] sends at a time, and how often.
const SLOW: (usize, Duration) = (256, Duration::from_millis(100));

/// Everything that a page tells.
#[derive(Debug)]
struct Facts<'a> {
    model: &'a str,
    engine: &'a Config,
    snapshot: &'a Snapshot,
    /// When the engine's time began and what it is now, in seconds since 1970.
    began_unix: f64,
    now_unix: f64,
    /// Whether adapters can be served.
    lora: bool,
}

/// The page, or the fault.
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let fault = shared.faults.lock().metrics;
    match fault {
        MetricsFault::Ok => text(render(&shared, None).into()),
        MetricsFault::Nan => text(render(&shared, Some("NaN")).into()),
        MetricsFault::Negative => text(render(&shared, Some("-1.0")).into()),
        MetricsFault::Huge => text(render(&shared, Some("1e+30")).into()),
        MetricsFault::Empty => text(Body::empty()),
        MetricsFault::Error => {
            ApiError::of_status(StatusCode::INTERNAL_SERVER_ERROR, "a fault that was ordered").into_response()
        }
        MetricsFault::Html => {
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            let page =
                "<!doctype html>\n<html><head><title>Welcome</title></head><body>It works!</body></html>\n";
            ([(CONTENT_TYPE, html)], page).into_response()
        }
        MetricsFault::Hang => std::future::pending().await,
        MetricsFault::Slow => text(slow(render(&shared, None))),
        MetricsFault::Big => text(big(render(&shared, None))),
    }
}

/// The page, each value replaced when `instead` is given.
fn render(shared: &Shared, instead: Option<&'static str>) -> String {
    let snapshot = shared.driver.snapshot();
    let facts = Facts {
        model: &shared.config.model,
        engine: &shared.engine,
        snapshot: &snapshot,
        began_unix: shared.began_unix,
        now_unix: shared.unix_seconds(),
        lora: !shared.adapters.lock().is_empty() || !snapshot.lora_history.is_empty(),
    };
    let mut page = Page::new(instead);
    match (shared.config.engine_kind, shared.config.trt_llm_page) {
        (EngineKind::Vllm, _) => vllm::print(&facts, &mut page),
        (EngineKind::Sglang, _) => sglang::print(&facts, &mut page),
        (EngineKind::TrtLlm, TrtLlmPage::Triton) => trt_llm::print_triton(&facts, &mut page),
        (EngineKind::TrtLlm, TrtLlmPage::TrtllmServe) => trt_llm::print_serve(&facts, &mut page),
    }
    page.into_text()
}

fn text(body: Body) -> Response {
    let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(CONTENT_TYPE, plain)], body).into_response()
}

fn slow(page: String) -> Body {
    let page = Bytes::from(page);
    let starts = stream::iter((0..page.len()).step_by(SLOW.0));
    Body::from_stream(starts.then(move |start| {
        let piece = page.slice(start..page.len().min(start + SLOW.0));
        async move {
            tokio::time::sleep(SLOW.1).await;
            Ok::<_, Infallible>(piece)
        }
    }))
}

fn big(page: String) -> Body {
    let more: String =
        (0..1024).map(|index| format!("sim:filler{{index=\"{index}\"}} {index}.0\n")).collect();
    let more = Bytes::from(more);
    let times = BIG_BYTES / more.len() + 1;
    let pieces = stream::iter(std::iter::once(Bytes::from(page)).chain(std::iter::repeat_n(more, times)));
    Body::from_stream(pieces.map(Ok::<_, Infallible>))
}
